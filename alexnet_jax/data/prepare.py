"""Makes square images of originals, once, on all cores, in array_record files; and computes their statistics.

DATA_DIR/NAME_square/SIZE/VERSION.incomplete/ holds these until all is finished, so that the dataset is always complete:

records/    the records; renamed to DATA_DIR/NAME_square/SIZE/VERSION at the end
notes/      for each finished shard: a digest of its inputs, and the sums of its images
list.json   the list of the originals, for tars and records
command.txt the command that continues the preparation
"""

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tqdm import tqdm

from alexnet_jax import hosts
from alexnet_jax.data import imagenet
from alexnet_jax.data.folders import digest_of
from alexnet_jax.data.images import ACCEPTED
from alexnet_jax.data.originals import Originals, absolute, list_originals
from alexnet_jax.data.shards import SAME_COMMAND, Shard, Work, read_note
from alexnet_jax.data.workers import make_by_many, make_here
from alexnet_jax.errors import UsageError
from alexnet_jax.files import alone, local_folder, sync, write_whole
from alexnet_jax.training.statistics import Statistics, Sums

ENCODINGS = ("jpeg", "raw")
# ImageNet's 1,281,167 images make 256 shards. A process may open far more files than that.
_JPEGS_A_SHARD = 5000
_RAW_BYTES_A_SHARD = 200e6
_JPEG_TO_RAW = 0.16  # 100 ImageNet photographs of 256 pixels: 28.6 kB each, which is a seventh of 197 kB
_BYTES_A_WORKER = 0.7e9
_STATISTICS = "statistics.npz"


def prepare(
    source: str,
    data_dir: str = "",
    image_size: int = 256,
    *,
    dataset: str = imagenet.NAME,
    encoding: str = "jpeg",
    broken: str = "fatal",
    workers: int | None = None,
) -> Path:
    """Makes a dataset of square images, if it does not exist yet. Continues where an earlier call was stopped.

    The bytes of its files depend only on the images, their names and labels, image_size and encoding. Workers
    import the script that calls this. So that script needs `if __name__ == "__main__":`, unless workers is 1.

    Args:
      source: "tfds:NAME", "tars:FOLDER" or "folder:FOLDER"; see originals.list_originals.
      data_dir: where TFDS keeps its datasets; "" for its default, ~/tensorflow_datasets.
      image_size: side of the images in pixels; the paper uses 256.
      dataset: the name for config.dataset: "imagenet2012", or any other name for other images.
      encoding: "jpeg" (quality 95), or "raw" (the pixels: larger, but faster to read).
      broken: what to do with images that do not decode: "fatal" or "skip".
      workers: number of processes; 1 is only this process; None is one for each core, if the memory is enough.

    Returns:
      The folder of the records. It gets this name only when it is complete.

    Raises:
      UsageError: if originals are missing or broken, if the disk is full, if another process prepares the same data, or
        if an unfinished call there had another source or encoding.

    Source: paper, section 2.
    """
    _check_options(dataset, encoding, broken, image_size)
    data_dir = data_dir and str(local_folder(data_dir, "--data_dir").absolute())
    final = folder_of(dataset, data_dir, image_size)
    incomplete = final.with_name(final.name + ".incomplete")
    try:
        source = absolute(source)
        if not _is_there(final, encoding):
            incomplete.mkdir(parents=True, exist_ok=True)
            with alone(incomplete, "`prepare`"):
                if not _is_there(final, encoding):  # another process may have finished just now
                    _begin(incomplete, _command(source, data_dir, image_size, dataset, encoding, broken))
                    originals = list_originals(source, dataset, data_dir, incomplete / "list.json")
                    work = Work(
                        folder=incomplete,
                        name=f"{dataset}_square",
                        image_size=image_size,
                        encoding=encoding,
                        skip=broken == "skip",
                        kind=originals.kind,
                        as_tfds=dataset == imagenet.NAME and originals.kind in ("file", "tar"),
                        upright=dataset != imagenet.NAME,
                    )
                    _prepare(work, originals, workers or _default_workers(), final)
        shutil.rmtree(incomplete, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{error.filename or final}: {error.strerror or error}. Fix that. {SAME_COMMAND}") from error
    return final


def _default_workers():
    cores = hosts.cores()
    free = hosts.free_memory()
    return max(1, min(cores, int(free / _BYTES_A_WORKER))) if free is not None else cores


def folder_of(dataset: str, data_dir: str, image_size: int) -> Path:
    """The folder of a prepared dataset, which need not exist yet."""
    root = local_folder(data_dir or tfds.core.constants.DATA_DIR, "--data_dir").absolute()
    return root / relative_folder(dataset, image_size)


def relative_folder(dataset: str, image_size: int) -> str:
    """The folder of a prepared dataset within data_dir."""
    version = imagenet.VERSION if dataset == imagenet.NAME else "1.0.0"
    return f"{dataset}_square/{image_size}/{version}"


def open_prepared(dataset: str, data_dir: str, image_size: int) -> tfds.core.DatasetBuilder | None:
    """Returns the builder of a prepared dataset, or None. Raises UsageError if its preparation is not finished."""
    folder = folder_of(dataset, data_dir, image_size)
    if (folder / "dataset_info.json").is_file():
        return tfds.builder_from_directory(folder)
    command = folder.with_name(folder.name + ".incomplete") / "command.txt"
    if command.is_file():
        raise UsageError(
            f"{folder} is not finished: its preparation was stopped, or is still running. To continue:\n"
            f"  {command.read_text()}"
        )
    return None


def read_statistics(builder: tfds.core.DatasetBuilder) -> Statistics | None:
    """The statistics of the split train that `prepare` stored with the records; None if it stored none."""
    path = Path(builder.data_dir) / _STATISTICS
    return Statistics.load(path) if path.is_file() else None


def how_to_prepare_imagenet(data_dir: str, image_size: int) -> str:
    """A text that says what to download, and with which command to prepare it."""
    command = _command("tars:FOLDER", data_dir, image_size, imagenet.NAME, "jpeg", "fatal")
    return (
        f"Download {imagenet.TARS[0]} (138 GB) and {imagenet.TARS[1]} (6.3 GB) from {imagenet.WHERE}, put both into "
        f"one FOLDER, and run this command once:\n  {command}\nThe unpacked tars (--source=folder:FOLDER) and the "
        "dataset that TFDS made of them (--source=tfds:imagenet2012) give the same."
    )


def _command(source, data_dir, image_size, dataset, encoding, broken):
    usual = {"data_dir": "", "dataset": imagenet.NAME, "encoding": "jpeg", "broken": "fatal"}
    options = {"source": source, "data_dir": data_dir, "image_size": image_size, "dataset": dataset}
    options |= {"encoding": encoding, "broken": broken}
    given = [f"--{name}={value}" for name, value in options.items() if usual.get(name) != value]
    return shlex.join(["python", "-m", "alexnet_jax", "prepare", *given])


def _check_options(dataset, encoding, broken, image_size):
    if not re.fullmatch("[a-z][a-z0-9_]*", dataset):
        raise UsageError(
            f"--dataset={dataset} is not a name; accepted are a-z, 0-9 and _, and the first must be a letter. "
            "Set another name."
        )
    for option, value, accepted in (("encoding", encoding, ENCODINGS), ("broken", broken, ("fatal", "skip"))):
        if value not in accepted:
            raise UsageError(
                f"--{option}={value} is not known; accepted are {' and '.join(accepted)}. Set one of them."
            )
    if image_size < 1:
        raise UsageError(f"--image_size={image_size}; accepted is an integer of at least 1. Set such a number.")


def _is_there(final, encoding):
    if not (final / "dataset_info.json").is_file():
        if final.exists() and any(final.iterdir()):
            raise UsageError(f"{final} exists, but has no dataset_info.json. Remove it, or give another --data_dir.")
        return False
    stored = encoding_of(tfds.builder_from_directory(final))
    if stored != encoding:
        raise UsageError(
            f"{final} was made with --encoding={stored}, but now --encoding={encoding} was given. Remove that folder, "
            "or give another --data_dir."
        )
    print(f"Already prepared: {final}; to make it again, remove that folder.")
    return True


def encoding_of(builder: tfds.core.DatasetBuilder) -> str:
    """How a prepared dataset stores its images: "jpeg" or "raw"."""
    return "jpeg" if isinstance(builder.info.features["image"], tfds.features.Image) else "raw"


def _begin(folder, command):
    """Writes the command to a file. Raises UsageError if another command has already made shards there."""
    path = folder / "command.txt"
    begun = path.read_text() if path.is_file() else command
    one, other = (text.replace(" --broken=skip", "") for text in (begun, command))
    if one != other and any((folder / "notes").glob("*.npz")):
        raise UsageError(f"{folder} was started with\n  {begun}\nContinue with this command, or remove {folder}.")
    write_whole(path, command)


def _prepare(work: Work, originals: Originals, workers: int, final: Path) -> None:
    for split, examples in originals.splits.items():
        classes = len({example.label for example in examples})
        print(f"{split}: {len(examples):,} images of {classes:,} of {len(originals.classes):,} classes")
    work.records.mkdir(exist_ok=True)
    (work.folder / "notes").mkdir(exist_ok=True)
    shards = plan(work, originals)
    todo = [shard for shard in shards if read_note(work, shard) is None]
    _clean(work, [shard for shard in shards if shard not in todo])
    _check_space(work, todo)
    total = sum(len(shard.examples) for shard in shards)
    done = total - sum(len(shard.examples) for shard in todo)
    with tqdm(desc="Preparing", total=total, initial=done, unit=" images", mininterval=1, dynamic_ncols=True) as bar:
        found = make_here(work, todo, bar) if workers == 1 else make_by_many(work, todo, workers, bar)
    if found and not work.skip:
        path = work.folder / "broken.txt"
        _write_lines(path, found)
        first = "\n  ".join(sorted(found)[:20])
        raise UsageError(
            f"Images that do not decode: {len(found):,}{', for example' if len(found) > 20 else ''}\n  {first}\n"
            f"All are listed in {path}; accepted are {ACCEPTED}. Repair or remove them, or leave them out with "
            f"--broken=skip. {SAME_COMMAND}"
        )
    _finish(work, originals, shards, final)


def _write_lines(path, lines):
    write_whole(path, "".join(f"{line}\n" for line in sorted(lines)))


def plan(work: Work, originals: Originals) -> list[Shard]:
    """Distributes the images over shards by hashes of their names, so that one image more or less changes only one."""
    shards = []
    for split, examples in originals.splits.items():
        count = number_of_shards(len(examples), work)
        dealt = [[] for _ in range(count)]
        for example in examples:
            key = digest_of(split, example.name)
            # The first bits of the digest. So the order of all records is that of their digests, as in folder:PATH.
            dealt[int.from_bytes(key) * count >> 128].append((key, example))
        for number, keyed in enumerate(dealt):
            examples = [example for _, example in sorted(keyed)]
            what = [work.name, work.image_size, work.encoding, work.upright, split, number, count]
            what += [originals.key, originals.classes]
            what += [(e.name, e.label, e.size, e.changed) for e in examples]
            digest = hashlib.blake2b(json.dumps(what).encode()).hexdigest()
            shards.append(Shard(split, number, count, examples, digest))
    return shards


def number_of_shards(images: int, work: Work) -> int:
    """Returns a power of two: the one that is nearest to 5,000 JPEGs or 200 MB of pixels per shard.

    A few more images seldom change it.
    """
    raw = work.encoding == "raw"
    shards = images * work.image_size**2 * 3 / _RAW_BYTES_A_SHARD if raw else images / _JPEGS_A_SHARD
    return 2 ** max(0, round(np.log2(max(shards, 1))))


def _clean(work, done):
    """Removes the files of a stopped command that cannot be used."""
    stays = {path for shard in done for path in (shard.path(work), shard.note(work))}
    goes = {*work.records.iterdir(), *(work.folder / "notes").iterdir()} - stays
    if stale := sum(path.suffix == ".npz" for path in goes):
        print(f"Shards to make again, because their images changed or do not decode: {stale:,}")
    for path in goes:
        path.unlink()


def _check_space(work, todo):
    pixels = work.image_size**2 * 3
    needed = sum(len(s.examples) for s in todo) * pixels * (1 if work.encoding == "raw" else _JPEG_TO_RAW)
    needed += sum(s.split == "train" for s in todo) * pixels * 4  # notes
    free = shutil.disk_usage(work.folder).free
    if needed > free:
        raise UsageError(
            f"{work.folder} has {free / 1e9:.1f} GB free, but this takes about {needed / 1e9:.1f} GB. Free some space, "
            "or give another --data_dir."
        )


def _finish(work, originals, shards, final):
    sums, broken, splits = Sums(work.image_size), [], {}
    label_counts = np.zeros(len(originals.classes), np.int64)
    for shard in shards:
        note = _checked_note(work, shard)
        splits.setdefault(shard.split, []).append((note["count"], note["size"]))
        broken += note["broken"]
        if shard.split == "train":
            sums.images += note["count"]
            sums.image += note["image"]
            sums.square += note["square"]
            label_counts[: len(note["labels"])] += note["labels"]
    for split, of_split in splits.items():
        if not any(count for count, _ in of_split):
            raise UsageError(f"Split {split} has no image that decodes; accepted are {ACCEPTED}. Repair its images.")
    features = tfds.features.FeaturesDict(
        {
            "image": _image_feature(work),
            "label": tfds.features.ClassLabel(names=originals.classes),
            "file_name": tfds.features.Text(),
        }
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count for count, _ in of_split],
            num_bytes=sum(size for _, size in of_split),
        )
        for split, of_split in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(work.records),
        features=features,
        split_infos=infos,
        version=final.name,
        check_data=False,
        supervised_keys=("image", "label"),
        description=f"{work.name}: {work.image_size} x {work.image_size} pixels, {work.encoding}",
    )
    if sums.images:
        dataclasses.replace(sums.statistics(), label_counts=label_counts).save(work.records / _STATISTICS)
    if broken:
        _write_lines(work.records / "broken.txt", broken)
        print(f"Left out because they do not decode: {len(broken):,}, listed in {final / 'broken.txt'}")
    for path in (*work.records.iterdir(), work.records):
        sync(path)
    work.records.rename(final)
    sync(final.parent)


def _image_feature(work):
    shape = (work.image_size, work.image_size, 3)
    if work.encoding == "jpeg":
        return tfds.features.Image(shape=shape, encoding_format="jpeg")
    return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)


def _checked_note(work, shard):
    """Returns the note of a shard. Raises UsageError unless the shard has as many records as the note says."""
    path = shard.path(work)
    if (note := read_note(work, shard)) is None:
        raise UsageError(f"{path} or {shard.note(work)} changed during the preparation. Check the disk. {SAME_COMMAND}")
    try:
        records = ArrayRecordReader(str(path)).num_records()
    except (RuntimeError, OSError, ValueError) as error:
        records = error
    if records != note["count"]:
        shard.note(work).unlink()
        raise UsageError(f"{path} has {records} instead of {note['count']} records. Check the disk. {SAME_COMMAND}")
    return note
