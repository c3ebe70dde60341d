"""Where the loop's batches come from: read while the steps are taken, or a small training set that is on the devices.

A set on the devices (config.data_on_device) is decoded once, before the first step. After that the host sends only the
numbers of the images of each step, and on accelerators one program takes several steps. The batches are the same.
"""

import contextlib
import dataclasses
import math
import platform

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from alexnet_jax import hosts
from alexnet_jax.data.batches import eval_batches
from alexnet_jax.errors import UsageError
from alexnet_jax.training.setup import Run
from alexnet_jax.training.step import Examples, take, train_step, train_steps

SHARE = 1 / 4  # of the free memory of a device, and of the host, which the images may take
AT_ONCE = {"cpu": 1}  # steps of one program; in a loop, XLA's CPU compiler makes weight gradients 40 times slower
AT_ONCE_ELSEWHERE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class FromHost:
    """Batches that the host reads and decodes while the devices work."""

    run: Run
    start: int

    def __iter__(self):
        """Yields the number of the step after which the state is the next one, and what `advance` takes."""
        return enumerate(self.run.batches_from(self.start), self.start + 1)

    def advance(self, state, batch):
        """The state after the step of a batch, and the step's metrics."""
        batch = self.run.recipe.network.placement.put(batch, self.run.config.batch_size)
        return train_step(state, batch, self.run.statistics, recipe=self.run.recipe)


@dataclasses.dataclass(frozen=True, eq=False)
class OnDevice:
    """Batches from a training set that is on the devices; methods as in FromHost, but for one or several steps."""

    run: Run
    start: int
    examples: Examples

    def __iter__(self):
        run, size, step = self.run, self.run.config.batch_size, self.start
        while step < run.stop:
            steps = range(step, step + self._at_once(step))
            rows = np.stack([run.order.of_step(s, size) for s in steps])
            index = np.arange(step * size, steps.stop * size).reshape(rows.shape) % 2**32
            step = steps.stop
            yield step, {"row": rows.astype(np.int32), "index": index.astype(np.uint32)}

    def advance(self, state, chosen):
        """As in FromHost; metrics of several steps have these steps as their first axis."""
        recipe, placement = self.run.recipe, self.run.recipe.network.placement
        if len(chosen["row"]) == 1:
            chosen = {name: placement.put_whole(array[0], placement.batch) for name, array in chosen.items()}
            batch = take(self.examples, chosen, placement=placement)
            return train_step(state, batch, self.run.statistics, recipe=recipe)
        spec = P(None, placement.batch_axes)
        chosen = {name: placement.put_whole(array, spec) for name, array in chosen.items()}
        return train_steps(state, self.examples, chosen, self.run.statistics, recipe=recipe)

    def _at_once(self, step):
        """The number of steps until the host must look: a fixed number if nothing is due before its last step, or 1."""
        config, most = self.run.config, AT_ONCE.get(jax.default_backend(), AT_ONCE_ELSEWHERE)
        if config.profile or step + most > self.run.stop:
            return 1
        between = range(step + 1, step + most)
        return 1 if any(self.run.evaluates(s) or s % config.checkpoint_every_steps == 0 for s in between) else most


def feed(run: Run, start: int) -> FromHost | OnDevice:
    """The batches of the steps after `start`.

    Raises:
      UsageError: on all processes, if config.data_on_device asks for more than the memory of a device, or of the host.
    """
    stays, why_not = choose(run, start)
    if why_not:
        hosts.say(why_not)
    if not stays:
        return FromHost(run, start)
    images, labels = hosts.together(lambda: decoded(run.data.train, run.config.image_size))
    placement = run.recipe.network.placement
    return OnDevice(run, start, Examples(placement.put_whole(images, P()), placement.put_whole(labels, P())))


def choose(run: Run, start: int) -> tuple[bool, str]:
    """Whether the training set will be on the devices, for a run that continues after step `start`.

    With "auto" it is if the rest of the run sees each image at least once, and the images take at most SHARE of the
    free memory of each device and of the host, which decodes them. All processes choose alike.

    Returns:
      The choice, and a sentence if the set is too large for "auto".

    Raises:
      UsageError: as `feed`.
    """
    choice, examples = run.config.data_on_device, len(run.data.train)
    seen = (run.stop - start) * run.config.batch_size
    if choice == "never" or seen <= 0 or (choice == "auto" and seen < examples):
        return False, ""
    together = hosts.gather(platform.node()).count(platform.node())  # processes on this host
    free = min(map(float, hosts.gather(str(free_memory(together)))))
    needed = examples * run.config.image_size**2 * 3
    if needed <= (SHARE if choice == "auto" else 1) * free:
        return True, ""
    words = f"The decoded training images take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free for them"
    if choice == "always":
        raise UsageError(f"{words}. Set --config.data_on_device=auto or never: they are then read in each epoch.")
    return False, f"{words}: they are read and decoded in each epoch."


def free_memory(together: int = 1) -> float:
    """Bytes for a copy of the images on each device of this process, and for one on the host; infinite if not known.

    Args:
      together: number of processes that share the memory of the host.
    """
    devices, host = jax.local_devices(), (hosts.free_memory() or math.inf) / together
    if devices[0].platform == "cpu":
        return host / len(devices)
    found = [device.memory_stats() or {} for device in devices]
    return min(host, *(stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0) for stats in found))


def decoded(source, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images (E, S, S, 3) uint8 and labels (E,) int32 of a split; errors as in batches.train_batches."""
    count = len(source)
    images, labels = np.empty((count, image_size, image_size, 3), np.uint8), np.empty(count, np.int32)
    batches = eval_batches(source, batch_size=min(64, count), image_size=image_size)
    with (
        contextlib.closing(batches),
        tqdm(total=count, desc=f"Decoding {source.name}", unit=" images", mininterval=1) as bar,
    ):
        for batch in batches:
            kept = batch["mask"]
            images[batch["index"][kept]], labels[batch["index"][kept]] = batch["image"][kept], batch["label"][kept]
            bar.update(int(kept.sum()))
    return images, labels
