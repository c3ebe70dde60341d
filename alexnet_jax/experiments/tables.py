"""Tables of experiments: as text and CSV, and as a plot; means with their standard errors."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.files import write_whole
from alexnet_jax.inspection.report import figures


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean and its standard error, nan if it is not known: 12.34 ± 0.05 as text, two columns in a CSV."""

    mean: float
    error: float = math.nan
    form: str = ".2f"

    @classmethod
    def of(cls, values: Sequence[float], form: str = ".2f") -> "Mean":
        """The mean of independent values, with the standard error from their spread; a single value has none."""
        error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), float(error), form)

    def __str__(self):
        mean = format(self.mean, self.form)
        return mean if math.isnan(self.error) else f"{mean} ± {format(self.error, self.form.removeprefix('+'))}"

    def numbers(self) -> list[str]:
        """The mean and the standard error, "" if it is not known."""
        return [str(round(number, 6)) if not math.isnan(number) else "" for number in (self.mean, self.error)]


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence], below: str = "") -> str:
    """Writes a table as path.csv, and as path.txt with a text below it; returns the content of path.txt.

    In the text the first and last columns are aligned left, the others right.

    Args:
      path: without .csv or .txt.
      header: the names of the columns, all different.
      rows: text, numbers and Means.
      below: the text below the table.
    """
    split = [any(isinstance(row[k], Mean) for row in rows) for k in range(len(header))]  # into two columns

    def spread(cell, two):
        return (cell.numbers() if isinstance(cell, Mean) else [cell, ""]) if two else [cell]

    names = [name for h, two in zip(header, split, strict=True) for name in ([h, f"{h}, s.e."] if two else [h])]
    lines = [[n for cell, two in zip(row, split, strict=True) for n in spread(cell, two)] for row in rows]
    figures.write_csv(path.with_name(path.name + ".csv"), names, lines)
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *middle, last in cells:
        right = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right, last]).rstrip())
    text = "\n".join([*lines, *(["", below] if below else [""])])
    write_whole(path.with_name(path.name + ".txt"), text)
    return text


@dataclasses.dataclass(frozen=True)
class Mark:
    """A row of a plot: a mean, and the paper's value, if it has one."""

    words: str
    mean: Mean
    paper: float | None = None


def plot(path: Path, label: str, marks: Sequence[Mark]) -> None:
    """Draws means with two standard errors to each side, one below the other, as PNG; without means, writes no file."""

    def draw(figure):
        axis = figure.subplots()
        axis.set(xlabel=label, yticks=range(len(marks)), ylim=(len(marks) - 0.5, -0.5))
        axis.set_yticklabels([mark.words for mark in marks])
        axis.grid(axis="x")
        means = [mark.mean.mean for mark in marks]
        spread = 2 * np.nan_to_num([mark.mean.error for mark in marks])
        axis.errorbar(means, range(len(marks)), xerr=spread, fmt="o", color="C0", label="here, ± 2 s.e.")
        papers = [(mark.paper, y) for y, mark in enumerate(marks) if mark.paper is not None]
        if papers:
            axis.plot(*zip(*papers, strict=True), marker="x", ls="", color="C1", label="paper")
        if min(means) < 0:
            axis.axvline(0, color="C1", lw=0.8)
        figure.legend(loc="outside lower right", ncols=2, fontsize=9)

    if marks:
        figures.save_png(draw, (6.4, 0.32 * len(marks) + 1.2), path)
