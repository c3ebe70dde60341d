"""Opens datasets by name, and reads the encoded images and the labels of a split.

Both kinds of source have random access: `read(indices)` gives the encoded bytes and the labels of any examples. So a
run can resume at any step.
"""

import bisect
import dataclasses
import difflib
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from alexnet_jax.data import cloud, folders, imagenet, prepare
from alexnet_jax.data.any_format import ImageError, read_file
from alexnet_jax.data.digits import Digits
from alexnet_jax.errors import UsageError
from alexnet_jax.files import local, local_folder, stores
from alexnet_jax.files.datasets import CachedFolder


class Source(Protocol):
    """One split of a dataset."""

    name: str  # for messages, e.g. "digits, split train"

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> tuple[list[bytes] | list[np.ndarray], np.ndarray]:
        """Returns the images, encoded or as pixels (S, S, 3) uint8, and the labels (int32) of some examples.

        Several threads call this at the same time.
        """

    def describe(self, index: int) -> str:
        """Returns the path or key of an example, with which a person can find it."""


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files in class folders."""

    name: str
    paths: list[str]
    labels: np.ndarray
    digest: str = ""  # of the names and labels, in order

    def __len__(self):
        return len(self.paths)

    def read(self, indices):
        return [_bytes_of(self.paths[i]) for i in indices], self.labels[indices]

    def describe(self, index):
        return self.paths[index]


def _bytes_of(path):
    try:
        return read_file(path)
    except (OSError, ImageError) as error:
        raise UsageError(
            f"{path} cannot be read ({getattr(error, 'strerror', error)}). Restore it, then start again."
        ) from error


class Records(Sequence):
    """The records of a split in array_record files, by number.

    Reads the same as TFDS's as_data_source in half of the time, because array_record has a faster call for one record.
    """

    def __init__(self, files: Sequence, cached: CachedFolder | None = None):  # TFDS's file_instructions
        self._files, self._cached = files, cached  # cached: what gets the files of a set in an object store
        self._stops = list(itertools.accumulate(file.take for file in files))
        self._readers = [None] * len(files)

    def __len__(self):
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, index):
        k = bisect.bisect_right(self._stops, index)
        # A file is opened when it is needed. If two threads open it at the same time, one of the readers is not kept.
        reader = self._readers[k] or ArrayRecordReader(
            self._path(k), "readahead_buffer_size:0", file_reader_buffer_size=2**14
        )
        self._readers[k] = reader
        record = index - self._stops[k] + self._files[k].take + self._files[k].skip
        return reader.read(record, record + 1)[0]

    def _path(self, k):
        if self._cached is None:
            return self._files[k].filename
        names = [os.path.basename(file.filename) for file in self._files]
        self._cached.ask(names)  # the others are read ahead: an epoch needs all of them
        return str(self._cached.get(names[k]))


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Examples of a TFDS dataset in array_record files."""

    name: str
    records: Sequence[bytes]  # serialized tf.train.Example
    raw_shape: tuple[int, int, int] | None = None  # of the images, if they are stored as pixels

    def __len__(self):
        return len(self.records)

    def read(self, indices):
        # Not parsed by TFDS, which can parse any feature, but takes ten times as long.
        features = [tf.train.Example.FromString(self.records[i]).features.feature for i in np.asarray(indices).tolist()]
        images = [f["image"].bytes_list.value[0] for f in features]
        if self.raw_shape:
            images = [np.frombuffer(image, np.uint8).reshape(self.raw_shape) for image in images]
        return images, np.array([f["label"].int64_list.value[0] for f in features], np.int32)

    def describe(self, index):
        features = tf.train.Example.FromString(self.records[int(index)]).features.feature
        key = next((key for key in ("file_name", "image/filename") if key in features), None)
        name = features[key].bytes_list.value[0].decode() if key else f"record {index}"
        return f"{name} of {self.name}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two splits of a dataset and the meaning of its labels."""

    train: Source
    evaluation: Source
    num_classes: int | None
    class_names: list[str] | None
    statistics: object | None  # statistics.Statistics of the training split, if `prepare` stored them
    remarks: tuple[str, ...] = ()  # sentences for a person: what was left out, and classes that a split lacks

    def contents(self) -> dict:
        """What must be the same when a run is resumed or evaluated, wherever the images are; JSON's types."""
        splits = {"train": self.train, "evaluation": self.evaluation}
        return {"classes": self.class_names} | {
            name: {"examples": len(split), "names": getattr(split, "digest", "")} for name, split in splits.items()
        }


def open_dataset(
    name: str,
    data_dir: str,
    *,
    image_size: int,
    train_split: str | None,
    eval_split: str,
    labels_of: str = "train",
) -> Dataset:
    """Opens a dataset. A TFDS dataset that is not on the disk is first made by TFDS.

    Args:
      name: "folder:PATH" (PATH/SPLIT/CLASS/FILE), "digits", a name that was prepared, such as
        "imagenet2012", or any TFDS dataset with an "image" and a "label".
      data_dir: where TFDS keeps its datasets; "" for its default, ~/tensorflow_datasets. At an address gs://... or
        s3://..., the dataset must be prepared already.
      image_size: side of the images of a prepared dataset, in pixels.
      train_split, eval_split: names of the splits. eval_split "" means the first of validation, val and test that
        exists. train_split None means the same split as eval_split, for callers that only evaluate.
      labels_of: if train_split is None, the split of a folder that was trained on. If it exists, its classes count too,
        so that labels mean the same as in training even where the evaluation split lacks a class.

    Raises:
      UsageError: if the dataset, a split or a feature does not exist, or a folder is empty.
    """
    if name.startswith("folder:"):
        return _open_folder(name.removeprefix("folder:"), train_split, eval_split, labels_of)
    if stores.is_address(data_dir):
        builder, cached = cloud.open_builder(name, data_dir, image_size)
    else:
        place = local_folder(data_dir or tfds.core.constants.DATA_DIR, "--config.data_dir")
        builder, cached = _builder(name, data_dir and str(place), image_size), None  # TFDS would make a folder named ~
    splits = _choose_splits(name, builder.info.splits, train_split, eval_split)
    for split in splits:
        if not builder.info.splits[split].num_examples:
            raise UsageError(
                f"dataset {name!r} has no examples in {split!r}. Choose a split, or a part of one, with examples."
            )
    for feature in ("image", "label"):
        if feature not in builder.info.features:
            raise UsageError(
                f"dataset {name!r} has the features {', '.join(builder.info.features)}; accepted is a dataset "
                f"with an 'image' and a 'label'. Choose another --config.dataset."
            )
    raw_shape = _raw_shape(name, builder.info.features["image"], image_size)
    files = {split: builder.info.splits[split].file_instructions for split in splits}
    if cached is not None:
        cached.reserve([os.path.basename(file.filename) for split in files for file in files[split]])
    sources = [RecordSource(f"{name}, split {split}", Records(files[split], cached), raw_shape) for split in splits]
    label = builder.info.features["label"]
    known = isinstance(label, tfds.features.ClassLabel) and label.num_classes
    return Dataset(
        *sources,
        num_classes=label.num_classes if known else None,
        class_names=label.names if known else None,
        statistics=prepare.read_statistics(builder) if re.match(r"train\b", splits[0]) else None,
    )


def _raw_shape(name: str, image: tfds.features.FeatureConnector, image_size: int) -> tuple[int, int, int] | None:
    """The shape of images that are stored as pixels; None if they are encoded."""
    if isinstance(image, tfds.features.Image):
        return None
    wanted = (image_size, image_size, 3)
    if image.shape != wanted or image.np_dtype != np.uint8:
        raise UsageError(
            f"dataset {name!r} stores {np.dtype(image.np_dtype)} pixels of shape {image.shape}; accepted are uint8 "
            f"pixels of shape {wanted}, or JPEG and PNG. Set --config.image_size to their size, or prepare the "
            "data set."
        )
    return wanted


def _open_folder(path: str, train_split: str | None, eval_split: str, labels_of: str) -> Dataset:
    root = local(path, "folder")
    if not (there := folders.splits_of(root)):
        raise UsageError(f"folder:{path} holds no folders. Fill it so that {folders.LAYOUT}.")
    layout = f" A folder of images is accepted if {folders.LAYOUT}."
    chosen = _choose_splits(f"folder:{path}", dict.fromkeys(there), train_split, eval_split, layout)
    used = (labels_of, *chosen) if train_split is None and labels_of in there else chosen
    found = folders.list_images(root, list(dict.fromkeys(used)))
    sources = [
        FolderSource(
            f"folder:{path}, split {split}",
            [file.path for file in found.splits[split]],
            np.array([file.label for file in found.splits[split]], np.int32),
            _digest(found.splits[split]),
        )
        for split in chosen
    ]
    return Dataset(*sources, len(found.classes), found.classes, statistics=None, remarks=tuple(found.remarks))


def _digest(files):
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.label}\0".encode())
    return digest.hexdigest()


def _builder(name: str, data_dir: str, image_size: int) -> tfds.core.DatasetBuilder:
    if re.fullmatch(r"\w+", name) and (prepared := prepare.open_prepared(name, data_dir, image_size)):
        return prepared
    if name == imagenet.NAME:
        raise UsageError(
            f"{name} at {image_size} pixels is not in {prepare.folder_of(name, data_dir, image_size)}. "
            f"{prepare.how_to_prepare_imagenet(data_dir, image_size)}"
        )
    arguments = {"data_dir": data_dir or None}
    try:
        builder = Digits(**arguments) if name == "digits" else tfds.builder(name, **arguments)
    except AssertionError as error:
        raise UsageError(f"TFDS has no such version of {name!r}: {error} Correct --config.dataset.") from error
    except ImportError as error:
        raise UsageError(
            f"TFDS cannot open the dataset {name!r}: {error}. Install that package, or choose another --config.dataset."
        ) from error
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # ValueError: a name cannot have this form
        close = difflib.get_close_matches(name, ["digits", *tfds.list_builders(with_community_datasets=False)])
        close = [f"folder:{name}"] if os.path.isdir(os.path.expanduser(name)) else close
        raise UsageError(
            f"dataset {name!r} is not known{f'; did you mean {close[0]!r}?' if close else '.'} Accepted are 'digits', "
            "'imagenet2012', 'folder:PATH' and the names of https://www.tensorflow.org/datasets/catalog."
        ) from error
    if not builder.is_prepared():
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            raise UsageError(
                f"dataset {name!r} is not in {builder.data_dir} and TFDS could not make it: {error}\n"
                f"Make it on a machine with network access, then set --config.data_dir to the folder DIR:\n"
                f"  {_how_to_make(name)}"
            ) from error
    if not builder.info.file_format.name == "ARRAY_RECORD":
        raise UsageError(
            f"dataset {name!r} in {builder.data_dir} is stored as {builder.info.file_format.value}, which cannot be "
            f"read by random access. Accepted is array_record. Make it again in another folder DIR, and set "
            f"--config.data_dir to DIR:\n  {_how_to_make(name)}"
        )
    return builder


def _how_to_make(name: str) -> str:
    # TFDS's own program `tfds build` does not start without apache_beam.
    return (
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='DIR')"
        ".download_and_prepare(file_format='array_record')\""
    )


def _choose_splits(name: str, splits, train: str | None, evaluation: str, layout: str = "") -> tuple[str, str]:
    evaluation = evaluation or next((s for s in folders.EVAL_SPLITS if s in splits), "")
    train = evaluation if train is None else train
    for field, split in (("eval_split", evaluation), ("train_split", train)):
        try:
            splits[split]  # TFDS also accepts parts, such as train[:90%]
        except (KeyError, ValueError) as error:
            unnamed = field == "eval_split" and not split
            wanted = "named " + ", ".join(folders.EVAL_SPLITS) if unnamed else repr(split)
            raise UsageError(
                f"dataset {name!r} has no split {wanted}; it has {', '.join(map(repr, splits)) or 'none'}. "
                f"Set --config.{field}=NAME to one of them.{layout}"
            ) from error
    return train, evaluation
