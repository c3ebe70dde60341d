"""Arrays as pictures: maps and neurons as tiles, kernels beside maps, heat over an image. All are uint8 arrays."""

import matplotlib
import numpy as np

from alexnet_jax.inspection.report.kernels import tile

GAP = 1  # transparent pixels between two maps


def scaled(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Numbers of any shape -> colours (..., 4) uint8.

    Numbers without a negative one go from black (0) to bright yellow. Others go from blue over grey (0) to red.

    Args:
      values: finite numbers.
      largest: the absolute value that gets the last colour; None for the largest one here.
    """
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max() if largest is None else largest
    values = values / (largest or 1)
    if values.min() < 0:
        return matplotlib.colormaps["coolwarm"](0.5 + 0.5 * values, bytes=True)
    return matplotlib.colormaps["inferno"](values, bytes=True)


def maps(outputs: np.ndarray, largest: float | None = None) -> np.ndarray:
    """The maps or neurons of one tower as one picture, in reading order.

    Args:
      outputs: (H, W, C) maps, or (C,) neurons.
      largest: as in scaled.

    Returns:
      (height, width, 4) uint8; gaps are transparent.
    """
    colours = scaled(outputs, largest)
    colours = colours[None, None] if outputs.ndim == 1 else colours
    return grid(np.moveaxis(colours, 2, 0), gap=GAP if outputs.ndim > 1 else 0)


def grid(pictures: np.ndarray, columns: int | None = None, gap: int = GAP) -> np.ndarray:
    """(n, h, w, 4) uint8 pictures -> one picture (H, W, 4) with transparent gaps, by default wider than high."""
    count, height, width, _ = pictures.shape
    columns = columns or _columns(count, 1.5 * height / width)
    lines = -(-count // columns)
    pixels = np.zeros((lines * columns, height + gap, width + gap, 4), np.uint8)
    pixels[:count, :height, :width] = pictures
    pixels = pixels.reshape(lines, columns, height + gap, width + gap, 4).swapaxes(1, 2)
    pixels = pixels.reshape(lines * (height + gap), columns * (width + gap), 4)
    return pixels[: len(pixels) - gap, : pixels.shape[1] - gap]


def _columns(count, ratio):
    """The number of columns, so that lines are full if that is possible with about `ratio` times as many as lines."""
    wanted = min(count, max(1, round(np.sqrt(count * ratio))))
    fitting = [n for n in range(1, count + 1) if count % n == 0 and wanted / 1.7 <= n <= 1.7 * wanted]
    return min(fitting, key=lambda n: abs(np.log(n / wanted)), default=wanted)


def beside_kernels(kernels: np.ndarray, outputs: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Each kernel of the first layer beside the map that it makes.

    Args:
      kernels: (h, w, C, n) weights of one tower, C 1 or 3; each is scaled around mid-grey.
      outputs: (H, W, n) its maps.
      largest: as in scaled, for the maps.

    Returns:
      (height, width, 4) uint8.
    """
    count = kernels.shape[-1]
    side = max(1, round(len(outputs) / len(kernels)))  # kernels are enlarged to about the size of the maps
    shown = np.stack([tile(kernels[None, ..., n]) for n in range(count)])  # (n, h, w, 4)
    shown = shown.repeat(side, 1).repeat(side, 2)
    colours = np.moveaxis(scaled(outputs, largest), 2, 0)  # (n, H, W, 4)
    height = max(shown.shape[1], colours.shape[1])
    pairs = np.zeros((count, height + 2, shown.shape[2] + colours.shape[2] + 4, 4), np.uint8)
    pairs[:, : shown.shape[1], : shown.shape[2]] = shown
    left = shown.shape[2] + 1
    pairs[:, : colours.shape[1], left : left + colours.shape[2]] = colours
    return grid(pairs)


def shown(crop: np.ndarray) -> np.ndarray:
    """(H, W, C) pixels about 0..255, C 1 or 3 -> (H, W, 3) uint8, rounded and clipped."""
    pixels = np.clip(np.round(crop), 0, 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def heat(crop: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A crop in grey with a heat map over it; the larger a value, the stronger its colour.

    Args:
      crop: (H, W, C) pixels about 0..255.
      values: (H, W) numbers; those below 0 count as 0.

    Returns:
      (H, W, 3) uint8.
    """
    values = np.maximum(values, 0)
    values = values / (values.max() or 1)
    grey = np.clip(crop, 0, 255).mean(-1, keepdims=True) / 255
    colours = matplotlib.colormaps["inferno"](0.25 + 0.75 * values)[..., :3]
    opacity = 0.75 * values[..., None]
    return np.round(255 * ((1 - opacity) * (0.15 + 0.7 * grey) + opacity * colours)).astype(np.uint8)


def framed(image: np.ndarray, corner: tuple[int, int], size: int) -> np.ndarray:
    """The image (S, S, 3) uint8, darkened outside a crop of `size` pixels whose top left corner is `corner`."""
    dark = (image * 0.4).astype(np.uint8)
    where = np.s_[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    dark[where] = image[where]
    return dark
