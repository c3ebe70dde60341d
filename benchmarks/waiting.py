"""What the loader costs training: steps on a prepared dataset beside steps on one batch that stays on the device.

    python benchmarks/waiting.py --config=configs/alexnet.py --config.dataset=NAME --config.data_dir=DIR

Takes a config as main.py does. Blocks of steps from the loader and blocks of steps on the constant batch follow each
other; both run the loop's own sequence: put, step, look at the metrics of the step before. A block's first steps are
not timed, and the loader reads on past its end, so that it neither starts nor idles within what is timed. Prints the
medians of images/s, their ratio block by block and the share of the time in which the device waited for a batch.
"""

import dataclasses
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax

from alexnet_jax import config as config_lib
from alexnet_jax import data
from alexnet_jax.training import setup
from alexnet_jax.training.outputs import Journal
from alexnet_jax.training.step import gradient_norm, init_state, train_step

BLOCKS = 7
SECONDS = 20  # of a block, about
WARM, MORE = 2, 8  # steps before and after those that are timed


class Silent:
    """Stands for the progress bar and the writer of a run."""

    def update(self, *_):
        """Shows nothing."""

    write_scalars = update


def block(run, state, batches, steps):
    """Takes WARM and then `steps` timed steps. Returns the state, seconds, and the share that was waited for data."""
    config = run.config
    journal = Journal(Silent(), Silent(), 10**9, config.batch_size)
    for step, batch in enumerate(journal.take(batches), 1):
        batch = run.recipe.network.placement.put(batch, config.batch_size)
        state, metrics = train_step(state, batch, run.statistics, recipe=run.recipe)
        metrics["gradient_norm"] = gradient_norm(metrics.pop("gradient_squares"))
        journal.add(step, metrics)
        if step == WARM:
            journal.catch_up()
            began, waited = time.monotonic(), journal.waited
        if step == WARM + steps:
            journal.catch_up()
            return state, time.monotonic() - began, (journal.waited - waited) / (time.monotonic() - began)


def main():
    """Reads flags, measures, prints."""
    data.hide_accelerators_from_tensorflow()
    config = config_lib.from_flags(sys.argv[1:])
    config.learning_rate = 1e-9  # the weights stay as they were drawn: after many steps on one batch others diverge
    with tempfile.TemporaryDirectory() as workdir:
        run = setup.set_up(config, Path(workdir))
        state = init_state(recipe=run.recipe)
        first = next(iter(dataclasses.replace(run, stop=1).batches_from(0)))
        constant = run.recipe.network.placement.put(first, config.batch_size)

        state, _, _ = block(run, state, itertools.repeat(constant), 2)  # compiles
        state, seconds, _ = block(run, state, itertools.repeat(constant), 3)
        steps = max(3, int(3 * SECONDS / seconds))
        rates, waits = {"constant": [], "loader": []}, []
        for k in range(BLOCKS):
            state, seconds, _ = block(run, state, itertools.repeat(constant), steps)
            rates["constant"].append(steps * config.batch_size / seconds)
            begin = k * (WARM + steps)
            batches = dataclasses.replace(run, stop=begin + WARM + steps + MORE).batches_from(begin)
            state, seconds, waited = block(run, state, batches, steps)
            list(batches)
            rates["loader"].append(steps * config.batch_size / seconds)
            waits.append(100 * waited)
        ratios = [a / b for a, b in zip(rates["loader"], rates["constant"], strict=True)]
        device = jax.devices()[0]
        print(f"{config.architecture} on {run.data.train.name}, batches of {config.batch_size}, {device.device_kind}")
        for name, values in rates.items():
            print(f"{name:8} {statistics.median(values):9.1f} images/s  ({min(values):.1f} to {max(values):.1f})")
        print(f"loader / constant {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        print(f"waiting for data {statistics.median(waits):.2f}%; {BLOCKS} blocks of {steps} steps each")


if __name__ == "__main__":
    main()
