"""The errors of any network on any data, over several seeds."""

from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial

CONFIG = "configs/quickstart.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 3


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped."""
    return runs.carry_out(setting, plan, write)


def plan(setting: Setting, _: Outcomes, networks: dict[str, float | None] | None = None) -> list[Trial]:
    """Every network with the first seed, then with the next, and so on.

    Args:
      setting: as in runs.
      networks: the paper's top-1 error in %, or None, by the network's name; default: the config's network.
    """
    return [
        setting.trial(name, {"architecture": name}, seed=seed)
        for seed in range(setting.seeds)
        for name in networks or {setting.config.architecture: None}
    ]


def write(setting: Setting, done: Outcomes, networks: dict[str, float | None] | None = None) -> str:
    """Writes the table of errors, and a plot; returns the table as text. Arguments as in plan."""
    rows, marks = [], []
    for name, paper in (networks or {setting.config.architecture: None}).items():
        outcomes, count = runs.results(done, [f"{name}-seed{seed}" for seed in range(setting.seeds)])
        for views in ("one_view", "ten_views"):
            errors = [o[views] for o in outcomes if views in o]
            if errors or views == "one_view":
                top1, top5 = ([e[kind] for e in errors] for kind in ("top1_error", "top5_error"))
                words, means = views.replace("_", " "), [tables.Mean.of(c) if c else "" for c in (top1, top5)]
                alone = " ".join(f"{error:.2f}" for error in top1)
                rows.append([name, words, "" if paper is None else paper, count, *means, alone])
            if errors:
                marks.append(tables.Mark(f"{name}, {words}", means[0], paper))
    tables.plot(setting.folder / "table.png", "top-1 error, %", marks)
    header = ["network", "tested by", "paper: top-1", "seeds", "top-1", "top-5", "top-1 of each seed"]
    below = "Errors in %: the mean over seeds ± its standard error.\n"
    return tables.write(setting.folder / "table", header, rows, below)
