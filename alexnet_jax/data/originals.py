"""Lists and reads the original images of folders, of ImageNet's tars, or of a dataset that TFDS made.

All images are listed first. Then any number of processes can read them in any order.
"""

import dataclasses
import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tqdm import tqdm

from alexnet_jax.data import folders, imagenet
from alexnet_jax.data.any_format import SUFFIXES
from alexnet_jax.data.labels import synset_of, synsets
from alexnet_jax.errors import UsageError
from alexnet_jax.files import local, write_whole

ACCEPTED = "tfds:NAME, tars:FOLDER (with ImageNet's two tars) and folder:FOLDER (with SPLIT/CLASS/FILE)"


class Original(NamedTuple):
    """One image: its name (unique in its split), its label, and the place of its bytes."""

    name: str
    label: int
    file: str
    start: int = 0  # first byte in the file; in an array_record file the number of the record
    size: int = 0  # bytes
    changed: int = 0  # for a file in a folder: time of its last change, in ns


@dataclasses.dataclass(frozen=True)
class Originals:
    """All images of a source."""

    kind: str  # of its files: "file" (one image), "tar", "tfrecord" or "array_record"
    classes: list[str]
    splits: dict[str, list[Original]]
    key: list  # changes if the source changes, except if files of a folder change


def list_originals(source: str, dataset: str, data_dir: str, kept: Path) -> Originals:
    """Lists the images of a source.

    Args:
      source: "tfds:NAME" (in data_dir), "tfds:FOLDER" (the folder of the records), "tars:FOLDER" or "folder:FOLDER".
      dataset: "imagenet2012", whose classes and labels are known, or any other name.
      data_dir: where TFDS keeps its datasets; "" for its default.
      kept: file for the list of the images of tars and records, which takes minutes to make. The list is used again if
        the tars or records have not changed.

    Raises:
      UsageError: if the source does not exist, is damaged, or does not fit `dataset`.
    """
    kind, _, place = absolute(source).partition(":")
    if kind == "folder":
        originals = _folder(Path(place), dataset)
    elif kind == "tars":
        originals = _tars(Path(place), dataset, kept)
    else:
        originals = _records(place, dataset, data_dir, kept)
    for split, examples in originals.splits.items():
        _check_names(examples, f"{source}, split {split}")
    if not originals.splits:
        raise UsageError(f"{source} holds no images with labels. Accepted are {ACCEPTED}. Give one with images.")
    if dataset == imagenet.NAME:
        _check_imagenet(source, originals.splits)
    return originals


def absolute(source: str) -> str:
    """Returns the source with an absolute path. Raises UsageError if this kind of source is not known."""
    kind, _, place = source.partition(":")
    if not place or kind not in ("tfds", "tars", "folder"):
        raise UsageError(f"--source={source} is not known; accepted are {ACCEPTED}. Give one of them.")
    path = local(place, "--source").absolute()
    return f"{kind}:{path}" if kind != "tfds" or (path / "dataset_info.json").is_file() else source


def read(kind: str, original: Original) -> bytes:
    """Returns the encoded image. Raises UsageError if its file does not exist any more or cannot be read."""
    try:
        if kind == "array_record":
            record = _array_record(original.file).read([original.start])[0]
        else:
            with open(original.file, "rb") as file:
                file.seek(original.start)
                record = file.read(-1 if kind == "file" else original.size)
            if len(record) != original.size:
                raise ValueError(f"{len(record):,} of {original.size:,} bytes were read")
        return record if kind in ("file", "tar") else _features(record)["image"].bytes_list.value[0]
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UsageError(
            f"{original.name} in {original.file} cannot be read ({error}). Restore the file as it was. "
            "The same command continues where it stopped."
        ) from error


@functools.lru_cache(500)  # TFDS's ImageNet has 1024 files; on many systems a process cannot open more
def _array_record(path):
    return ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0")


def _features(record):
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's error is of no built-in type
        raise ValueError(str(error)) from error


def _check_imagenet(source, splits):
    for split, whole in imagenet.IMAGES.items():
        if not (examples := splits.get(split)):
            raise UsageError(f"{source} holds no images of {split}; accepted is a source with both splits. Add them.")
        classes = len({example.label for example in examples})
        if (len(examples), classes) != (whole, 1000):
            print(
                f"WARNING: {source} has {len(examples):,} images of {classes:,} classes for {split}, but the "
                f"complete {imagenet.NAME} has {whole:,} of 1,000. Check whether something is missing."
            )


def _check_names(examples, where):
    seen = set()
    for name in (example.name for example in examples):
        if name in seen:
            raise UsageError(
                f"{where}: two files have the name {name}; in {imagenet.NAME} each name is unique. Remove one, or "
                "prepare the images as your own data set with --dataset=NAME."
            )
        seen.add(name)
        folders.check_name(name, where)


# Folders


def _folder(root: Path, dataset: str) -> Originals:
    names, key = folders.splits_of(root), ["folder", str(root.resolve())]
    if dataset == imagenet.NAME:
        return Originals("file", synsets(), _imagenet_splits(root, names), key)
    for name in names:
        if not re.fullmatch(r"\w+", name) or name == "all":  # TFDS uses this name for all splits together
            raise UsageError(
                f"{root / name}: the name of a split must have only letters, digits and _, and must not be `all`. "
                "Rename it."
            )
    evaluation = next((name for name in folders.EVAL_SPLITS if name in names), None)
    # As for config.dataset=folder:PATH, the classes are those of these two.
    splits = ["train", evaluation] if evaluation and "train" in names else names
    found = folders.list_images(root, splits, [name for name in names if name not in splits])
    for remark in found.remarks:
        print(remark)
    listed = {split: [_of_file(*file) for file in files] for split, files in sorted(found.splits.items())}
    return Originals("file", found.classes, listed, key)


def _imagenet_splits(root: Path, names: list[str]) -> dict[str, list[Original]]:
    if not set(imagenet.IMAGES) <= {imagenet.SPLITS.get(name) for name in names}:
        raise UsageError(
            f"folder:{root} holds {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}; accepted are "
            f"the folders train and val (or validation) of {imagenet.NAME}. Give the folder that holds these two."
        )
    splits = {}
    for name in names:
        if name not in imagenet.SPLITS:
            print(f"Left out: {root / name}, which is neither train nor val.")
            continue
        files = tqdm(_imagenet_files(root / name), f"Listing {root / name}", unit=" files", mininterval=1)
        splits.setdefault(imagenet.SPLITS[name], []).extend(files)
    return {split: files for split, files in sorted(splits.items()) if files}


def _imagenet_files(folder: Path) -> Iterator[Original]:
    for entry in folders.visible(folder):
        if folders.is_folder(entry):
            for file in folders.visible(entry):
                if not folders.is_file(file):
                    raise UsageError(f"{file.path} is not a file; accepted is SPLIT/CLASS/FILE. Move it away.")
                yield _of_file(file.name, file.path, imagenet.label_of(file.name, entry.name, str(folder)))
        elif entry.name.startswith("ILSVRC2012_val_"):
            yield _of_file(entry.name, entry.path, imagenet.label_of(entry.name, None, str(folder)))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            raise UsageError(
                f"{entry.path} is not in a class folder; accepted is SPLIT/CLASS/FILE. Move it into a class folder."
            )


def _of_file(name, path, label):
    try:
        there = os.stat(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). Restore it, then start again.") from error
    return Original(name, label, path, 0, there.st_size, there.st_mtime_ns)


# ImageNet's tars


def _tars(folder: Path, dataset: str, kept: Path) -> Originals:
    if dataset != imagenet.NAME:
        raise UsageError(
            f"tars: accepts only the tars of {imagenet.NAME}. Unpack those of {dataset}; give folder:FOLDER."
        )
    paths = [folder / name for name in imagenet.TARS]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UsageError(
            f"{' and '.join(missing)} not found in {folder}. Download {imagenet.TARS[0]} (138 GB) and "
            f"{imagenet.TARS[1]} (6.3 GB) from {imagenet.WHERE}, and put both into this folder."
        )
    key = ["tars", *map(_stamp, paths)]
    if splits := _load_list(kept, key):
        return Originals("tar", synsets(), splits, key)
    splits = {}
    for split, path, members in zip(("train", "validation"), paths, (_train_members, _val_members), strict=True):
        try:
            with tarfile.open(path, "r:") as tar:
                images = tqdm(members(tar, str(path)), f"Listing {path.name}", unit=" files", mininterval=1)
                splits[split] = list(images)
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(
                f"{path} is not a complete tar ({error}). Download it again and compare its checksum."
            ) from error
    _save_list(kept, key, splits)
    return Originals("tar", synsets(), splits, key)


def _files_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    yield from filter(tarfile.TarInfo.isreg, tar)
    tar.fileobj.seek(tar.offset)  # here tarfile found the end, or a damaged header that it reads as the end
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends early, or a header is damaged")


def _train_members(tar, path) -> Iterator[Original]:
    for outer in _files_of(tar):
        synset, _, ending = Path(outer.name).name.partition(".")
        if ending != "tar":
            raise UsageError(f"{path} holds {outer.name}; accepted are tars like n01440764.tar. Download it again.")
        with tarfile.open(fileobj=tar.extractfile(outer), mode="r:") as inner:
            for member in _files_of(inner):
                name = Path(member.name).name
                label = imagenet.label_of(name, synset, path)
                if synset_of(name) is None:
                    raise UsageError(
                        f"{path}: {outer.name} holds {name}; accepted are {synset}_NUMBER.JPEG. Download it again."
                    )
                yield Original(name, label, path, outer.offset_data + member.offset_data, member.size)


def _val_members(tar, path) -> Iterator[Original]:
    for member in _files_of(tar):
        name = Path(member.name).name
        yield Original(name, imagenet.label_of(name, None, path), path, member.offset_data, member.size)


# TFDS


def _records(name: str, dataset: str, data_dir: str, kept: Path) -> Originals:
    builder = _builder(name, data_dir)
    classes, kind = _check_builder(name, builder, dataset), builder.info.file_format.value
    files = {
        split: list(map(str, info.filepaths))
        for split, info in builder.info.splits.items()
        if dataset != imagenet.NAME or split in imagenet.SPLITS.values()
    }
    key = ["tfds", *(_stamp(Path(path)) for paths in files.values() for path in paths)]
    if splits := _load_list(kept, key):
        return Originals(kind, classes, splits, key)
    splits = {}
    for split, paths in files.items():
        total = builder.info.splits[split].num_examples
        examples = list(tqdm(_examples(kind, paths), f"Listing {split}", total, unit=" records", mininterval=1))
        if len(examples) != total:
            raise UsageError(f"tfds:{name} has {len(examples):,} of {total:,} records for {split}. Make it again.")
        if any(example.label < 0 for example in examples):
            print(f"Left out: split {split} of {name}, which has no labels.")
            continue
        if len({example.name for example in examples}) < len(examples):  # no names, or the same name in several folders
            examples = [example._replace(name=f"{index:08d}") for index, example in enumerate(examples)]
        splits[split] = examples
    _save_list(kept, key, splits)
    return Originals(kind, classes, splits, key)


def _builder(name, data_dir):
    folder = local(name, "--source")
    try:
        if (folder / "dataset_info.json").is_file():
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError, ImportError) as error:
        raise UsageError(
            f"tfds:{name}: TFDS does not know this dataset, or not this version of it. Accepted are the names of "
            "https://www.tensorflow.org/datasets/catalog, and a folder with dataset_info.json. Correct the name."
        ) from error
    if not builder.is_prepared():
        raise UsageError(
            f"tfds:{name} is not in {builder.data_dir}. Set --data_dir to the folder where TFDS made it, give "
            f"tfds:FOLDER with the folder of its dataset_info.json, or use another source; accepted are {ACCEPTED}."
        )
    return builder


def _check_builder(name, builder, dataset):
    features, file_format = dict(builder.info.features.items()), builder.info.file_format.value
    label = features.get("label")
    if not isinstance(features.get("image"), tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UsageError(
            f"tfds:{name} has the features {', '.join(features)}; accepted is a dataset with an encoded 'image' and a "
            "'label' of named classes. Choose another dataset."
        )
    if file_format not in ("tfrecord", "array_record"):
        raise UsageError(f"tfds:{name} is stored as {file_format}; accepted are tfrecord and array_record. Convert it.")
    if dataset == imagenet.NAME and label.names != synsets():
        raise UsageError(
            f"tfds:{name} does not have the 1000 classes of {dataset} in their order. Give another --dataset=NAME."
        )
    return list(label.names)


def _examples(kind, paths) -> Iterator[Original]:
    for path in paths:
        try:
            for start, size, record in _each_record(kind, path):
                features = _features(record)
                key = next((key for key in ("file_name", "image/filename") if key in features), None)
                name = features[key].bytes_list.value[0].decode(errors="replace") if key else ""
                yield Original(name, features["label"].int64_list.value[0], path, start, size)
        except (RuntimeError, ValueError, IndexError, tf.errors.OpError) as error:
            raise UsageError(f"{path} is damaged ({error}). Make or download it again.") from error


def _each_record(kind, path) -> Iterator[tuple[int, int, bytes]]:
    if kind == "array_record":
        reader = _array_record(path)
        for index in range(reader.num_records()):
            yield index, 0, reader.read([index])[0]
        return
    # Before each record are its length (8 bytes) and the checksum of the length (4); after it is its own checksum (4).
    start = 12
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():  # this compares the checksums
        yield start, len(record), record
        start += len(record) + 16


# Saved lists


def _stamp(path):
    try:
        there = path.stat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). Make or download it again.") from error
    return [str(path.resolve()), there.st_size, there.st_mtime_ns]


def _load_list(path: Path, key: list) -> dict[str, list[Original]] | None:
    try:
        kept = json.loads(path.read_text())
        if kept["key"] != key:
            return None
    except (OSError, ValueError, KeyError):
        return None
    files = kept["files"]
    return {
        split: [Original(name, label, files[file], *place) for name, label, file, *place in rows]
        for split, rows in kept["splits"].items()
    }


def _save_list(path: Path, key: list, splits: dict[str, list[Original]]) -> None:
    files = {example.file: None for examples in splits.values() for example in examples}
    number = {file: index for index, file in enumerate(files)}
    rows = {
        split: [(e.name, e.label, number[e.file], e.start, e.size) for e in examples]
        for split, examples in splits.items()
    }
    write_whole(path, json.dumps({"key": key, "files": list(files), "splits": rows}))
