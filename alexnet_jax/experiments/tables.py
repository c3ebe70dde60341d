"""Tables of experiments: as text and CSV; means with their standard errors."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.files import write_whole
from alexnet_jax.report import figures


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence], below: str = "") -> str:
    """Writes a table as path.csv, and as path.txt with what stands below it; gives that text.

    Its first and last columns are flush left, the others right.
    """
    figures.write_csv(path.with_name(path.name + ".csv"), list(header), rows)
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *middle, last in cells:
        right = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *right, last]).rstrip())
    text = "\n".join([*lines, *(["", below] if below else [""])])
    write_whole(path.with_name(path.name + ".txt"), text)
    return text


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values, from their spread; nan for fewer than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_and_error(values: Sequence[float], digits: int = 2) -> str:
    """'12.34 ± 0.05': the mean and its standard error, which one value alone does not have."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {standard_error(values):.{digits}f}"
