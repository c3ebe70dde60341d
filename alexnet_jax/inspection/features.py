"""A layer's output for every image of a split (paper, section 6.1), in an .npz file that may be larger than memory."""

import dataclasses
import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from alexnet_jax import files
from alexnet_jax.convert import Weights
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.trained import Trained, check_layer
from alexnet_jax.files import local

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

_STORED = {"float32": "<f4", "bfloat16": "<u2"}  # .npy files have no bfloat16, so its bits are stored
_TOLD = ("layer", "dtype", "digest", "network", "split", "class_names")
# An extra field in the zip file, so that the features begin at a multiple of 64 bytes. Otherwise a CPU would copy every
# block of them before it computes.
_ALIGNING = struct.pack("<HHH60x", 0xD935, 62, 64)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The features of a split, in a file.

    Attributes:
      path: the file.
      vectors: (N, D) float32 or bfloat16, memory-mapped.
      labels: (N,) int32.
      where: (N,) bytes, UTF-8: the path or key of each image, so that a person can find it.
      layer: name of the layer whose output the features are.
      dtype: "float32" or "bfloat16".
      digest: Weights.digest of the network.
      network: Weights.source of the network.
      split: the name of the split, e.g. "digits, split train".
      class_names: names of the K classes, or None.
    """

    path: Path
    vectors: np.ndarray
    labels: np.ndarray
    where: np.ndarray
    layer: str
    dtype: str
    digest: str
    network: str
    split: str
    class_names: tuple[str, ...] | None

    def __len__(self):
        return len(self.labels)

    def class_of(self, i: int) -> str:
        """The name of an image's class, or its number if the names are not known."""
        label = int(self.labels[i])
        return self.class_names[label] if self.class_names else f"class {label}"

    def place_of(self, i: int) -> str:
        """The path or key of an image."""
        return self.where[i].decode()

    @property
    def fingerprint(self) -> str:
        """A short text (a hash), which is equal for the features of the same images by the same network."""
        digest = hashlib.sha256(json.dumps([getattr(self, name) for name in _TOLD]).encode())
        digest.update(self.labels.tobytes() + b"\n".join(self.where))
        return digest.hexdigest()

    def check_network(self, weights: Weights) -> None:
        """Raises UsageError unless the features are those of these weights."""
        if self.digest != weights.digest:
            raise UsageError(
                f"{self.path} holds features of another network: they are from {self.network}, but you gave "
                f"{weights.source}. Give the network of the features, or make the features again."
            )


def write(path: Path, trained: Trained, source: Source, layer: str, class_names=None, dtype: str = "float32") -> None:
    """Writes the features of a split, completely or not at all, one batch at a time.

    Any program that reads .npz files can read it. Its arrays are features (N, D), float32, or uint16 with the bits of
    bfloat16; labels (N,) int32; where (N,) bytes; and about, a JSON object with the other attributes of Index.

    Args:
      path: the .npz file.
      trained: the network.
      source: the split (data/sources.py).
      layer: name of any layer of the network, such as last_hidden.
      class_names: names of the source's K classes, or None.
      dtype: "float32", or "bfloat16", which rounds to 8 bits and halves the size of the file.

    Raises:
      UsageError: if there is no such layer, or its output has a number that is not finite.
    """
    check_layer(trained.weights.architecture, layer)
    side = trained.image_size
    width = trained.features(np.zeros((1, side, side, 3), np.uint8), layer).shape[1]
    header = {"descr": _STORED[dtype], "fortran_order": False, "shape": (len(source), width)}
    about = {
        "layer": layer,
        "dtype": dtype,
        "digest": trained.weights.digest,
        "network": trained.weights.source,
        "split": source.name,
        "class_names": class_names and list(class_names),
    }
    labels, where = [], []
    with files.written_whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open(_member("features", _ALIGNING), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for rows, row_labels in _progress(trained, source, layer):
                first = len(where)
                where += [source.describe(i).encode() for i in range(first, first + len(rows))]
                labels.append(row_labels)
                if not np.isfinite(rows).all():
                    raise UsageError(
                        f"the output of {layer} is not finite for {where[-len(rows)].decode()} or one of the "
                        f"{len(rows) - 1} images after it. The weights are damaged; give another checkpoint."
                    )
                member.write(rows.astype(DTYPES[dtype]).tobytes())
        rest = {"labels": np.concatenate(labels), "where": np.array(where), "about": np.array(json.dumps(about))}
        for name, array in rest.items():
            with archive.open(_member(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)


def read(path: str | Path) -> Index:
    """Opens a file that `write` wrote.

    Raises:
      UsageError: if the file does not exist, or is not a complete file of features.
    """
    path = local(path, "the index")
    if not path.is_file():
        raise UsageError(f"{path} does not exist. Make it with `python -m alexnet_jax features --output={path}`.")
    try:
        with zipfile.ZipFile(path) as archive:
            rest = {}
            for name in ("labels", "where", "about"):
                with archive.open(f"{name}.npy") as member:
                    rest[name] = np.lib.format.read_array(member, allow_pickle=False)
            about = json.loads(rest.pop("about").item())
            stored = _map(path, archive).view(DTYPES[about["dtype"]])
            names = about.pop("class_names")
            index = Index(path, stored, **rest, **about, class_names=names and tuple(names))
    except (OSError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is not a complete file of features ({error}). Make it again with "
            f"`python -m alexnet_jax features --output={path}`."
        ) from error
    if not len(index.vectors) == len(index.labels) == len(index.where):
        raise UsageError(
            f"{path} has {len(index.vectors)} features, {len(index.labels)} labels and {len(index.where)} names of "
            f"images. Make it again with `python -m alexnet_jax features --output={path}`."
        )
    return index


def _map(path, archive):
    """The array of features, memory-mapped. NumPy itself cannot map an array inside a zip file."""
    info = archive.getinfo("features.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its features are compressed")
    with archive.open(info) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        header = member.tell()
    if header + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError("some of its features are missing")
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the member's zip header: 30 bytes, then name and extra field
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(path, dtype, "r", start + header, shape)


def _member(name, extra=b""):
    info = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that the same features give the same bytes
    info.extra = extra
    return info


def _progress(trained, source, layer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with tqdm(total=len(source), desc=f"Reading {source.name}", unit=" images", mininterval=1) as bar:
        for rows, labels in trained.over(source, lambda images: trained.features(images, layer)):
            yield rows, labels
            bar.update(len(rows))
