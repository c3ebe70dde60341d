"""The look of figures, on paper and on light and dark screens; images as data: URIs; tables as CSV."""

import base64
import csv
import dataclasses
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

from alexnet_jax.files import write_whole

SHARP = 160  # smaller images are enlarged to about so many pixels, by a whole number, so that no screen blurs them


def _theme(ground, ink, faint, accent):
    return {
        "figure.facecolor": ground,
        "axes.facecolor": "none",
        "text.color": ink,
        "text.parse_math": False,  # because the name of a class may contain $
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": faint,
        "grid.alpha": 0.35,
        "axes.prop_cycle": cycler(color=[accent, ink, faint]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "font.size": 11,
        "axes.titlesize": 11,
        "svg.hashsalt": "alexnet_jax",  # so that the same figure gives the same file
    }


LIGHT = _theme("#ffffff", "#1d232b", "#8a939e", "#0a5ea8")
DARK = _theme("#14181d", "#e4e8ed", "#7d8894", "#6cb4f5")


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure for the page: data: URIs of SVGs for light and dark screens, and a text for those who cannot see it."""

    light: str
    dark: str
    alt: str


def chart(draw: Callable[[Figure], None], size: tuple[float, float], alt: str, path: Path) -> Chart:
    """Draws a figure for the page, and writes it as PNG.

    Args:
      draw: function that draws into a matplotlib figure, with the colours C0 (accent), C1 (ink) and C2 (faint).
      size: width and height in inches.
      alt: the figure in words.
      path: the PNG file to write.
    """
    save_png(draw, size, path)
    return Chart(*(_uri("image/svg+xml", _drawn(draw, size, theme, "svg")) for theme in (LIGHT, DARK)), alt)


def save_png(draw: Callable[[Figure], None], size: tuple[float, float], path: Path) -> None:
    """Writes a figure as PNG, 160 pixels per inch; arguments as in chart."""
    write_whole(path, _drawn(draw, size, LIGHT, "png"))


def _drawn(draw, size, theme, kind):
    content = io.BytesIO()
    with matplotlib.rc_context(theme):
        figure = Figure(size, dpi=160, layout="constrained")
        draw(figure)
        plain = {"transparent": True, "metadata": {"Date": None}} if kind == "svg" else {}
        figure.savefig(content, format=kind, **plain)
    return content.getvalue()


def save_gallery(images: list[list[np.ndarray]], titles: list[list[str]], path: Path) -> None:
    """Writes rows of square (H, H, 3) uint8 images as PNG, each below a title of up to 3 lines of 22 letters."""
    rows, columns = len(images), len(images[0])
    cell = 1.35  # height of a cell; its width is 1, and the side of its image is 0.94

    def draw(figure):
        figure.set_layout_engine("none")
        axis = figure.add_axes((0, 0, 1, 1))  # one axis for all images, because one for each takes seconds
        axis.set_axis_off()
        for r, c in np.ndindex(rows, columns):
            bottom = cell * (r + 1)
            axis.imshow(images[r][c], extent=(c + 0.03, c + 0.97, bottom, bottom - 0.94))
            title = "\n".join(line[:22] for line in titles[r][c].splitlines())
            axis.text(c + 0.03, bottom - 0.97, title, va="bottom", fontsize=8)
        axis.set(xlim=(0, columns), ylim=(cell * rows + 0.03, 0))

    save_png(draw, (1.6 * columns, 1.6 * (cell * rows + 0.03)), path)


def show(axis, image: np.ndarray, title: str) -> None:
    """Shows an image with a title, without ticks."""
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def image_uri(pixels: np.ndarray) -> str:
    """(H, W, 3 or 4) uint8 pixels -> a data: URI; the fourth channel is opacity.

    Small images are enlarged and exact, as PNG. Larger ones are JPEG, if they have no opacity.
    """
    scale = max(1, round(SHARP / len(pixels)))
    pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    if pixels.shape[-1] == 4:
        return _uri("image/png", cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    kind, options = ("png", []) if scale > 1 else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 88])
    return _uri(f"image/{kind}", cv2.imencode(f".{kind}", pixels[..., ::-1], options)[1].tobytes())


def _uri(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_csv(path: Path, header: list[str], rows: Iterable) -> None:
    """Writes a table as CSV, completely or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_whole(path, text.getvalue())
