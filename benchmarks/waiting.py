"""What the loader costs training: steps on a prepared dataset beside steps on one batch that stays on the device.

    python benchmarks/waiting.py --config=configs/alexnet.py --config.dataset=NAME --config.data_dir=DIR

Takes a config as main.py does, and --seconds, about how long it may take in all. Blocks of steps from the loader and
blocks of steps on the constant batch follow each other; both run the loop's own sequence: put, step, look at the
metrics of the step before. A block's first steps are not timed, and the loader reads on past its end, so that it
neither starts nor idles within what is timed. Prints the medians of images/s, their ratio block by block and the
share of the time in which the device waited for a batch.
"""

import argparse
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

import shared

from alexnet_jax import config as config_lib
from alexnet_jax import data
from alexnet_jax.training import setup
from alexnet_jax.training.outputs import Journal
from alexnet_jax.training.step import gradient_norm, init_state, train_step

BLOCKS = 7
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False  # the other flags are the config's
    parser.add_argument("--seconds", type=float, default=400, help="about this long; shorter blocks on a slow machine")
    options, flags = parser.parse_known_args()
    end = shared.end_after(options.seconds)
    data.hide_accelerators_from_tensorflow()
    config = config_lib.from_flags(flags)
    config.learning_rate = 1e-9  # the weights stay as they were drawn: after many steps on one batch others diverge
    header = shared.machine()
    with tempfile.TemporaryDirectory() as workdir:
        run = setup.set_up(config, Path(workdir))
        state = init_state(recipe=run.recipe)
        first = next(iter(dataclasses.replace(run, stop=1).batches_from(0)))
        constant = run.recipe.network.placement.put(first, config.batch_size)

        shared.say("compiling")
        state, _, _ = block(run, state, itertools.repeat(constant), 2)
        state, seconds, _ = block(run, state, itertools.repeat(constant), 3)
        # A block of the loader's takes WARM + MORE steps besides, one on the constant batch WARM.
        fits = (end - time.perf_counter()) / (2 * BLOCKS) / (seconds / 3)
        steps = max(3, int(fits) - WARM - MORE // 2)
        rates, waits = {"constant": [], "loader": []}, []
        for k in shared.rounds(BLOCKS, end):
            shared.say(f"blocks {k + 1} of {BLOCKS}, {steps} steps each")
            state, seconds, _ = block(run, state, itertools.repeat(constant), steps)
            rates["constant"].append(steps * config.batch_size / seconds)
            begin = k * (WARM + steps)
            batches = dataclasses.replace(run, stop=begin + WARM + steps + MORE).batches_from(begin)
            state, seconds, waited = block(run, state, batches, steps)
            list(batches)
            rates["loader"].append(steps * config.batch_size / seconds)
            waits.append(100 * waited)
    ratios = [a / b for a, b in zip(rates["loader"], rates["constant"], strict=True)]
    print(
        f"{config.architecture} on {run.data.train.name}, batches of {config.batch_size}, {len(ratios)} blocks of ",
        end="",
    )
    print(f"{steps} steps each; {header}\n")
    rows = [(f"{name}, images/s", "{:.1f}", values) for name, values in rates.items()]
    rows += [("loader / constant", "{:.3f}", ratios), ("waiting for data, %", "{:.2f}", waits)]
    cells = [[name, *(form.format(f(values)) for f in (statistics.median, min, max))] for name, form, values in rows]
    shared.print_table(["batches", "median", "lowest", "highest"], cells)


if __name__ == "__main__":
    main()
