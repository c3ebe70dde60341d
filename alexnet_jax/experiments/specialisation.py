"""Figure 3's claim, over seeds: one tower learns colours and the other does not, in every run (paper, section 6.1)."""

import numpy as np

from alexnet_jax import architectures, convert
from alexnet_jax.experiments import runs, seeds, tables
from alexnet_jax.experiments.runs import Outcomes, Setting
from alexnet_jax.report import kernels

CONFIG = "configs/alexnet.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 5


def run(setting: Setting) -> str | None:
    """Carries the experiment out; the table as text, None if it was stopped."""
    return runs.carry_out(setting, seeds.plan, write)


def write(setting: Setting, done: Outcomes) -> str:
    """Writes the table of colour shares and specialisation (report/kernels.py), and Figure 3 of each run; as text."""
    rows, scores = [], []
    for trial in seeds.plan(setting, done):
        if trial.name in done and "diverged" not in done[trial.name]:
            weights = convert.read(setting.folder / trial.name)
            kernels.make(weights, setting.folder / trial.name)
            first = weights.params[architectures.weighted(weights.architecture)[0]]["kernel"]  # (T, h, w, 3, n)
            towers = np.moveaxis(first, -1, 1)
            scores.append(kernels.specialisation(towers))
            shares = " ".join(f"{kernels.colour_share(tower):.3f}" for tower in towers)
            by_chance = kernels.specialisation(np.random.default_rng(0).normal(size=towers.shape))
            rows.append([trial.name, shares, f"{by_chance:.3f}", f"{scores[-1]:.3f}"])
    below = f"specialisation: {tables.mean_and_error(scores, 3)} over {len(scores)} runs\n" if scores else ""
    header = ["run", "colour shares of the towers", "specialisation by chance", "specialisation"]
    return tables.write(setting.folder / "table", header, rows, below)
