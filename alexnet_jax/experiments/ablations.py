"""The paper's ideas, each left out in turn (sections 3.1 to 3.5, 4.1, 4.2, 5 and 7): what that costs.

For any network and any data. Standard errors are those of the spread over seeds.
"""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import networks
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial
from alexnet_jax.report import figures

CONFIG = "configs/alexnet.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """What is left out.

    Attributes:
      words: for the table.
      change: of networks.CHANGES, or "".
      fields: of the config, by dotted names, with their new values.
      paper: what the paper says it costs, in percentage points of top-1 and top-5 error; None where it gives no number.
    """

    words: str
    change: str = ""
    fields: tuple[tuple[str, object], ...] = ()
    paper: tuple[float | None, float | None] = (None, None)


WHOLE = "whole"
MIDDLE = (2.0, None)  # "about 2%" for any of the middle layers (section 7)
NO_CROPS, NO_FLIPS = ("augment.crop", False), ("augment.flip", False)
ROWS = {
    WHOLE: Row("nothing"),
    "tanh": Row("ReLU: tanh", "TANH"),
    "no_lrn": Row("normalization", "NO_LRN", paper=(1.4, 1.2)),
    "no_overlap": Row("pools overlap", "NO_OVERLAP", paper=(0.4, 0.3)),
    "one_gpu": Row("second tower", "ONE_GPU", paper=(1.7, 1.2)),
    "one_column": Row("two towers: one column", "ONE_COLUMN"),
    "no_cross": Row("conv3 sees both towers", "NO_CROSS"),
    "no_colors": Row("colour jitter", fields=(("augment.pca_std", 0.0),), paper=(1.0, None)),
    "no_crops": Row("crops", fields=(NO_CROPS,)),
    "no_flips": Row("flips", fields=(NO_FLIPS,)),
    "no_crops_flips": Row("crops and flips", fields=(NO_CROPS, NO_FLIPS)),
    "no_dropout": Row("dropout", "NO_DROPOUT"),
    "no_decay": Row("weight decay", fields=(("weight_decay", 0.0),)),
    **{f"no_{name}": Row(name, f"NO_{name.upper()}", paper=MIDDLE) for name in ("conv2", "conv3", "conv4", "conv5")},
    "no_fc6": Row("fc6", "NO_FC6", paper=MIDDLE),
    "bias_0": Row("biases above 0 at first", "BIAS_0"),
    "std_half": Row("std at first: half", "STD_HALF"),
    "std_double": Row("std at first: double", "STD_DOUBLE"),
    "decoupled": Row("decay in the velocity: beside", fields=(("update_rule", "decoupled"),)),
    "paper_rule": Row("decay beside the velocity: in", fields=(("update_rule", "paper"),)),
}
"""By the name of its runs, in the order of the table."""
TEN_VIEWS = (39.0 - 37.5, 18.3 - 17.0)  # ILSVRC-2010, table 1 and section 4.1


def run(setting: Setting) -> str | None:
    """Carries the experiment out; the table as text, None if it was stopped."""
    return runs.carry_out(setting, plan, write)


def applies(name: str, config: ConfigDict) -> bool:
    """Whether leaving out that row makes another run of a config."""
    row = ROWS[name]
    changed = architecture_of(row, config)
    if not networks.exists(changed):
        return False
    values = config.to_dict()
    fields = any(_value(values, field) != value for field, value in row.fields)
    return name == WHOLE or fields or networks.named(changed) != networks.named(config.architecture)


def architecture_of(row: Row, config: ConfigDict) -> str:
    """The name of a row's network."""
    return f"{config.architecture}_{row.change}" if row.change else config.architecture


def _value(values, field):
    for part in field.split("."):
        values = values[part]
    return values


def plan(setting: Setting, _: Outcomes) -> list[Trial]:
    """All rows with the first seed, then with the next."""
    return [
        setting.trial(name, {"architecture": architecture_of(row, setting.config), **dict(row.fields)}, seed=seed)
        for seed in range(setting.seeds)
        for name, row in ROWS.items()
        if applies(name, setting.config)
    ]


def write(setting: Setting, done: Outcomes) -> str:
    """Writes the table of what each idea is worth, and a plot of it; gives the table as text."""
    most = "ten_views" if setting.config.views > 1 else "one_view"
    whole = _errors(setting, done, WHOLE, most)
    rows, bars = [], []
    for name, row in ROWS.items():
        if applies(name, setting.config):
            errors = _errors(setting, done, name, most)
            rows.append(_row(row.words, row.paper, errors, None if name == WHOLE else whole))
            if name != WHOLE and len(errors) and len(whole):
                bars.append((row, *_cost(errors, whole)))
    if most == "ten_views":
        rows.append(_row("views but the central", TEN_VIEWS, _errors(setting, done, WHOLE, "one_view"), whole))
    if bars:
        figures.save_png(
            lambda figure: _draw(figure, bars), (6.4, 0.32 * len(bars) + 1.2), setting.folder / "costs.png"
        )
    header = ["left out", "paper: costs", "seeds", "top-1", "costs", "top-5", "costs", "beside the paper"]
    return tables.write(setting.folder / "table", header, rows, BELOW)


BELOW = """Errors in %, costs in percentage points: means over seeds ± their standard errors. All costs of the paper's
are above 0: "agrees" is a cost here that is above 0 by more than two standard errors, "contradicts" one that is below.
"""


def _errors(setting, done, name, views):
    """(n, 2) top-1 and top-5 errors of the seeds of a row that have ended."""
    outcomes = [done.get(f"{name}-seed{seed}", {}) for seed in range(setting.seeds)]
    return np.reshape([(o[views]["top1_error"], o[views]["top5_error"]) for o in outcomes if views in o], (-1, 2))


def _cost(errors, whole):
    """(2,) what it costs, top-1 and top-5, and (2,) the standard errors, nan where there are too few seeds."""
    spreads = [[tables.standard_error(column) for column in group.T] for group in (errors, whole)]
    return errors.mean(0) - whole.mean(0), np.hypot(*spreads)


def _row(words, paper, errors, whole):
    says = " / ".join(f"{number:.1f}" for number in paper if number is not None)
    if not len(errors):
        return [words, says, 0, "", "", "", "", ""]
    top1, top5 = (tables.mean_and_error(column) for column in errors.T)
    if whole is None or not len(whole):
        return [words, says, len(errors), top1, "", top5, "", ""]
    costs, spread = _cost(errors, whole)
    shown = [f"{c:+.2f}" + ("" if math.isnan(s) else f" ± {s:.2f}") for c, s in zip(costs, spread, strict=True)]
    return [words, says, len(errors), top1, shown[0], top5, shown[1], verdict(paper[0], costs[0], spread[0])]


def verdict(paper: float | None, cost: float, spread: float) -> str:
    """How a measured cost stands beside the paper's, which is above 0: by two standard errors, or not told apart."""
    if paper is None or math.isnan(spread):
        return ""
    if abs(cost) <= 2 * spread:
        return "not told apart from 0"
    return "agrees" if cost > 0 else "contradicts"


def _draw(figure, bars):
    axis = figure.subplots()
    axis.set(xlabel="costs, in percentage points of top-1 error", yticks=range(len(bars)))
    axis.set_yticklabels([row.words for row, _, _ in bars])
    axis.invert_yaxis()
    axis.axvline(0, color="C1", lw=0.8)
    axis.grid(axis="x")
    for y, (row, costs, spread) in enumerate(bars):
        axis.errorbar(
            costs[0], y, xerr=np.nan_to_num(2 * spread[0]), fmt="o", color="C0", label=None if y else "here, ± 2 s.e."
        )
        if row.paper[0] is not None:
            axis.plot(row.paper[0], y, marker="x", ls="", color="C1")
    axis.plot([], [], marker="x", ls="", color="C1", label="paper, on ImageNet")
    axis.legend()
