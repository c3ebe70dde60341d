"""Curves of loss, error and learning rate over a run, from its metrics.jsonl."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from alexnet_jax.files import read_metrics
from alexnet_jax.inspection.report import figures
from alexnet_jax.inspection.report.figures import Chart

COLUMNS = ("train_loss", "eval_loss", "train_error", "eval_top1_error", "eval_top5_error", "learning_rate")
SIZE = (5.2, 3.3)  # inches; letters can still be read on a phone


@dataclasses.dataclass(frozen=True)
class Curves:
    """The charts, the epochs at which the learning rate dropped, and the epoch at which the run left chance or None."""

    charts: list[Chart]
    drops: list[float]
    left_chance: float | None


def make(metrics: Path, epochs: Callable[[int], float], folder: Path) -> Curves | None:
    """Draws the curves, also as loss.png, error.png, rate.png and curves.csv; None if there are no metrics."""
    lines = read(metrics)
    if not lines:
        return None
    rows = [
        [line["step"], epochs(line["step"]), *(line.get(c, "") for c in COLUMNS)]
        for line in lines
        if line.keys() & set(COLUMNS)
    ]
    figures.write_csv(folder / "curves.csv", ["step", "epoch", *COLUMNS], rows)
    drops = [epochs(step) for step in drops_of(lines)]

    def curve(name):
        points = [(epochs(line["step"]), line[name]) for line in lines if name in line]
        return tuple(zip(*points, strict=True)) or ((), ())

    curves = {name: curve(name) for name in COLUMNS}
    left = next((epochs(line["step"]) for line in lines if "left_chance" in line), None)
    charts = [draw(curves, drops, left, folder) for draw in (_loss, _error, _rate)]
    return Curves(charts, drops, left)


def read(metrics: Path) -> list[dict]:
    """The lines of metrics.jsonl that are complete."""
    return [line for _, line in read_metrics(metrics)]


def drops_of(lines: list[dict]) -> list[int]:
    """The steps after which the learning rate was lower: if an evaluation lowered it, the step of that evaluation."""
    drops, before, evaluated = [], None, 0
    for line in lines:
        if "eval_top1_error" in line:
            evaluated = line["step"]
        if "learning_rate" in line:
            if before and line["learning_rate"] < 0.99 * before["learning_rate"]:
                drops.append(max(evaluated, before["step"]))
            before = line
    return drops


def _loss(curves, drops, left, folder):
    def draw(figure):
        axis = _axis(figure, "loss (nats)", drops, left)
        axis.plot(*curves["train_loss"], color="C1", lw=1, label="training")
        axis.plot(*curves["eval_loss"], color="C0", marker="o", ms=4, label="validation")
        axis.set_ylim(bottom=0)
        axis.legend()

    return figures.chart(draw, SIZE, "Loss in nats over the epochs, training and validation.", folder / "loss.png")


def _error(curves, drops, left, folder):
    def draw(figure):
        axis = _axis(figure, "error (%)", drops, left)
        axis.plot(*curves["train_error"], color="C2", lw=0.8, label="training")
        axis.plot(*curves["eval_top1_error"], color="C0", marker="o", ms=4, label="validation, top-1")
        axis.plot(*curves["eval_top5_error"], color="C0", marker="s", ms=4, ls="--", label="validation, top-5")
        axis.set_ylim(0, 100)
        axis.legend()

    alt = "Errors in % over the epochs: in training, and top-1 and top-5 in validation."
    return figures.chart(draw, SIZE, alt, folder / "error.png")


def _rate(curves, drops, left, folder):
    epochs, rates = curves["learning_rate"]
    above = [rate for rate in rates if rate > 0] or [1.0]

    def draw(figure):
        axis = _axis(figure, "learning rate (log scale)", drops, left)
        axis.plot(epochs, [rate or math.nan for rate in rates], color="C0", drawstyle="steps-pre")
        axis.set_yscale("log")
        axis.set_ylim(10 ** math.floor(math.log10(min(above)) - 0.1), 10 ** math.ceil(math.log10(max(above)) + 0.1))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda *_: "")

    return figures.chart(draw, SIZE, "Learning rate over the epochs, on a log scale.", folder / "rate.png")


def _axis(figure, label, drops, left):
    axis = figure.subplots()
    axis.set(xlabel="epoch", ylabel=label)
    axis.grid(axis="y")
    for k, epoch in enumerate(drops):
        axis.axvline(epoch, color="C2", ls=":", lw=1.2, label="" if k else "rate dropped")
    if left is not None:
        axis.axvline(left, color="C1", ls="--", lw=1, label="left chance")
    return axis
