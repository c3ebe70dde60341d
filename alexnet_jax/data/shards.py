"""A shard, which is one file of a prepared dataset: its examples, its records, and a note when it is complete."""

import contextlib
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter

from alexnet_jax.data import imagenet
from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.data.originals import Original, read
from alexnet_jax.errors import UsageError
from alexnet_jax.files import sync, write_whole
from alexnet_jax.training.statistics import Sums

JPEG_QUALITY = 95
SAME_COMMAND = "The same command continues where it stopped."
# JPEGs cannot be compressed further, and records are read one at a time.
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Work:
    """The settings that all shards have in common."""

    folder: Path  # NAME_square/SIZE/VERSION.incomplete
    name: str  # NAME_square
    image_size: int
    encoding: str
    skip: bool  # whether broken images are left out
    kind: str  # of the originals' files, as in Originals
    as_tfds: bool  # whether the originals are ImageNet's published files; a few are then converted as TFDS does
    upright: bool  # whether images are turned as their EXIF orientation says; not ImageNet's, as in TFDS

    @property
    def records(self) -> Path:
        return self.folder / "records"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a split, with its examples in order."""

    split: str
    number: int
    shards: int  # number of shards of the split
    examples: list[Original]
    digest: str  # hash of everything that determines the bytes of the file

    def path(self, work: Work) -> Path:
        name = f"{work.name}-{self.split}.array_record-{self.number:05d}-of-{self.shards:05d}"
        return work.records / name

    def note(self, work: Work) -> Path:
        return work.folder / "notes" / f"{self.split}-{self.number:05d}.npz"


def make_shard(work: Work, shard: Shard, tick: Callable[[], None]) -> list[str]:
    """Writes one shard and then its note. Returns a line for each broken image.

    If an image is broken and work.skip is False, nothing is written. `tick` is called before each image.
    """
    note, path = shard.note(work), shard.path(work)
    note.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    sums, broken, labels, size = Sums(work.image_size), [], [], 0
    try:
        with _writing(path):
            writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for example in shard.examples:
                tick()
                encoded = read(work.kind, example)
                try:
                    stored, square = _square(work, example.name, encoded)
                except ImageError as error:
                    broken.append(f"{shard.split}/{example.name}: {error}")
                    continue
                record = _record(stored, example)
                with _writing(path):
                    writer.write(record)
                labels.append(example.label)
                size += len(record)
                if shard.split == "train":
                    sums.add(square[None])
        finally:
            with _writing(path):
                writer.close()
        if broken and not work.skip:
            return broken
        with _writing(path):
            sync(partial)
            partial.rename(path)
            arrays = {}
            if shard.split == "train":
                arrays = {"image": sums.image.astype(np.int32), "square": sums.square, "labels": np.bincount(labels)}
            about = {"digest": shard.digest, "count": len(labels), "size": size, "broken": broken}
            content = io.BytesIO()
            np.savez(content, about=np.array(json.dumps(about)), **arrays)
            write_whole(note, content.getvalue())
    finally:
        partial.unlink(missing_ok=True)
    return broken


def _square(work, name, encoded):
    """Returns an image as it is stored, and its pixels as training will read them."""
    encoded = imagenet.as_tfds_stores(name, encoded) if work.as_tfds else encoded
    square = decode_square(encoded, work.image_size, exact=True, upright=work.upright)
    if work.encoding == "raw":
        return square.tobytes(), square
    stored = tf.io.encode_jpeg(square, quality=JPEG_QUALITY).numpy()
    return stored, decode_square(stored, work.image_size)


def _record(stored, example):
    """A tf.train.Example as in TFDS, but its features are in a fixed order; in TFDS their order is random."""
    feature = tf.train.Feature
    features = {
        "image": feature(bytes_list=tf.train.BytesList(value=[stored])),
        "label": feature(int64_list=tf.train.Int64List(value=[example.label])),
        "file_name": feature(bytes_list=tf.train.BytesList(value=[example.name.encode()])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


@contextlib.contextmanager
def _writing(path):
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        reason = getattr(error, "strerror", None) or str(error).split(";")[0]
        raise UsageError(
            f"{path} cannot be written ({reason}). Free disk space, or correct the cause. {SAME_COMMAND}"
        ) from error


def read_note(work, shard):
    """The note that make_shard wrote, if it is complete and belongs to this shard; otherwise None."""
    try:
        with np.load(shard.note(work)) as arrays:
            note = dict(arrays)
            note |= json.loads(str(note["about"]))
            if shard.split == "train" and not note.keys() >= {"image", "square", "labels"}:
                return None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    right = note["digest"] == shard.digest and (work.skip or not note["broken"])
    return note if right and shard.path(work).is_file() else None
