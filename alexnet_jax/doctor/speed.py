"""Images a second: of the loader alone, of the training step alone, and of both together as in a run."""

import dataclasses
import datetime
import time

import jax
from jax.sharding import PartitionSpec

from alexnet_jax.doctor.findings import Finding, Findings, ok, problem, warning
from alexnet_jax.errors import UsageError
from alexnet_jax.training import feed
from alexnet_jax.training.setup import Run
from alexnet_jax.training.step import init_state, train_step

SECONDS, BATCHES = 6.0, 200  # at most, for each of the three
WAIT = 0.03  # share of a step that may be spent waiting for images


@dataclasses.dataclass(frozen=True)
class Rates:
    """Images a second."""

    loader: float
    step: float
    together: float
    compiling: float  # seconds

    def lost(self, shared: bool) -> float:
        """The share of the time in which the network waits for images."""
        # On a CPU, loader and steps share the cores and slow each other down: their common rate does not show waiting.
        reached = self.loader if shared else min(self.loader, self.together)
        return max(0.0, 1 - reached / self.step)


def who_waits(run: Run) -> Findings:
    """Whether the device waits for the data, and how long the run will take."""
    try:
        on_device, _ = feed.choose(run, 0)
        rates = measure(run)
    except UsageError as error:
        yield problem("speed", f"not measured: {error}")
        return
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        yield problem(
            "speed",
            f"a step of {run.config.batch_size} images does not fit into the memory of the device "
            f"({str(error).splitlines()[0][:200]}). Set --config.accumulate=2 or more, or a smaller "
            "--config.batch_size.",
        )
        return
    if on_device:
        rates = dataclasses.replace(rates, together=rates.step)
        yield ok("speed", f"images/s: {rates.step:,.0f}; the training images are decoded once and stay on the devices")
    else:
        yield compare(rates, shared=jax.default_backend() == "cpu")
    yield duration(run, rates)


def compare(rates: Rates, *, shared: bool) -> Finding:
    """Whether the device waits for the data; `shared`: whether both use the same cores."""
    waits = rates.lost(shared)
    text = f"images/s: loader alone {rates.loader:,.0f}, step alone {rates.step:,.0f}, together {rates.together:,.0f}"
    text += " (they share the CPU's cores)" if shared else ""
    text += f"; the network waits for images {waits:.1%} of the time"
    if waits <= WAIT:
        return ok("speed", text)
    if rates.loader < rates.step:
        do = (
            "Prepare the data once, so that there is less to decode (python -m alexnet_jax prepare; nothing with "
            "--encoding=raw), or give the loader more CPU cores or a faster disk"
        )
    else:
        do = "The loader alone is fast enough: give it more CPU cores, or set a larger --config.batch_size"
    return warning("speed", f"{text}; accepted is {WAIT:.0%}. {do}.")


def duration(run: Run, rates: Rates) -> Finding:
    """How long the run will take."""
    seconds = run.stop * run.config.batch_size / rates.together
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    epochs = float(run.order.epochs(run.stop * run.config.batch_size))
    memory = f"; the step needed {peak / 2**30:.1f} GiB of a device's memory" if peak else ""
    return ok(
        "duration",
        f"about {datetime.timedelta(seconds=round(seconds))} for {run.stop:,} steps ({epochs:,.0f} epochs), without "
        f"evaluation; compiling took {rates.compiling:.0f} s{memory}",
    )


def measure(run: Run) -> Rates:
    """The three rates, each in a bounded time once the step is compiled.

    Args:
      run: with its statistics, which may be on the host.

    Raises:
      UsageError: names an image that cannot be read.
    """
    config, recipe = run.config, run.recipe
    statistics = jax.device_put(run.statistics, recipe.network.placement.sharding(PartitionSpec()))
    batch, loading = _load(run, 1)
    batch, loading = _load(run, _in_time(loading))
    began = time.monotonic()
    batch = recipe.network.placement.put(batch, config.batch_size)
    state, metrics = train_step(init_state(recipe=recipe), batch, statistics, recipe=recipe)
    jax.block_until_ready(metrics)
    compiling, began, steps = time.monotonic() - began, time.monotonic(), 0
    while not steps or (steps < BATCHES and time.monotonic() - began < SECONDS):
        state, metrics = train_step(state, batch, statistics, recipe=recipe)
        jax.block_until_ready(metrics)
        steps += 1
    stepping = (time.monotonic() - began) / steps
    together = _together(run, state, statistics, _in_time(loading + stepping))
    return Rates(*(config.batch_size / seconds for seconds in (loading, stepping, together)), compiling)


def _in_time(seconds_each):
    """The number of steps that fit into the time."""
    return int(min(max(2, SECONDS / seconds_each), BATCHES))


def _first_batches(run, count):
    # To the end: a loader that is stopped before its end warns.
    return dataclasses.replace(run, stop=count).batches_from(0)


def _load(run, count):
    """The last of some batches, and seconds for each."""
    began = time.monotonic()
    for last in _first_batches(run, count):
        batch = last
    return batch, (time.monotonic() - began) / count


def _together(run, state, statistics, count):
    """Seconds for each step taken as in the loop, which reads a step's metrics when the next step is running."""
    placement, pending = run.recipe.network.placement, {}
    for step, batch in enumerate(_first_batches(run, count)):
        if step == 1:  # neither the wait for the first batch nor the first step counts
            jax.block_until_ready(state)
            began = time.monotonic()
        batch = placement.put(batch, run.config.batch_size)
        state, metrics = train_step(state, batch, statistics, recipe=run.recipe)
        jax.device_get(pending)
        pending = metrics
    jax.block_until_ready(state)
    return (time.monotonic() - began) / (count - 1)
