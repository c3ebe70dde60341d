"""The mean image, the colour PCA and the class sizes of a training set (paper, sections 2 and 4.1)."""

import dataclasses
import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np

from alexnet_jax.errors import UsageError
from alexnet_jax.files import write_whole
from alexnet_jax.training.augment import ColorPCA, color_pca_from_sums

# What numpy.load and zipfile raise for a damaged file.
_DAMAGE = OSError, ValueError, KeyError, EOFError, RuntimeError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """mean_image: (S, S, 3) float, pixels in 0..255; pca: ColorPCA of pixels in [0, 1].

    label_counts: (K,) number of images of each class, or None if it is not known.
    Float64 in files, float32 on devices.
    """

    mean_image: jax.Array
    pca: ColorPCA
    label_counts: jax.Array | None = None

    def save(self, path: Path) -> None:
        """Writes an .npz file, completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "mean_image": self.mean_image,
            "eigenvectors": self.pca.eigenvectors,
            "eigenvalues": self.pca.eigenvalues,
        }
        if self.label_counts is not None:
            arrays["label_counts"] = self.label_counts
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_whole(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads what save wrote. Raises UsageError if the file is damaged, or has numbers that are not finite."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                pca = ColorPCA(arrays["eigenvectors"], arrays["eigenvalues"])
                read = cls(arrays["mean_image"], pca, arrays.get("label_counts"))
            read._check()
        except _DAMAGE as error:
            raise UsageError(
                f"{path} is damaged, or not a file of statistics ({str(error)[:100]}). Copy it again. Or start the run "
                "again: if its images are the same, it makes this file anew."
            ) from error
        return read

    @property
    def digest(self) -> str:
        """A hash of all numbers."""
        arrays = (self.mean_image, self.pca.eigenvectors, self.pca.eigenvalues, self.label_counts)
        hashed = (np.asarray(array, np.float64).tobytes() for array in arrays if array is not None)
        return hashlib.sha256(b"".join(hashed)).hexdigest()

    def _check(self):
        """Raises ValueError for wrong shapes, and for numbers that are not finite."""
        side = len(self.mean_image)
        counts = np.zeros(0, int) if self.label_counts is None else self.label_counts
        if self.mean_image.shape != (side, side, 3) or self.pca.eigenvectors.shape != (3, 3):
            raise ValueError("arrays of wrong shapes")
        if self.pca.eigenvalues.shape != (3,) or counts.ndim != 1 or not np.issubdtype(counts.dtype, np.number):
            raise ValueError("arrays of wrong shapes")
        for array in (self.mean_image, self.pca.eigenvectors, self.pca.eigenvalues, counts):
            if not np.isfinite(array).all():
                raise ValueError("numbers that are not finite")


class Sums:
    """Sums over uint8 images of one size, from which the statistics are computed.

    They are integers, and ImageNet's are far below 2^63. So nothing is rounded, and the order of the
    images and the number of processes do not change the result.
    """

    def __init__(self, image_size: int):
        self.images = 0
        self.image = np.zeros((image_size, image_size, 3), np.int64)
        self.square = np.zeros((3, 3), np.int64)  # sums of products of two channels

    def add(self, images: np.ndarray) -> None:
        """Adds (N, S, S, 3) uint8 images."""
        self.images += len(images)
        self.image += images.sum(0, dtype=np.int64)
        for image in images:
            pixels = image.reshape(-1, 3).astype(np.float64)
            self.square += (pixels.T @ pixels).astype(np.int64)  # exact: integers below 2^53

    def statistics(self) -> Statistics:
        """The mean image and the colour PCA of all images added, in float64."""
        count = self.images * self.image.shape[0] ** 2
        pca = color_pca_from_sums(count, self.image.sum((0, 1)), self.square)
        return Statistics(self.image / self.images, pca)
