"""Figure 1: epochs to a training error of 25% with ReLU and with tanh (paper, section 3.1).

Four layers, CIFAR-10, no regularization; each network has the learning rate with which it is fastest. Learning rates
are tried in factors of two, until the fastest is between two slower ones. A run ends after the epoch whose training
error is 25%, or when it is slower than a run with another learning rate.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from alexnet_jax.errors import UsageError
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial
from alexnet_jax.inspection.report import curves, figures

CONFIG = "configs/cifar10.py"
DEFAULTS = (
    "--config.num_epochs=60",  # at most
    "--config.plateau.drops=0",
    "--config.log_every_steps=39",  # an epoch has 391 steps
    "--config.report=false",
)
SEEDS = 2
GOAL = 25.0  # % training error
START = 0.004  # the first learning rate to try
MOST = 6  # give up after so many learning rates without success
NETWORKS = {"relu": "", "tanh": "_TANH"}  # endings of the architecture's name
PAPER = 6.0  # tanh takes so many times the epochs of ReLU


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped."""
    return runs.carry_out(setting, plan, write)


def plan(setting: Setting, done: Outcomes) -> list[Trial]:
    """The runs so far, for each network: all learning rates with the first seed, then the fastest with other seeds."""
    trials = []
    for network in NETWORKS:
        rates, best = search(network, setting.folder, done)
        trials += [_trial(setting, network, rate, 0) for rate in rates]
        if best:
            trials += [_trial(setting, network, best, seed) for seed in range(1, setting.seeds)]
    return trials


def search(network: str, folder: Path, done: Outcomes) -> tuple[list[float], float | None]:
    """The learning rates to try, in order; and the fastest, or None if it is not known yet."""
    rates = [START, START * 2]
    while True:
        names = [_name(network, rate, 0) for rate in rates]
        if not all(name in done for name in names):
            return rates, None
        steps = dict(zip(rates, (steps_to_goal(folder / name) for name in names), strict=True))
        best = min(rates, key=steps.get)
        if steps[best] == math.inf and len(rates) == MOST:
            return rates, None
        if steps[best] == math.inf or best == min(rates):
            rates.append(min(rates) / 2)
        elif best == max(rates):
            rates.append(max(rates) * 2)
        else:
            return rates, best


def steps_to_goal(workdir: Path) -> float:
    """The step at which a run's training error reached GOAL; infinity if it never did.

    The mean error of an epoch counts for the middle of the epoch; between two middles the error is interpolated.
    """
    before = None
    for step, error in errors_of_epochs(workdir):
        if error <= GOAL:
            if before is None:
                return step
            return float(np.interp(-GOAL, [-before[1], -error], [before[0], step]))
        before = step, error
    return math.inf


def errors_of_epochs(workdir: Path) -> list[tuple[float, float]]:
    """The step in the middle of each epoch that has ended, and the mean training error in % over it."""
    found, errors, begin = [], [], 0
    for line in curves.read(workdir / "metrics.jsonl"):
        if "train_error" in line:
            errors.append(line["train_error"])
        if "eval_top1_error" in line:  # at the end of an epoch
            if not errors:
                raise UsageError(
                    f"{workdir / 'metrics.jsonl'} has no training error in an epoch of {line['step'] - begin:g} steps. "
                    "Set --config.log_every_steps to a tenth of these steps, and give another --workdir."
                )
            found.append(((begin + line["step"]) / 2, float(np.mean(errors))))
            errors, begin = [], line["step"]
    return found


def _trial(setting, network, rate, seed):
    folder, name = setting.folder, _name(network, rate, seed)

    def until():
        others = runs.outcomes(folder).keys() if not seed else ()  # runs of the other seeds do not stop early
        soonest = min(
            (steps_to_goal(folder / other) for other in others if other.startswith(network)), default=math.inf
        )
        middle, error = errors_of_epochs(folder / name)[-1]
        return error <= GOAL or middle >= soonest

    changes = {"architecture": setting.config.architecture + NETWORKS[network], "learning_rate": rate}
    return setting.trial(f"{network}-rate{rate:g}", changes, seed=seed, until=until)


def _name(network, rate, seed):
    return f"{network}-rate{rate:g}-seed{seed}"


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A run in the figure and the table."""

    network: str
    rate: float
    seed: int
    chosen: bool  # whether its learning rate is the network's quickest
    epochs: list[float]
    errors: list[float]  # training errors in %, at these epochs
    reached: float  # the epoch of GOAL, or infinity


def write(setting: Setting, done: Outcomes) -> str:
    """Writes figure1.png, curves.csv and the table of all runs; returns the table as text."""
    folder, shown, rows = setting.folder, [], []
    for network in NETWORKS:
        rates, best = search(network, folder, done)
        for rate, seed in [(rate, 0) for rate in rates] + [(best, seed) for seed in range(1, setting.seeds) if best]:
            outcome = done.get(_name(network, rate, seed))
            if outcome is None or "diverged" in outcome:
                rows.append([network, f"{rate:g}", seed, "", "not run yet" if outcome is None else "diverged"])
                continue
            curve = _curve(folder, network, rate, seed, rate == best, outcome)
            shown.append(curve)
            reached = curve.reached < math.inf
            remark = "quickest rate" if curve.chosen else "" if reached else f"ended at epoch {outcome['epochs']:.0f}"
            rows.append([network, f"{rate:g}", seed, f"{curve.reached:.1f}" if reached else "", remark])
    figures.write_csv(
        folder / "curves.csv",
        ["network", "learning_rate", "seed", "epoch", "train_error"],
        [
            [curve.network, curve.rate, curve.seed, f"{epoch:.3f}", f"{error:.3f}"]
            for curve in shown
            for epoch, error in zip(curve.epochs, curve.errors, strict=True)
        ],
    )
    figures.save_png(lambda figure: _draw(figure, shown), (5.2, 4.2), folder / "figure1.png")
    header = ["network", "learning rate", "seed", f"epochs to {GOAL:g}% training error", "remark"]
    return tables.write(folder / "table", header, rows, _conclusion([curve for curve in shown if curve.chosen]))


def _curve(folder, network, rate, seed, chosen, outcome):
    per_step = outcome["epochs"] / outcome["steps"]
    workdir = folder / _name(network, rate, seed)
    lines = [line for line in curves.read(workdir / "metrics.jsonl") if "train_error" in line]
    epochs, errors = [line["step"] * per_step for line in lines], [line["train_error"] for line in lines]
    return _Curve(network, rate, seed, chosen, epochs, errors, steps_to_goal(workdir) * per_step)


def _conclusion(chosen):
    reached = {network: {c.seed: c.reached for c in chosen if c.network == network} for network in NETWORKS}
    lines = []
    for network, epochs in reached.items():
        late = sum(epoch == math.inf for epoch in epochs.values())
        mean = (
            tables.Mean.of([epoch for epoch in epochs.values() if epoch < math.inf], ".1f")
            if late < len(epochs)
            else ""
        )
        known = f"{mean} epochs" if mean else "the fastest learning rate is not known yet"
        lines.append(f"{network}: {known}" + (f"; {late} of {len(epochs)} seeds did not reach it" if late else ""))
    seeds = reached["relu"].keys() & reached["tanh"].keys()
    if seeds and all(reached[network][seed] < math.inf for network in reached for seed in seeds):
        ratios = [reached["tanh"][seed] / reached["relu"][seed] for seed in sorted(seeds)]
        means = [np.mean([reached[network][seed] for seed in seeds]) for network in ("tanh", "relu")]
        lines.append(
            f"tanh takes {means[0] / means[1]:.1f} times as many epochs as ReLU ({min(ratios):.1f} to "
            f"{max(ratios):.1f} times for single seeds). In the paper: {PAPER:g} times."
        )
    return "\n".join([*lines, ""])


def _draw(figure, shown):
    axis = figure.subplots()
    axis.set(xlabel="epochs", ylabel="training error rate", ylim=(0, 0.9))
    axis.grid(axis="y")
    axis.axhline(GOAL / 100, color="C2", ls=":", lw=1)
    told = set()
    for curve in sorted(shown, key=lambda curve: curve.chosen):
        label = f"{curve.network}, learning rate {curve.rate:g}" if curve.chosen else f"{curve.network}, others"
        axis.plot(
            curve.epochs,
            np.divide(curve.errors, 100),
            ls="-" if curve.network == "relu" else "--",
            **({"color": "C0", "lw": 1.6} if curve.chosen else {"color": "C2", "lw": 0.8}),
            label=None if label in told else label,
        )
        told.add(label)
    if shown:
        axis.legend()
