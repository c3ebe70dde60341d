"""The cost of leaving out each of the paper's ideas (sections 3.1 to 3.5, 4.1, 4.2, 5 and 7).

It works for any network and any data. If the input of a pool has an even number of pixels a side, a pool without
overlap gives more pixels than the paper's pool, and the next layers have larger inputs. In PAPER, both give as many.
"""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict
from scipy import optimize, stats

from alexnet_jax import config as config_lib
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial
from alexnet_jax.network import networks

CONFIG = "configs/alexnet.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One idea that is left out.

    Attributes:
      words: its name in the table.
      change: name of the change in networks.CHANGES, or "".
      fields: dotted names of the config fields that change, with their new values.
      paper: the cost that the paper gives, in percentage points of top-1 and top-5 error; None if it gives no number.
      claimed: whether the paper says, without a number, that it costs something: sections 4.1 (crops and flips), 4.2
        (dropout) and 5 (weight decay; the paper speaks of the training error).
    """

    words: str
    change: str = ""
    fields: tuple[tuple[str, object], ...] = ()
    paper: tuple[float | None, float | None] = (None, None)
    claimed: bool = False

    def says(self) -> str:
        """The paper's costs as text; "" if it claims none."""
        numbers = [f"{number:.1f}" for number in self.paper if number is not None]
        return " / ".join(numbers) or ("above 0" if self.claimed else "")


WHOLE = "whole"
MIDDLE = (2.0, None)  # "about 2%" for any of the middle convolutions (section 7)
NO_CROPS, NO_FLIPS = ("augment.crop", False), ("augment.flip", False)
ROWS = {
    WHOLE: Row("nothing"),
    "tanh": Row("ReLU → tanh", "TANH"),
    "no_lrn": Row("normalization", "NO_LRN", paper=(1.4, 1.2)),
    "no_overlap": Row("overlap of pools", "NO_OVERLAP", paper=(0.4, 0.3)),
    "one_gpu": Row("second tower", "ONE_GPU", paper=(1.7, 1.2)),
    "one_column": Row("two towers → one column", "ONE_COLUMN"),
    "no_cross": Row("conv3's sight of both towers", "NO_CROSS"),
    "no_colors": Row("colour jitter", fields=(("augment.pca_std", 0.0),), paper=(1.0, None)),
    "no_crops": Row("crops", fields=(NO_CROPS,)),
    "no_flips": Row("flips", fields=(NO_FLIPS,)),
    "no_crops_flips": Row("crops and flips", fields=(NO_CROPS, NO_FLIPS), claimed=True),
    "no_dropout": Row("dropout", "NO_DROPOUT", claimed=True),
    "no_decay": Row("weight decay", fields=(("weight_decay", 0.0), ("weight_decays", ())), claimed=True),
    **{f"no_{name}": Row(name, f"NO_{name.upper()}", paper=MIDDLE) for name in ("conv2", "conv3", "conv4", "conv5")},
    "no_fc6": Row("fc6", "NO_FC6"),
    "bias_0": Row("biases above 0 at first", "BIAS_0"),
    "std_half": Row("initial std → half of it", "STD_HALF"),
    "std_double": Row("initial std → twice that", "STD_DOUBLE"),
    "decoupled": Row("weight decay: paper's rule → decoupled", fields=(("update_rule", "decoupled"),)),
    "paper_rule": Row("weight decay: decoupled → paper's rule", fields=(("update_rule", "paper"),)),
}
"""The rows by the names of their runs, in the order of the table."""
TEN_VIEWS = Row("all views but the central", paper=(39.0 - 37.5, 18.3 - 17.0))  # ILSVRC-2010, table 1, section 4.1
LEVEL = 0.05
POWER = 0.8


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped."""
    return runs.carry_out(setting, plan, write)


def applies(name: str, config: ConfigDict) -> bool:
    """Whether this row changes the run of a config."""
    row, flat = ROWS[name], config_lib.flatten(config)
    architecture = architecture_of(row, config)
    decays = config.weight_decay > 0 or any(decay > 0 for _, decay in config.weight_decays)
    if name in ("decoupled", "paper_rule"):  # only the form of weight decay that the config does not use
        other = {"decoupled": "paper", "paper_rule": "decoupled"}[name]
        return config.update_rule == other and decays
    if name == "no_decay":
        return decays
    if name == "one_gpu" and networks.named(config.architecture)[0].towers == 1:
        return False
    if row.change and networks.exists(architecture):
        return networks.named(architecture) != networks.named(config.architecture)
    return name == WHOLE or (bool(row.fields) and all(flat[field] != value for field, value in row.fields))


def architecture_of(row: Row, config: ConfigDict) -> str:
    """The name of a row's network."""
    return f"{config.architecture}_{row.change}" if row.change else config.architecture


def plan(setting: Setting, _: Outcomes) -> list[Trial]:
    """All rows with the first seed, then all rows with the next, and so on."""
    return [
        setting.trial(name, {"architecture": architecture_of(row, setting.config), **dict(row.fields)}, seed=seed)
        for seed in range(setting.seeds)
        for name, row in ROWS.items()
        if applies(name, setting.config)
    ]


def write(setting: Setting, done: Outcomes) -> str:
    """Writes the table of the costs, and a plot; returns the table as text."""
    most = "ten_views" if setting.config.views > 1 else "one_view"
    whole, _ = _errors(setting, done, WHOLE, most)
    rows, marks = [], []
    for name, row in ROWS.items():
        errors, count = _errors(setting, done, name, most)
        asked = not setting.only or name in setting.only
        if applies(name, setting.config) and (asked or count != "0"):
            rows.append(_row(row, count, errors, None if name == WHOLE else whole))
            if name != WHOLE and len(errors) and len(whole):
                marks.append(tables.Mark(row.words, _cost(errors, whole)[0], row.paper[0]))
    if most == "ten_views":
        errors, count = _errors(setting, done, WHOLE, "one_view")
        rows.append(_row(TEN_VIEWS, count, errors, whole, paired=True))
    tables.plot(setting.folder / "table.png", "costs, in percentage points of top-1 error", marks)
    header = ["left out", "paper: costs", "seeds", "top-1", "costs top-1", "visible from", "top-5", "costs top-5"]
    header.append("beside the paper")
    return tables.write(setting.folder / "table", header, rows, BELOW)


BELOW = f"""Errors in %, costs in percentage points: means over seeds ± their standard errors. The paper's costs are
above 0. A cost here "agrees" if it is above 0 and "contradicts" if it is below 0, by a t-test at {100 * LEVEL:g}%. If a
cost is really 0, the test distinguishes it from 0 by chance in one of twenty cases. If a cost is really as large as the
number under "visible from", the test distinguishes it from 0 in {100 * POWER:g} of 100 cases.
"""


def _errors(setting, done, name, views):
    """(n, 2) top-1 and top-5 errors of a row's finished seeds; and their number, as text."""
    outcomes, count = runs.results(done, [f"{name}-seed{seed}" for seed in range(setting.seeds)])
    return np.reshape([(o[views]["top1_error"], o[views]["top5_error"]) for o in outcomes], (-1, 2)), count


def _cost(errors, whole, paired=False):
    """The cost in top-1 and in top-5 error."""
    if paired:
        return [tables.Mean.of(column, "+.2f") for column in (errors - whole).T]
    means = [[tables.Mean.of(column) for column in group.T] for group in (errors, whole)]
    return [tables.Mean(a.mean - b.mean, math.hypot(a.error, b.error), "+.2f") for a, b in zip(*means, strict=True)]


def _row(row, count, errors, whole, paired=False):
    if not len(errors):
        return [row.words, row.says(), count, "", "", "", "", "", ""]
    top1, top5 = (tables.Mean.of(column) for column in errors.T)
    if whole is None or not len(whole):
        return [row.words, row.says(), count, top1, "", "", top5, "", ""]
    costs = _cost(errors, whole, paired)
    beside = verdict(errors[:, 0], whole[:, 0], paired) if row.says() else ""
    visible = visible_from(errors[:, 0], whole[:, 0], paired)
    visible = "" if math.isnan(visible) else f"{visible:.1f}"
    return [row.words, row.says(), count, top1, costs[0], visible, top5, costs[1], beside]


def verdict(errors: np.ndarray, whole: np.ndarray, paired: bool = False) -> str:
    """Compares a cost with the paper's, which is above 0: by Student's t-test.

    It takes the spread of the seeds as equal in both groups: few seeds cannot tell two spreads.

    Args:
      errors, whole: (n,) and (m,) errors of the seeds without the idea and with it.
      paired: whether errors with the same index are of the same run.

    Returns:
      "agrees", "contradicts" or "not distinguished from 0"; "" if there are fewer than two seeds.
    """
    if min(len(errors), len(whole)) < 2:
        return ""
    cost, error, freedom = _difference(errors, whole, paired)
    equal = error < 1e-9  # all values of a group are equal
    p = float(abs(cost) < 1e-9) if equal else 2 * stats.t.sf(abs(cost) / error, freedom)
    if p >= LEVEL:
        return "not distinguished from 0"
    return "agrees" if cost > 0 else "contradicts"


def visible_from(errors: np.ndarray, whole: np.ndarray, paired: bool = False) -> float:
    """The cost that the test of `verdict` distinguishes from 0 with a probability of POWER; arguments as there.

    The spread that the seeds show is taken as the true one. nan if there are fewer than two seeds.
    """
    if min(len(errors), len(whole)) < 2:
        return math.nan
    _, error, freedom = _difference(errors, whole, paired)
    limit = stats.t.isf(LEVEL / 2, freedom)
    # With a true cost of c standard errors, the test's t has the noncentral t-distribution.
    c = optimize.brentq(lambda c: stats.nct.sf(limit, freedom, c) - POWER, 0, 10 * limit)
    return error * c


def _difference(errors, whole, paired):
    """The difference of the means, its standard error, and the degrees of freedom."""
    if paired:
        return (errors - whole).mean(), stats.sem(errors - whole), len(errors) - 1
    freedom = len(errors) + len(whole) - 2
    variance = sum(((group - group.mean()) ** 2).sum() for group in (errors, whole)) / freedom
    return errors.mean() - whole.mean(), math.sqrt(variance * (1 / len(errors) + 1 / len(whole))), freedom
