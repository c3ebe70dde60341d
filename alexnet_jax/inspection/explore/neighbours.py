"""The training images that are nearest to an image, by a stored index (paper, section 6.1), with their codes."""

import dataclasses

import numpy as np

from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.inspection import codes, retrieve
from alexnet_jax.inspection.codes import Encoder
from alexnet_jax.inspection.features import Index

NEAREST = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """An index in memory, and the codes of its images, or None."""

    index: Index
    codes: np.ndarray | None = None
    encoder: Encoder | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest images of an index, nearest first.

    Attributes:
      numbers: (m,) int64, their numbers in the index.
      distances: (m,) float64, Euclidean distances of the features.
      code: (bits,) bool, the code of the image; None without codes.
      codes: (m, bits) bool, the codes of the nearest images; None without codes.
    """

    numbers: np.ndarray
    distances: np.ndarray
    code: np.ndarray | None = None
    codes: np.ndarray | None = None


def nearest(trained: Trained, found: Found, image: np.ndarray, count: int = NEAREST) -> Neighbours:
    """Finds the nearest images of an index.

    Args:
      trained: the network of the index.
      found: the index, with or without codes.
      image: (S, S, 3) uint8.
      count: number of images; all, if the index has fewer.

    Source: paper, section 6.1.
    """
    queries = trained.features(image[None], found.index.layer)  # (1, D)
    distances, numbers = retrieve.nearest(queries, found.index.vectors, count)
    if found.encoder is None:
        return Neighbours(numbers[0], distances[0])
    mine = np.unpackbits(found.encoder.encode(queries)[0]).astype(bool)
    theirs = np.unpackbits(found.codes[numbers[0]], axis=1).astype(bool)
    return Neighbours(numbers[0], distances[0], mine, theirs)


def read(index_path, codes_path=None, weights=None) -> Found:
    """Opens an index, and its codes if a path is given.

    Raises:
      UsageError: if a file is missing or damaged, or they do not belong to each other or to the weights.
    """
    from alexnet_jax.inspection import features

    index = features.read(index_path)
    if weights is not None:
        index.check_network(weights)
    return Found(index, *(codes.read(codes_path, index) if codes_path else (None, None)))
