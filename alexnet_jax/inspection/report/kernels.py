"""The kernels of the first layer (paper, section 6.1, Figure 3), and how far the towers have specialised."""

import dataclasses
from pathlib import Path

import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.inspection.report import figures
from alexnet_jax.network.architectures import Conv, layer_names


@dataclasses.dataclass(frozen=True)
class Tower:
    """A tower: its kernels as an image, their number, and their colour share; None if the network sees no colours."""

    image: str
    count: int
    colour: float | None


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Figure 3: the kernels' layer and size, the towers, and their specialisation (None for one tower or channel)."""

    layer: str
    size: int
    towers: list[Tower]
    specialisation: float | None
    grey_input: bool  # the network sees one channel
    grey_data: bool  # images with three equal channels: the kernels' colours come from the initial weights


def make(weights: Weights, folder: Path) -> Kernels | None:
    """Makes Figure 3, and writes kernels.png and kernels.csv; None if the first layer is not a convolution."""
    layers = dict(zip(layer_names(weights.architecture), weights.architecture, strict=True))
    first = next(name for name in layers if name in weights.params)
    if not isinstance(layers[first], Conv):
        return None
    kernels = np.moveaxis(weights.params[first]["kernel"], -1, 1)  # (T, n, h, w, C)
    coloured = kernels.shape[-1] == 3
    images = [tile(tower) for tower in kernels]
    colours = [colour_share(tower) if coloured else None for tower in kernels]
    _save(kernels, images, colours, folder)
    return Kernels(
        layer=first,
        size=kernels.shape[2],
        towers=[
            Tower(figures.image_uri(image), len(tower), colour)
            for image, tower, colour in zip(images, kernels, colours, strict=True)
        ],
        specialisation=specialisation(kernels) if coloured and len(kernels) > 1 else None,
        grey_input=not coloured,
        grey_data=weights.pca is not None and bool(weights.pca.eigenvalues[1] <= 1e-4 * weights.pca.eigenvalues[0]),
    )


def colour_share(kernels: np.ndarray) -> float:
    """How colour-specific kernels are: the share of their energy that is perpendicular to the grey axis.

    The weights of a pixel are a vector (R, G, B) = g + c: g, along (1, 1, 1), responds to brightness, and c,
    perpendicular to it, only to colour. The share is sum |c|^2 / sum (|g|^2 + |c|^2) over all pixels of all kernels. So
    a small kernel, which has learned nothing, hardly counts. The share is 0 for grey kernels, 1 for kernels that see no
    brightness, and 2/3 for random kernels, because two of three directions are perpendicular to the axis.

    Args:
      kernels: (..., 3) weights, not all of them 0.
    """
    kernels = np.asarray(kernels, np.float64)
    return float(1 - np.square(kernels.mean(-1)).sum() * 3 / np.square(kernels).sum())


def specialisation(kernels: np.ndarray) -> float:
    """How far the towers have specialised in brightness and colour: the largest colour share minus the smallest.

    It is 1 if one tower is grey and another sees only colour. It is about 0 if the towers are alike. It is
    0.006 on average for two random towers of 48 kernels of 11 x 11, and 0.02 for two of 16 kernels of 5 x 5.

    Args:
      kernels: (T, ..., 3), towers first.
    """
    shares = [colour_share(tower) for tower in kernels]
    return max(shares) - min(shares)


def tile(kernels: np.ndarray) -> np.ndarray:
    """(n, h, w, C) kernels -> one image (H, W, 4) uint8: each is scaled around mid-grey; gaps are transparent."""
    count, height, width = kernels.shape[:3]
    columns = min(count, 16 if count > 16 else 8)
    rows = -(-count // columns)
    largest = np.abs(kernels).max((1, 2, 3), keepdims=True)
    scaled = 0.5 + 0.5 * kernels / np.where(largest > 0, largest, 1)  # in [0, 1]; a weight of 0 becomes 1/2
    pixels = np.zeros((rows * columns, height + 1, width + 1, 4), np.uint8)
    pixels[:count, :-1, :-1, :3] = np.round(255 * np.broadcast_to(scaled, (count, height, width, 3)))
    pixels[:count, :-1, :-1, 3] = 255
    pixels = pixels.reshape(rows, columns, height + 1, width + 1, 4).swapaxes(1, 2)
    return pixels.reshape(rows * (height + 1), columns * (width + 1), 4)[:-1, :-1]


def _save(kernels, images, colours, folder):
    def draw(figure):
        axes = figure.subplots(len(images), 1, squeeze=False)[:, 0]
        for t, (axis, image, colour) in enumerate(zip(axes, images, colours, strict=True), 1):
            figures.show(axis, image, f"tower {t}" + ("" if colour is None else f": colour share {colour:.3f}"))

    height, width = images[0].shape[:2]
    figures.save_png(draw, (7, len(images) * (7 * height / width + 0.3)), folder / "kernels.png")
    rows = [
        [t, k, "" if colours[t - 1] is None else colour_share(kernel), np.linalg.norm(kernel)]
        for t, tower in enumerate(kernels, 1)
        for k, kernel in enumerate(tower, 1)
    ]
    figures.write_csv(folder / "kernels.csv", ["tower", "kernel", "colour_share", "norm"], rows)
