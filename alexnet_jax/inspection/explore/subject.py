"""What the explorer shows: a network with its classes, test images, and an index of training images, or none."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.data.any_format import ImageError, read_file
from alexnet_jax.data.images import decode_square
from alexnet_jax.data.sources import Dataset, Source
from alexnet_jax.evaluation import predict
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.inspection.explore import forward, neighbours
from alexnet_jax.inspection.explore.neighbours import Found
from alexnet_jax.inspection.report import examples

OFFERED = 16  # test images to pick from


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network and the images around it.

    Attributes:
      weights: on JAX's default device.
      names: the names of the K classes.
      tests: (n, S, S, 3) uint8, test images to pick from; n may be 0.
      labels: n numbers of their true classes.
      found: the index for nearest images, or None.
      trained: the network for the features of the index; None without an index.
      training: the images of the index, or None if they are not at hand.
    """

    weights: Weights
    names: tuple[str, ...]
    tests: np.ndarray
    labels: Sequence[int]
    found: Found | None = None
    trained: Trained | None = None
    training: Source | None = None

    @property
    def side(self) -> int:
        """Side S of the images in pixels."""
        return len(self.weights.mean_image)

    def training_images(self, numbers: np.ndarray) -> np.ndarray | None:
        """(m, S, S, 3) uint8, the images of the index with these numbers; None if they are not at hand."""
        if self.training is None:
            return None
        return examples.read(self.trained, self.training, numbers)


def prepare(
    weights: Weights,
    *,
    data: Dataset | None = None,
    seed: int = 0,
    index: str | Path | None = None,
    codes: str | Path | None = None,
    names: str | None = None,
) -> Subject:
    """Makes a subject.

    Args:
      weights: the network.
      data: the data set of its run, for test images; or None.
      seed: for the choice of the test images.
      index, codes: files that `features` and `codes` wrote, or None.
      names: file with the names of the classes, or None for the network's own.

    Raises:
      UsageError: if a file cannot be read, or does not belong to the network.
    """
    side = len(weights.mean_image)
    tests, labels = np.zeros((0, side, side, 3), np.uint8), ()
    trained = Trained.of(weights, batch_size=1)
    found = neighbours.read(index, codes, weights) if index else None
    if data is not None:
        part = examples.part(data.evaluation, OFFERED, seed)
        tests, labels = examples.through(trained, part, lambda images: images)
    training = data.train if data is not None and found and _holds(data.train, found) else None
    return Subject(
        forward.on_device(weights),
        predict.class_names(weights, names),
        tests,
        tuple(map(int, labels)),
        found,
        trained if found else None,
        training,
    )


def _holds(source, found):
    return source.name == found.index.split and len(source) == len(found.index)


def read_image(path: str | Path, side: int) -> np.ndarray:
    """Reads an image file as `predict` does: (side, side, 3) uint8.

    Raises:
      ImageError: if the file is not an image, or cannot be read; the message is a part of a sentence.
    """
    try:
        return decode_square(read_file(path), side)
    except OSError as error:
        raise ImageError(f"it cannot be read ({error.strerror})") from error
