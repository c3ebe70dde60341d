"""The claim of Figure 3, over seeds: in every run one tower learns colours, the other does not (paper, section 6.1)."""

import numpy as np

from alexnet_jax import convert
from alexnet_jax.errors import UsageError
from alexnet_jax.experiments import runs, seeds, tables
from alexnet_jax.experiments.runs import Outcomes, Setting
from alexnet_jax.inspection.report import kernels
from alexnet_jax.network import networks

CONFIG = "configs/alexnet.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 5


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped.

    Raises:
      UsageError: if the network has one tower, or sees no colours.
    """
    first = networks.named(setting.config.architecture)[0]
    if first.towers < 2 or first.channels != 3:
        raise UsageError(
            f"config.architecture is {setting.config.architecture}, with {first.towers} towers and {first.channels} "
            "channels; accepted are at least 2 towers and 3 channels. Give --config.architecture=PAPER, or QUICKSTART."
        )
    return runs.carry_out(setting, seeds.plan, write)


def write(setting: Setting, done: Outcomes) -> str:
    """Writes the table of colour shares and specialisation (report/kernels.py), a plot, and Figure 3 of each run."""
    rows, scores, by_chance, grey = [], [], None, False
    for trial in seeds.plan(setting, done):
        if trial.name in done and "diverged" in done[trial.name]:
            rows.append([trial.name, "diverged", "", ""])
        elif trial.name in done:
            weights = convert.read(setting.folder / trial.name)
            figure3 = kernels.make(weights, setting.folder / trial.name)
            by_chance, grey = by_chance or _by_chance(weights.params[figure3.layer]["kernel"]), figure3.grey_data
            shares = " ".join(f"{tower.colour:.3f}" for tower in figure3.towers)
            scores.append(figure3.specialisation)
            rows.append([trial.name, shares, by_chance, f"{scores[-1]:.3f}"])
    below = ""
    if scores:
        marks = [tables.Mark("random kernels", by_chance), tables.Mark("trained", tables.Mean.of(scores, ".3f"))]
        tables.plot(setting.folder / "table.png", "specialisation, from 0 to 1", marks)
        below = f"specialisation: {tables.Mean.of(scores, '.3f')} over {len(scores)} runs\n"
        below += (
            "The images are grey: the colours of the kernels come from their initial random weights.\n" if grey else ""
        )
    header = ["run", "colour shares of the towers", "specialisation of random kernels", "specialisation"]
    return tables.write(setting.folder / "table", header, rows, below)


def _by_chance(kernel, draws=200):
    """The mean specialisation of random kernels with the shape of a first layer, (T, h, w, 3, n)."""
    draw, (towers, height, width, channels, count) = np.random.default_rng(0), kernel.shape
    scores = [kernels.specialisation(draw.normal(size=(towers, count, height, width, channels))) for _ in range(draws)]
    return tables.Mean(float(np.mean(scores)), form=".3f")
