"""Which classes are confused with which, and how often."""

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from alexnet_jax.inspection.report import figures
from alexnet_jax.inspection.report.figures import Chart

NUMBERED = 20  # the figure has names and numbers for at most so many classes
LISTED = 20  # rows of the page's tables; the files have all rows


@dataclasses.dataclass(frozen=True)
class Class:
    """A class: number of images, number and % of them classified wrongly, and the most frequent wrong prediction."""

    name: str
    images: int
    wrong: int
    percent: float
    taken_for: str


@dataclasses.dataclass(frozen=True)
class Confusion:
    """The chart; the classes, largest error first; the number of classes with images; the error of all images in %."""

    chart: Chart
    worst: list[Class]
    classes: int
    percent: float


def make(probabilities: np.ndarray, labels: np.ndarray, names: list[str], folder: Path) -> Confusion:
    """Counts confusions, and writes confusion.png, confusion.csv (only cells that are not 0) and classes.csv.

    Args:
      probabilities: (n, K).
      labels: (n,).
      names: names of the K classes.
      folder: for the files.
    """
    counts = np.zeros((len(names), len(names)), np.int64)  # true class, predicted class
    np.add.at(counts, (labels, probabilities.argmax(1)), 1)
    cells = [[names[i], names[j], counts[i, j]] for i, j in np.argwhere(counts)]
    figures.write_csv(folder / "confusion.csv", ["label", "taken_for", "images"], cells)
    classes = sorted(
        (_class(k, row, names) for k, row in enumerate(counts) if row.any()), key=lambda c: (-c.percent, -c.wrong)
    )
    figures.write_csv(
        folder / "classes.csv",
        ["class", "images", "wrong", "error_percent", "oftenest_taken_for"],
        [dataclasses.astuple(c) for c in classes],
    )
    side = 5.4 if len(names) <= 10 else 7
    chart = figures.chart(
        lambda figure: _draw(figure, counts, names),
        (side, side),
        "Confusion matrix: rows are true classes, columns are predicted classes; the numbers are in confusion.csv.",
        folder / "confusion.png",
    )
    return Confusion(chart, classes[:LISTED], len(classes), 100 * (1 - counts.trace() / counts.sum()))


def _class(k, row, names):
    others = np.where(np.arange(len(row)) == k, 0, row)
    wrong = int(others.sum())
    taken_for = names[others.argmax()] if wrong else ""
    return Class(names[k], int(row.sum()), wrong, 100 * wrong / int(row.sum()), taken_for)


def _draw(figure, counts, names):
    axis = figure.subplots()
    axis.spines[:].set_visible(True)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # of the images of a true class
    if len(names) > NUMBERED:  # dots, because a cell would be smaller than a pixel
        true, taken = np.nonzero(counts)
        axis.scatter(taken, true, s=9, lw=0, color="C0", alpha=0.2 + 0.8 * shares[true, taken], rasterized=True)
        axis.set(xlabel="predicted class (number)", ylabel="true class (number)", aspect="equal")
        axis.set(xlim=(-1, len(names)), ylim=(len(names), -1))
        return
    axis.set(xlabel="predicted class", ylabel="true class")
    ground = figure.get_facecolor()
    axis.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", [ground, "C0"]), vmin=0, vmax=1)
    short = [name if len(name) <= 14 else name[:13] + "…" for name in names]
    axis.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 2 else 0)
    axis.set_yticks(range(len(names)), short)
    for (i, j), count in np.ndenumerate(counts):
        if count:
            ink = ground if shares[i, j] > 0.65 else "C1"
            axis.text(j, i, str(count), ha="center", va="center", color=ink, fontsize=10 if len(names) <= 10 else 7)
