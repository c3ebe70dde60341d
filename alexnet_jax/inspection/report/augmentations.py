"""Training images as the network sees them: cropped, mirrored, recoloured (paper, section 4.1)."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.inspection.report import figures
from alexnet_jax.training import augment

DRAWS = 3  # number of random draws with all augmentations
ALONE = {"crop": "crop alone", "flip": "mirror alone", "colours": "colours alone"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image, and the words that say how it was changed."""

    image: str
    words: list[str]


@dataclasses.dataclass(frozen=True)
class Strip:
    """The titles of the columns, and one row for each training image: its label and its images."""

    columns: list[str]
    rows: list[tuple[str, list[Shown]]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which augmentations to apply; hashable, as jax.jit needs it."""

    crop: bool = False
    flip: bool = False
    colours: bool = False
    min_area: float = 1.0


def make(config, weights: Weights, images: np.ndarray, examples: np.ndarray, labels: list[str], folder: Path) -> Strip:
    """Applies each augmentation of a run alone, then draws from all; writes augmentations.png and augmentations.csv.

    Args:
      config: config of the run.
      weights: these have the size of the crops, the mean image and the colour PCA.
      images: (R, S, S, 3) uint8 training images.
      examples: (R,) their numbers in the split.
      labels: names of their R labels.
      folder: for the files.
    """
    min_area = config.augment.min_area
    every = Choice(config.augment.crop, config.augment.flip, config.augment.pca_std > 0, min_area)
    kept = [name for name in ALONE if getattr(every, name)]
    columns = [*(ALONE[name] for name in kept), *(f"all, draw {k}" for k in range(1, DRAWS + 1))]
    choices = (*(Choice(**{name: True}, min_area=min_area) for name in kept), *[every] * DRAWS)
    colours = tuple(config.augment[name] for name in ("pca_std", "pca_scale", "pca_rescale"))
    keys = jax.random.split(jax.random.key(config.seed), (len(images), len(choices)))
    size = weights.architecture[0].size
    drawn = jax.device_get(_draw(keys, images, weights.mean_image, weights.pca, size, choices, colours))
    words = [
        [_words(choice, *numbers) for choice, *numbers in zip(choices, *row, strict=True)]
        for row in zip(*drawn[1:], strict=True)
    ]
    pixels = np.clip(np.round(drawn[0]), 0, 255).astype(np.uint8)  # (R, C, size, size, 3)
    _save_csv(examples, labels, columns, drawn[1:], folder / "augmentations.csv")
    figures.save_gallery(
        [[image, *row] for image, row in zip(images, pixels, strict=True)],
        [[f"{label}\nas stored", *map("\n".join, row)] for label, row in zip(labels, words, strict=True)],
        folder / "augmentations.png",
    )
    rows = [
        (
            label,
            [Shown(figures.image_uri(image), ["as stored"])]
            + [Shown(figures.image_uri(p), w) for p, w in zip(row, text, strict=True)],
        )
        for image, label, row, text in zip(images, labels, pixels, words, strict=True)
    ]
    return Strip(["as stored", *columns], rows)


@functools.partial(jax.jit, static_argnames=("size", "choices", "colours"))
def _draw(keys, images, mean_image, pca, size, choices, colours):
    """(R, C) draws: pixels (R, C, size, size, 3), boxes (R, C, 4), mirrored (R, C), shifts (R, C, 3).

    A box is the top row, the left column, the height and the width of what was cut out.
    """

    def of_image(keys, image):
        columns = [
            _one(key, image, mean_image, pca, size, choice, colours) for key, choice in zip(keys, choices, strict=True)
        ]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *columns)

    return jax.vmap(of_image)(keys, images)


def _one(key, image, mean_image, pca, size, choice, colours):
    std, scale, rescale = colours
    of_crop, of_flip, of_colours = jax.random.split(key, 3)
    # Each pixel carries its row and column in the original. So the result shows what was cropped and mirrored.
    places = jnp.stack(jnp.indices(image.shape[:2]), -1)
    layers = jnp.concatenate([image - mean_image, mean_image, places], -1)  # (S, S, 8)
    layers = augment.crop(of_crop if choice.crop else None, layers, size, choice.min_area)
    layers = augment.random_flip(of_flip, layers) if choice.flip else layers
    pixels, mean, places = jnp.split(layers, (3, 6), -1)
    shift = jnp.zeros(3)
    if choice.colours:
        pixels = augment.pca_jitter(of_colours, pixels, pca, std, scale=scale, rescale=rescale)
        # For a pixel of the mean colour; with rescale, other colours also move towards the mean.
        shift = augment.pca_jitter(of_colours, jnp.zeros((1, 1, 3)), pca, std, scale=scale, rescale=rescale)[0, 0]
    box = jnp.concatenate([places.min((0, 1)), places.max((0, 1)) - places.min((0, 1)) + 1])
    return pixels + mean, box, places[0, 0, 1] > places[0, -1, 1], shift


def _words(choice, box, mirrored, shift):
    words = ["from row {:.0f}, column {:.0f}".format(*box)] if choice.crop else []
    words += ["{2:.0f} rows, {3:.0f} columns".format(*box)] if choice.crop and choice.min_area < 1 else []
    words += ["mirrored" if mirrored else "not mirrored"] if choice.flip else []
    words += ["RGB {:+.1f} {:+.1f} {:+.1f}".format(*shift)] if choice.colours else []
    return words or ["the centre"]


def _save_csv(examples, labels, columns, drawn, path):
    rows = [
        [example, label, column, *(round(float(number)) for number in box), bool(mirrored), *map(float, shift)]
        for example, label, *row in zip(examples, labels, *drawn, strict=True)
        for column, box, mirrored, shift in zip(columns, *row, strict=True)
    ]
    header = [
        "example",
        "label",
        "column",
        "top",
        "left",
        "height",
        "width",
        "mirrored",
        "shift_R",
        "shift_G",
        "shift_B",
    ]
    figures.write_csv(path, header, rows)
