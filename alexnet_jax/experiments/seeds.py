"""Any network on any data, over several seeds: its errors."""

import numpy as np

from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial

CONFIG = "configs/quickstart.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 3
NETWORKS = {"": None}
"""What the architecture's name ends in, and the paper's top-1 error in %."""


def run(setting: Setting) -> str | None:
    """Carries the experiment out; the table as text, None if it was stopped."""
    return runs.carry_out(setting, plan, write)


def plan(setting: Setting, _: Outcomes, endings=NETWORKS) -> list[Trial]:
    """Every network with the first seed, then with the next."""
    architecture = setting.config.architecture
    return [
        setting.trial(architecture + ending, {"architecture": architecture + ending}, seed=seed)
        for seed in range(setting.seeds)
        for ending in endings
    ]


def write(setting: Setting, done: Outcomes, endings=NETWORKS) -> str:
    """Writes the table of errors; gives it as text."""
    rows = []
    for ending, paper in endings.items():
        name = setting.config.architecture + ending
        outcomes = [done[f"{name}-seed{seed}"] for seed in range(setting.seeds) if f"{name}-seed{seed}" in done]
        for views in ("one_view", "ten_views"):
            errors = np.reshape(
                [(o[views]["top1_error"], o[views]["top5_error"]) for o in outcomes if views in o], (-1, 2)
            )
            if len(errors):
                means = [tables.mean_and_error(column) for column in errors.T]
                alone = " ".join(f"{error:.2f}" for error in errors[:, 0])
                rows.append([name, views.replace("_", " "), "" if paper is None else paper, len(errors), *means, alone])
    header = ["network", "tested by", "paper: top-1", "seeds", "top-1", "top-5", "top-1 of each seed"]
    return tables.write(
        setting.folder / "table", header, rows, "Errors in %: the mean over seeds ± its standard error.\n"
    )
