"""Batches in an order that is a pure function of (seed, epoch); reading can start at any step."""

import atexit
import dataclasses
import functools
import math
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from alexnet_jax import hosts
from alexnet_jax.data.images import ACCEPTED, ImageError, decode_square
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError

Batch = dict[str, np.ndarray]
"""image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32, and in evaluation also mask (N,) bool."""

_PART = 8  # images that a thread decodes at a time


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Returns the order of the examples in an epoch: (examples,) int64, a permutation of 0..examples-1."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the examples of a run. Epochs follow each other without a gap: a batch may hold the end of one epoch
    and the start of the next. An epoch has each of its examples exactly once.

    Attributes:
      examples: number of examples in the training split.
      seed: of the permutations.
      shuffle: whether each epoch is a new permutation; otherwise all have the stored order.
      early, early_epochs: the first early_epochs epochs have only the first `early` examples.
    """

    examples: int
    seed: int = 0
    shuffle: bool = True
    early: int = 0
    early_epochs: int = 0

    @classmethod
    def of_run(cls, config, examples: int) -> "Order":
        """The order that a config gives to a run on this number of training examples."""
        early = max(1, round(config.early_share * examples))
        return cls(examples, config.seed, config.shuffle, early, config.early_epochs)

    def start(self, epoch):
        """The number of examples before a time in epochs, counted over the whole run; a number or an array."""
        before = np.minimum(epoch, self.early_epochs)
        return before * self.early + (epoch - before) * self.examples

    def epochs(self, examples):
        """The time in epochs after so many examples: the inverse of start; a number or an array."""
        early = self.early_epochs * self.early
        late = self.early_epochs + (examples - early) / self.examples
        return np.where(examples < early, examples / max(1, self.early), late)

    def epoch_and_place(self, positions):
        """The epochs of the examples with these numbers in the whole run, and their places in them."""
        late = positions - self.early_epochs * self.early
        epochs = np.where(late < 0, positions // max(1, self.early), self.early_epochs + late // self.examples)
        return epochs, positions - self.start(epochs)

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The indices of the examples of an epoch, in order."""
        count = self.early if epoch < self.early_epochs else self.examples
        return permutation(self.seed, epoch, count) if self.shuffle else np.arange(count)

    def of_step(self, step: int, batch_size: int) -> np.ndarray:
        """The indices of the examples of one training step: (batch_size,) int64."""
        epochs, places = self.epoch_and_place(step * batch_size + np.arange(batch_size))
        chosen = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self.of_epoch(int(epoch))[places[here]]
        return chosen


def train_batches(
    source: Source, *, order: Order, batch_size: int, image_size: int, start: int, stop: int, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Yields the batches of the steps start..stop-1. No examples of earlier steps are read.

    `index` is the number of an example in the whole run (modulo 2^32). The example's random numbers depend on it.

    Args:
      source: the training split.
      order: of the examples.
      batch_size: examples per step, in all processes together.
      image_size: side of the images in pixels.
      start, stop: the first step, and the step after the last.
      rows: the part of each batch that this process reads.

    Raises:
      UsageError: if an image does not decode; the message names the first one.
    """

    def examples(step):
        return order.of_step(step, batch_size)[rows]

    batches = _read(source, examples, start, stop, image_size)
    for step, (image, label) in zip(range(start, stop), batches, strict=True):
        index = (step * batch_size + np.arange(batch_size)[rows]) % 2**32
        yield {"image": image, "label": label, "index": index.astype(np.uint32)}


def eval_batches(source: Source, *, batch_size: int, image_size: int, rows: slice = slice(None)) -> Iterator[Batch]:
    """Yields each example exactly once, in stored order. The last batch is filled up; `mask` is False there.

    Args: as in train_batches.
    """
    count = len(source)
    stop = -(-count // batch_size)

    def positions(step):
        return (step * batch_size + np.arange(batch_size))[rows]

    # Rows after the end repeat the last example; their mask is False.
    batches = _read(source, lambda step: np.minimum(positions(step), count - 1), 0, stop, image_size)
    for step, (image, label) in enumerate(batches):
        index = positions(step)
        yield {"image": image, "label": label, "index": index.astype(np.uint32), "mask": index < count}


_open = weakref.WeakSet()  # the generators that _read returned


@atexit.register
def _close():
    """Ends all reading before the interpreter does: a thread of TensorFlow that calls Python afterwards never returns,
    and the program would wait for it without end.
    """
    for batches in list(_open):
        batches.close()


def _read(source: Source, examples, start: int, stop: int, image_size: int):
    """Yields (image, label) arrays for the steps start..stop-1; `examples(step)` gives the indices."""
    batches = _generate(source, examples, start, stop, image_size)
    _open.add(batches)
    return batches


def _generate(source: Source, examples, start: int, stop: int, image_size: int):
    if start >= stop:
        return
    memory = _Memory((len(examples(start)), image_size, image_size, 3))
    failures = {}

    def fetch(step):
        try:
            return _decode(source, examples(int(step)), memory.take(), pool)
        except Exception as error:
            failures[int(step)] = error  # TensorFlow passes on only the error's text
            raise

    def fetch_in_graph(step):
        return tf.numpy_function(fetch, [step], (tf.uint8, tf.int32), stateful=False)

    with ThreadPoolExecutor(hosts.cores(), thread_name_prefix="decode") as pool:
        # Two batches at a time, so that no core waits for the last images of a batch.
        dataset = tf.data.Dataset.range(start, stop).map(fetch_in_graph, num_parallel_calls=2).prefetch(1)
        options = tf.data.Options()
        options.autotune.enabled = False  # there is nothing to tune, and the thread of autotune ends slowly
        iterator = dataset.with_options(options).as_numpy_iterator()
        for step in range(start, stop):
            try:
                batch = next(iterator)
            except tf.errors.OpError as error:
                raise failures.get(step, error) from None
            yield batch


def _decode(source: Source, indices: np.ndarray, images: np.ndarray, pool: ThreadPoolExecutor):
    """Fills images (N, S, S, 3) uint8 with N examples, decoded in parallel; returns them and labels (N,) int32."""
    size, labels = images.shape[1], np.empty(len(indices), np.int32)
    firsts = iter(range(0, len(indices), _PART))  # the threads share this iterator
    failures = {}

    def fill():
        for first in firsts:
            part = slice(first, first + _PART)
            try:
                stored, labels[part] = source.read(indices[part])
                for k, image in enumerate(stored, first):
                    if isinstance(image, np.ndarray):
                        images[k] = image
                    else:
                        decode_square(image, size, images[k])
            except ImageError as error:
                failures[first] = UsageError(
                    f"{source.describe(indices[k])} does not decode as an image ({error}). Accepted are {ACCEPTED}. "
                    "Repair or remove it, then start again."
                )
                return
            except Exception as error:
                failures[first] = error
                return

    for done in [pool.submit(fill) for _ in range(hosts.cores())]:
        done.result()
    if failures:  # raise that of the first failed part: all parts before it are done
        raise failures[min(failures)]
    return images, labels


class _Memory:
    """Arrays for batches. An array is used again when nothing refers to it, because new memory costs time to map and
    to clear.
    """

    _ALIGNMENT = 64  # bytes; TensorFlow and JAX copy arrays with another alignment

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._size = shape, math.prod(shape)
        self._blocks, self._lock = [], threading.Lock()

    def take(self) -> np.ndarray:
        """Returns an uninitialized uint8 array of `shape` that nothing else uses."""
        with self._lock:
            for block in self._blocks:
                if sys.getrefcount(block) == 3:  # only the list, `block` and this call refer to it
                    break
            else:
                block = np.empty(self._size + self._ALIGNMENT, np.uint8)
                self._blocks.append(block)
            first = -block.ctypes.data % self._ALIGNMENT
            return block[first : first + self._size].reshape(self._shape)
