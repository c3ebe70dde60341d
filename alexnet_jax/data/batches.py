"""Batches in an order that is a pure function of (seed, epoch), read from any step on."""

import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from alexnet_jax.config import UsageError
from alexnet_jax.data.pictures import decode_square
from alexnet_jax.data.sources import Source

Batch = dict[str, np.ndarray]
"""image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32, and in evaluation mask (N,) bool."""


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of an epoch: (examples,) int64, a permutation of 0..examples-1."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def examples_of_step(seed: int, step: int, batch_size: int, examples: int) -> np.ndarray:
    """The examples of one training step: (batch_size,) int64.

    Epochs follow each other without a gap: a batch may hold the end of one and the
    start of the next, and each example is seen exactly once an epoch.
    """
    positions = step * batch_size + np.arange(batch_size)
    epochs, places = np.divmod(positions, examples)
    chosen = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permutation(seed, int(epoch), examples)[places[here]]
    return chosen


def train_batches(
    source: Source, *, seed: int, batch_size: int, image_size: int, start: int, stop: int, rows: slice = slice(None)
) -> Iterator[Batch]:
    """The batches of the steps start..stop-1; nothing before `start` is read.

    `index` is the running number of an example in the whole run (modulo 2^32), the name
    by which its random numbers are drawn.

    Args:
      source: the training split.
      seed: of the order.
      batch_size: examples of a step, over all processes.
      image_size: side of the pictures in pixels.
      start, stop: steps.
      rows: the part of each batch that this process reads.

    Raises:
      UsageError: names the first picture that does not decode.
    """

    def examples(step):
        return examples_of_step(seed, step, batch_size, len(source))[rows]

    batches = _read(source, examples, start, stop, image_size)
    for step, (image, label) in zip(range(start, stop), batches, strict=True):
        index = (step * batch_size + np.arange(batch_size)[rows]) % 2**32
        yield {"image": image, "label": label, "index": index.astype(np.uint32)}


def eval_batches(source: Source, *, batch_size: int, image_size: int, rows: slice = slice(None)) -> Iterator[Batch]:
    """Each example exactly once, in stored order; the last batch is filled up and masked.

    Args: as in train_batches.
    """
    count = len(source)
    stop = -(-count // batch_size)

    def positions(step):
        return (step * batch_size + np.arange(batch_size))[rows]

    # The places past the end repeat the last example, and do not count.
    batches = _read(source, lambda step: np.minimum(positions(step), count - 1), 0, stop, image_size)
    for step, (image, label) in enumerate(batches):
        index = positions(step)
        yield {"image": image, "label": label, "index": index.astype(np.uint32), "mask": index < count}


def _read(source: Source, examples, start: int, stop: int, image_size: int):
    """Yields (image, label) arrays for the steps start..stop-1; `examples(step)` names the examples."""
    if start >= stop:
        return
    size = len(examples(start))

    def fetch(step):
        encoded, labels = source.read(examples(int(step)))
        return np.array(encoded, object), labels

    def fetch_in_graph(step):
        encoded, labels = tf.numpy_function(fetch, [step], (tf.string, tf.int32), stateful=False)
        return tf.ensure_shape(encoded, [size]), tf.ensure_shape(labels, [size])

    def decode(encoded, label):
        return decode_square(encoded, image_size), label

    dataset = tf.data.Dataset.range(start, stop).map(fetch_in_graph, num_parallel_calls=2)
    dataset = dataset.unbatch().map(decode, num_parallel_calls=tf.data.AUTOTUNE)  # deterministic order
    dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
    iterator = dataset.as_numpy_iterator()
    for step in range(start, stop):
        try:
            batch = next(iterator)
        except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
            raise _name_the_broken(source, examples(step), image_size) or error from error
        yield batch


def _name_the_broken(source: Source, indices, image_size: int) -> UsageError | None:
    """Decodes one by one, to say by its name which picture stopped the pipeline."""
    for index in indices:
        try:
            (encoded,), _ = source.read(np.array([index]))
            decode_square(encoded, image_size)
        except (tf.errors.OpError, OSError) as error:
            reason = str(getattr(error, "message", error)).splitlines()[0][:200]
            return UsageError(
                f"{source.describe(index)} does not decode as a picture ({reason}). Accepted are JPEG, PNG, GIF and "
                "BMP with 8 bits a channel. Repair or remove it, then start again."
            )
    return None
