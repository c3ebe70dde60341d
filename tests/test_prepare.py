"""Originals become square records: whatever the source, however it was stopped, and by however many processes."""

import errno
import fcntl
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import small_imagenet as small
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax import cli
from alexnet_jax.data import imagenet, labels, originals, prepare, shards, sources
from alexnet_jax.data import workers as workers_lib
from alexnet_jax.data.images import decode_square
from alexnet_jax.errors import UsageError

ROOT = Path(__file__).parent.parent
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_folder(tmp_path_factory.mktemp("originals"), *small.files())


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    """Eight for these few images; one of them stays empty."""
    monkeypatch.setattr(prepare, "_JPEGS_A_SHARD", 2.3)
    monkeypatch.setattr(prepare, "_RAW_BYTES_A_SHARD", 2.3 * SIZE**2 * 3)


def make(folder, data_dir, workers=1, **options):
    return prepare.prepare(f"folder:{folder}", str(data_dir), SIZE, workers=workers, **options)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_JPEGS_A_SHARD", 2.3)
        return make(folder, tmp_path_factory.mktemp("whole"))


def records(builder, split):
    """file_name -> (bytes of the image, label), in the order of the records."""
    examples = [
        tf.train.Example.FromString(record).features.feature
        for record in builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    ]
    return {
        e["file_name"].bytes_list.value[0].decode(): (e["image"].bytes_list.value[0], e["label"].int64_list.value[0])
        for e in examples
    }


def square(name, content, size=SIZE):
    """The square of a file of ImageNet."""
    return decode_square(imagenet.as_tfds_stores(name, content), size, exact=True)


# What is made


@pytest.mark.parametrize("source", ["tars", "flat", "tfrecord", "array_record"])
def test_every_source_of_the_same_images_gives_the_same_bytes(source, whole, tmp_path):
    if source == "flat":
        place = f"folder:{small.write_folder(tmp_path / 'in', *small.files(), flat=True)}"
    else:
        tars = small.write_tars(tmp_path / "in", *small.files())
        place = f"tars:{tars}" if source == "tars" else f"tfds:{imagenet.NAME}"
    if source in ("tfrecord", "array_record"):
        builder = tfds.builder(imagenet.NAME, data_dir=str(tmp_path), file_format=source)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(tars)))
    made = prepare.prepare(place, str(tmp_path), SIZE, workers=1)
    assert made == tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0"
    assert small.contents(made) == small.contents(whole)
    assert [path.name for path in made.parent.iterdir()] == ["5.1.0"]


def test_the_files_of_a_dataset(whole):
    shards = [f"imagenet2012_square-train.array_record-{n:05d}-of-00008" for n in range(8)]
    shards += [f"imagenet2012_square-validation.array_record-{n:05d}-of-00002" for n in range(2)]
    others = ["dataset_info.json", "features.json", "label.labels.txt", "statistics.npz"]
    assert sorted(small.contents(whole)) == sorted(shards + others)
    lengths = tfds.builder_from_directory(whole).info.splits["train"].shard_lengths
    assert (len(lengths), sum(lengths), min(lengths)) == (8, len(small.TRAIN), 0)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_tfds_reads_names_labels_and_images(encoding, folder, whole, tmp_path):
    made = whole if encoding == "jpeg" else make(folder, tmp_path, encoding=encoding)
    builder = tfds.builder_from_directory(made)
    assert builder.info.supervised_keys == ("image", "label")
    for split, files in zip(("train", "validation"), small.files(), strict=True):
        stored = records(builder, split)
        assert stored.keys() == files.keys()
        assert list(stored) != sorted(stored)  # shuffled
        for name, (content, label) in stored.items():
            assert builder.info.features["label"].int2str(label) == labels.synset_of(name)
            if encoding == "raw":
                assert content == square(name, files[name]).tobytes()
            else:
                assert content == tf.io.encode_jpeg(square(name, files[name]), quality=95).numpy()
        for example, (name, (content, label)) in zip(builder.as_data_source(split), stored.items(), strict=True):
            pixels = np.frombuffer(content, np.uint8) if encoding == "raw" else tf.io.decode_jpeg(content).numpy()
            # TFDS decodes JPEG with another library, whose rounding differs.
            off = np.abs(example["image"].astype(int) - pixels.reshape(SIZE, SIZE, 3))
            assert off.max() <= (0 if encoding == "raw" else 8)
            assert (example["file_name"].decode(), example["label"]) == (name, label)


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_statistics_are_those_of_the_images_that_training_reads(encoding, folder, whole, tmp_path):
    made = whole if encoding == "jpeg" else make(folder, tmp_path, encoding=encoding)
    data = sources.open_dataset(
        "imagenet2012", str(made.parents[2]), image_size=SIZE, train_split="train", eval_split=""
    )
    assert (data.num_classes, data.evaluation.name) == (1000, "imagenet2012, split validation")
    stored, _ = data.train.read(range(len(data.train)))
    images = np.stack(stored if encoding == "raw" else [decode_square(p, SIZE) for p in stored]).astype(np.float64)
    np.testing.assert_allclose(data.statistics.mean_image, images.mean(0), rtol=0, atol=1e-9)
    values, vectors = np.linalg.eigh(np.cov(images.reshape(-1, 3).T / 255, bias=True))
    np.testing.assert_allclose(data.statistics.pca.eigenvalues[::-1], values, rtol=1e-9)
    ours = data.statistics.pca.eigenvectors
    np.testing.assert_allclose(
        (ours * data.statistics.pca.eigenvalues) @ ours.T, (vectors * values) @ vectors.T, atol=1e-9
    )
    part = sources.open_dataset("imagenet2012", str(made.parents[2]), image_size=SIZE, train_split=None, eval_split="")
    assert part.statistics is None  # of another split


def test_two_processes_give_the_bytes_of_one(folder, whole, tmp_path):
    assert small.contents(make(folder, tmp_path, workers=2)) == small.contents(whole)


def test_a_dataset_of_one_s_own_is_opened_by_its_name(tmp_path):
    for path in ("train/cat/1.jpg", "train/dog/1.jpg", "val/dog/2.jpg"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(small.encoded(path, (40, 50)))
    made = make(tmp_path / "in", tmp_path, dataset="pets")
    assert made == tmp_path / "pets_square" / str(SIZE) / "1.0.0"
    data = sources.open_dataset("pets", str(tmp_path), image_size=SIZE, train_split="train", eval_split="")
    assert data.class_names == ["cat", "dog"]
    assert sorted(data.train.describe(i) for i in range(2)) == [
        "cat/1.jpg of pets, split train",
        "dog/1.jpg of pets, split train",
    ]
    assert data.evaluation.read([0])[1].tolist() == [1]


def test_shards_hold_about_what_is_said(monkeypatch):
    monkeypatch.undo()
    work = lambda size, encoding: prepare.Work(None, "", size, encoding, False, "", False, True)  # noqa: E731
    images = (1, 7_000, 7_100, 50_000, 1_281_167, 1_281_100)
    assert [prepare.number_of_shards(n, work(256, "jpeg")) for n in images] == [1, 1, 2, 8, 256, 256]
    assert [prepare.number_of_shards(n, work(256, "raw")) for n in images] == [1, 8, 8, 64, 1024, 1024]
    assert prepare.number_of_shards(1_281_167, work(32, "raw")) == 16


def test_the_default_folder_is_that_of_tfds():
    path = prepare.folder_of("pets", "", 256)
    assert str(path) == os.path.expanduser(f"{tfds.core.constants.DATA_DIR}/pets_square/256/1.0.0")


# Images that are broken


def corpus():
    """name -> bytes, and name -> the square that it must become or the reason why it does not."""
    image = small.image("corpus", (48, 60))
    good = tf.io.encode_jpeg(image, quality=100).numpy()
    long = small.image("long", (20, 10_000))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = tf.io.encode_png(image.astype(np.uint16) * 257).numpy()
    grey = tf.io.encode_jpeg(image[..., :1], quality=100).numpy()
    huge_png = bytearray(tf.io.encode_png(image).numpy())
    huge_png[16:24] = (65000).to_bytes(4) * 2
    huge_jpeg = bytearray(good)
    at = huge_jpeg.index(b"\xff\xc0") + 5
    huge_jpeg[at : at + 4] = (65000).to_bytes(2) * 2
    files = {
        "truncated": (good[: len(good) // 2], None),
        "empty": (b"", "it is empty"),
        "text": (b"<html>404 Not Found</html>", "so it is not an image"),
        "huge png": (bytes(huge_png), "claims 65000 x 65000 pixels"),
        "huge jpeg": (bytes(huge_jpeg), "claims 65000 x 65000 pixels"),
        "cmyk": (small.saved(Image.fromarray(image).convert("CMYK"), "JPEG", quality=100), image),
        "16 bits": (deep, image),
        "one pixel": (tf.io.encode_png(image[:1, :1]).numpy(), image[:1, :1]),
        "long": (tf.io.encode_png(long).numpy(), long),
        "gif": (small.saved(Image.fromarray(image).quantize(256), "GIF"), image),
        "exif": (small.saved(Image.fromarray(np.rot90(image)), "JPEG", quality=100, exif=turned), image),
        "grey": (grey, np.repeat(image[..., :1], 3, -1)),
    }
    return {f"{name}.JPEG": content for name, content in files.items()}


def reference(image):
    """Shorter side to SIZE and the central square, by Pillow."""
    height, width = image.shape[:2]
    shape = [round(side * SIZE / min(height, width)) for side in (width, height)]
    image = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR), int)
    top, left = ((side - SIZE) // 2 for side in image.shape[:2])
    return image[top : top + SIZE, left : left + SIZE]


@pytest.fixture
def bad(tmp_path):
    root = tmp_path / "in"
    for name, (content, _) in corpus().items():
        for split in ("train", "val"):
            (root / split / "all").mkdir(parents=True, exist_ok=True)
            (root / split / "all" / name).write_bytes(content)
    return root


def test_every_odd_file_becomes_the_right_image_or_is_reported(bad, tmp_path, capsys):
    broken = {name: reason for name, (_, reason) in corpus().items() if not isinstance(reason, np.ndarray)}
    with pytest.raises(UsageError) as error:
        make(bad, tmp_path, dataset="odd", encoding="raw")
    message = str(error.value)
    assert message.startswith(f"Images that do not decode: {2 * len(broken)}\n")
    told = dict(re.findall(r"^  (.*?): (.*)$", message, re.MULTILINE))
    assert sorted(told) == sorted(f"{split}/all/{name}" for split in ("train", "val") for name in broken)
    assert all(reason in told[f"val/all/{name}"] for name, reason in broken.items() if reason)
    listed = tmp_path / "odd_square" / str(SIZE) / "1.0.0.incomplete" / "broken.txt"
    assert str(listed) in message
    assert listed.read_text().splitlines() == [f"{name}: {reason}" for name, reason in sorted(told.items())]
    assert not listed.parent.with_name("1.0.0").exists()

    made = make(bad, tmp_path, dataset="odd", encoding="raw", broken="skip")
    assert (made / "broken.txt").read_text().splitlines() == [f"{n}: {r}" for n, r in sorted(told.items())]
    assert f"Left out because they do not decode: {2 * len(broken)}, " in capsys.readouterr().out
    stored = records(tfds.builder_from_directory(made), "val")
    assert sorted(stored) == sorted(f"all/{name}" for name in corpus() if name not in broken)
    for name, (content, _) in stored.items():
        difference = np.frombuffer(content, np.uint8).reshape(SIZE, SIZE, 3) - reference(corpus()[Path(name).name][1])
        assert np.abs(difference).mean() < (4 if "gif" in name or "cmyk" in name else 1.5), name

    for name in broken:
        for split in ("train", "val"):
            (bad / split / "all" / name).unlink()
    clean = small.contents(make(bad, tmp_path / "clean", dataset="odd", encoding="raw"))
    assert clean == {name: content for name, content in small.contents(made).items() if name != "broken.txt"}


def test_only_the_first_twenty_are_told(folder, tmp_path):
    val = small.files()[1]
    root = small.write_folder(tmp_path / "in", dict.fromkeys((f"n01440764_{n}.JPEG" for n in range(25)), b"?"), val)
    with pytest.raises(UsageError, match="Images that do not decode: 25, for example") as error:
        make(root, tmp_path)
    assert str(error.value).count("so it is not an image") == 20
    with pytest.raises(UsageError, match="Split train has no image that decodes"):
        make(root, tmp_path, broken="skip")


@pytest.mark.parametrize("first", ["fatal", "skip"])
def test_after_a_repair_only_the_shards_of_broken_files_are_made_again(first, folder, whole, tmp_path, monkeypatch):
    name = "n15075141_10030.JPEG"
    root = small.write_folder(
        tmp_path / "in", *({n: b"?" if n == name else c for n, c in f.items()} for f in small.files())
    )
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(UsageError("stopped before the end")))
        with pytest.raises(UsageError, match=f"train/{name}: |stopped before"):
            make(root, tmp_path, broken=first)
    (root / "train" / name[:9] / name).write_bytes(small.encoded(name, small.TRAIN[name]))
    made, make_shard = [], shards.make_shard
    monkeypatch.setattr(workers_lib, "make_shard", lambda w, s, t: (made.append(s), make_shard(w, s, t))[1])
    assert small.contents(make(root, tmp_path)) == small.contents(whole)
    assert [any(example.name == name for example in shard.examples) for shard in made] == [True]


# Stopped, and gone on with


def stop_at(monkeypatch, module, function, times):
    """Lets a function fail at its call of that number."""
    real, calls = getattr(module, function), iter(range(10**6))

    def fails(*arguments, **options):
        if next(calls) == times:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, function, fails)


@pytest.mark.parametrize(
    ("module", "function", "times"),
    [
        (prepare, "list_originals", 0),
        (originals, "read", 0),
        (shards, "decode_square", 9),
        (shards, "write_whole", 3),
        (shards, "ArrayRecordWriter", 4),
        (os, "fsync", 6),
        (prepare, "ArrayRecordReader", 1),
        (tfds.folder_dataset, "write_metadata", 0),
        (prepare.Sums, "statistics", 0),
        (Path, "rename", 10),  # the last one
        (prepare.shutil, "rmtree", 0),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_was_stopped_anywhere_goes_on_to_the_same_bytes(module, function, times, folder, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_JPEGS_A_SHARD", 2.3)
        patch.setattr(shards, "read", lambda *arguments: originals.read(*arguments))
        stop_at(patch, module, function, times)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    final = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0"
    assert final.exists() == (function == "rmtree")
    if not final.exists():
        with pytest.raises(UsageError, match="is not finished") as error:
            sources.open_dataset("imagenet2012", str(tmp_path), image_size=SIZE, train_split="train", eval_split="")
        assert f"prepare --source=folder:{folder} --data_dir={tmp_path} --image_size={SIZE}" in str(error.value)
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)
    assert [path.name for path in final.parent.iterdir()] == ["5.1.0"]


def test_what_is_done_is_not_done_again(folder, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "read", lambda *_: pytest.fail("read again"))
        assert small.contents(make(folder, tmp_path)) == small.contents(whole)


@pytest.mark.parametrize("change", ["removed", "replaced", "shard", "note"])
def test_what_changed_meanwhile_is_done_again(change, folder, tmp_path, monkeypatch, capsys):
    files = small.files()
    root = small.write_folder(tmp_path / "in", *files)
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make(root, tmp_path)
    work = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0.incomplete"
    if change == "removed":
        (root / "train" / "n15075141" / "n15075141_10030.JPEG").unlink()
    if change == "replaced":
        other = files[0]["n15075141_10031.JPEG"]
        (root / "train" / "n15075141" / "n15075141_10030.JPEG").write_bytes(other)
    if change == "shard":
        next((work / "records").glob("*train*")).unlink()
    if change == "note":
        note = next((work / "notes").glob("*train*"))
        note.write_bytes(bytes(byte ^ (at == 1000) for at, byte in enumerate(note.read_bytes())))  # in the sums
    capsys.readouterr()
    made = small.contents(make(root, tmp_path))
    assert "Shards to make again, because their images changed or do not decode: 1\n" in capsys.readouterr().out
    assert made == small.contents(make(root, tmp_path / "new"))


def test_left_out_earlier_is_broken_still(tmp_path, monkeypatch):
    train, val = small.files()
    root = small.write_folder(tmp_path / "in", train | {small.CMYK: b"?"}, val)
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make(root, tmp_path, broken="skip")
    with pytest.raises(UsageError, match="Images that do not decode: 1\\n"):
        make(root, tmp_path)


def test_what_is_done_is_not_lost_to_another_command(folder, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path, broken="skip")
    work = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0.incomplete"
    done = small.contents(work)
    other = small.write_folder(tmp_path / "other", *small.files())
    for source, encoding in ((folder, "raw"), (other, "jpeg")):
        with pytest.raises(UsageError) as error:
            make(source, tmp_path, encoding=encoding)
        message = (
            f"{work} was started with\n  {' '.join(['python', *command(folder, tmp_path, '--broken=skip')[1:]])}\n"
        )
        assert str(error.value) == f"{message}Continue with this command, or remove {work}."
    assert small.contents(work) == done
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)


def test_another_command_may_follow_one_that_did_nothing(folder, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        make("/none", tmp_path)
    assert make(folder, tmp_path, encoding="raw").is_dir()


def test_a_relative_folder_goes_on_from_anywhere_by_the_command_that_is_told(folder, whole, tmp_path, monkeypatch):
    (tmp_path / "my images").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make("my images", "data", broken="skip")
    monkeypatch.chdir("/")
    with pytest.raises(UsageError) as error:
        sources.open_dataset("imagenet2012", str(tmp_path / "data"), image_size=SIZE, train_split=None, eval_split="")
    told = shlex.split(str(error.value).splitlines()[-1])
    assert told[1:] == command(tmp_path / "my images", tmp_path / "data", "--broken=skip")[1:]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "read", lambda *_: pytest.fail("read again"))
        cli.main([*told[3:], "--workers=1"])
    assert small.contents(prepare.folder_of("imagenet2012", str(tmp_path / "data"), SIZE)) == small.contents(whole)


def test_a_folder_that_is_there_already_and_no_dataset_is_refused_at_once(folder, tmp_path, monkeypatch):
    final = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0"
    final.mkdir(parents=True)
    (final / "of mine").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "list_originals", lambda *_: pytest.fail("listed"))
        with pytest.raises(UsageError, match=f"^{final} exists, but has no dataset_info.json. Remove it"):
            make(folder, tmp_path)
    (final / "of mine").unlink()
    assert make(folder, tmp_path) == final


def test_all_is_on_the_disk_before_it_has_its_name(folder, tmp_path, monkeypatch):
    synced, real = [], prepare.sync
    for module in (prepare, shards):
        monkeypatch.setattr(module, "sync", lambda path: (synced.append(path), real(path)))
    final = make(folder, tmp_path)
    *files, records, parent = synced[-len(list(final.iterdir())) - 2 :]
    assert {path.name for path in files} == {path.name for path in final.iterdir()}
    assert {path.parent for path in files} == {records}
    assert parent == final.parent


def test_what_a_killed_command_left_is_removed(folder, whole, tmp_path):
    left = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0.incomplete" / "records"
    left.mkdir(parents=True)
    for number, ending in ((0, "00008.123.partial"), (5, "00064")):
        (left / f"imagenet2012_square-train.array_record-{number:05d}-of-{ending}").write_bytes(b"old")
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)


def test_a_shard_that_does_not_open_is_found_at_the_end(folder, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, prepare, "_finish", 0)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path)
    work = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0.incomplete"
    path = max((work / "records").glob("*train*"))
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(UsageError, match=f"{path.name} has .* instead of"):
        make(folder, tmp_path)
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)


def command(folder, data_dir, *options):
    arguments = ["prepare", f"--source=folder:{folder}", f"--data_dir={data_dir}", f"--image_size={SIZE}", *options]
    return [sys.executable, "-m", "alexnet_jax", *arguments]


def many_shards(arguments):
    """The command `arguments` with 32 shards for the 4,000 images below."""
    program = (
        "from alexnet_jax.data import prepare; prepare._JPEGS_A_SHARD = 125; from alexnet_jax import cli; cli.main()"
    )
    return [sys.executable, "-c", program, *arguments[3:]]


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_bytes(faults, tmp_path):
    draw, wanted = random.Random(0), faults(6)
    train, val = small.files()
    train |= {f"n01440764_{n}.JPEG": small.encoded(str(n), (300, 400)) for n in range(4000)}
    folder = small.write_folder(tmp_path / "in", train, val)
    final = Path("imagenet2012_square") / str(SIZE) / "5.1.0"
    started = time.monotonic()
    subprocess.run(
        many_shards(command(folder, tmp_path / "whole", "--workers=2")), cwd=ROOT, check=True, capture_output=True
    )
    took = time.monotonic() - started
    kills, made = 0, tmp_path / "made"
    while kills < wanted or made.exists():
        process = subprocess.Popen(
            many_shards(command(folder, made, "--workers=2")),
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert process.wait(draw.uniform(0.4 * took, took) if kills < wanted else 300) == 0
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            kills += 1
            _, left = psutil.wait_procs(children, timeout=30)
            assert not left
            if (made / final).exists():  # killed after the last step, the rename
                assert small.contents(made / final) == small.contents(tmp_path / "whole" / final)
        else:
            assert small.contents(made / final) == small.contents(tmp_path / "whole" / final)
            shutil.rmtree(made)


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line(tmp_path):
    train = {f"n01440764_{n}.JPEG": small.encoded(str(n), (300, 400)) for n in range(6000)}
    folder = small.write_folder(tmp_path / "in", train, small.files()[1])
    process = subprocess.Popen(
        command(folder, tmp_path, "--workers=2"), cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.rglob("*.partial")):
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "Stopped; the same command continues from there."
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("*.partial"))


def test_an_interrupt_is_a_line_and_130(folder, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, prepare, "list_originals", 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(command(folder, tmp_path)[3:])
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith("Stopped; the same command continues from there.\n")


def test_a_worker_that_is_killed_is_told(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_lib, "_make_in_worker", _kill_itself)
    for _ in range(3):  # once, on a busy machine, a worker died while it started, and no image was named
        with pytest.raises(UsageError, match=r"A worker died\. .* were at these images: ") as told:
            make(folder, tmp_path, workers=2)
        if "none yet" not in str(told.value):
            break
    assert re.search(r"(train|validation)/\w+\.JPEG", str(told.value))
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "_JPEGS_A_SHARD", 2.3)
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)


def _kill_itself(index, shard):
    _, progress, _ = workers_lib._worker
    progress[index] = len(shard.examples)
    os.kill(os.getpid(), signal.SIGKILL)


# The disk, and others


@pytest.mark.parametrize(
    "limit", [pytest.param(1_000, marks=pytest.mark.slow), 60_000, pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_a_disk_that_is_full_is_told_and_nothing_looks_whole(limit, folder, whole, tmp_path):
    program = (
        "import resource; from alexnet_jax.data import prepare; prepare._JPEGS_A_SHARD = 2.3\n"
        "from alexnet_jax import cli\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); cli.main()"
    )
    arguments = command(folder, tmp_path, "--workers=1")[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^error: .*File too large.*The same command continues", done.stderr, re.MULTILINE), done.stderr
    final = tmp_path / "imagenet2012_square" / str(SIZE) / "5.1.0"
    assert not final.exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)


def test_too_little_space_is_told_before_the_work(folder, tmp_path, monkeypatch):
    usage = prepare.shutil.disk_usage("/")
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    monkeypatch.setattr(shards, "read", lambda *_: pytest.fail("work began"))
    with pytest.raises(UsageError, match=r"has 0.0 GB free, but this takes about 0.0 GB"):
        make(folder, tmp_path)


def test_a_second_command_on_the_same_is_refused(folder, tmp_path, monkeypatch):
    def another(*arguments):
        with pytest.raises(UsageError, match=f"Another `prepare` is using .*: process {os.getpid()} on "):
            make(folder, tmp_path)
        return real(*arguments)

    real = prepare.list_originals
    monkeypatch.setattr(prepare, "list_originals", another)
    assert make(folder, tmp_path).is_dir()


def test_where_nothing_can_be_locked_it_goes_on_and_says_so(folder, whole, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    assert small.contents(make(folder, tmp_path)) == small.contents(whole)
    assert "cannot be locked (No locks available). Do not start a second `prepare` there." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("meminfo", "workers"), [("MemAvailable:  1500000 kB", 2), ("MemAvailable: 9 kB", 1), ("MemFree: 9 kB", 8)]
)
def test_workers_are_as_many_as_there_is_memory_for(meminfo, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: meminfo)
    assert prepare._default_workers() == workers


def test_what_is_there_is_not_made_again(folder, whole, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "list_originals", lambda *_: pytest.fail("listed"))
    assert make(folder, whole.parents[2]) == whole
    assert f"Already prepared: {whole}; to make it again, remove that folder." in capsys.readouterr().out
    with pytest.raises(UsageError, match="was made with --encoding=jpeg, but now --encoding=raw was given"):
        make(folder, whole.parents[2], encoding="raw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "My Pets"}, "--dataset=My Pets is not a name"),
        ({"encoding": "webp"}, "--encoding=webp is not known; accepted are jpeg and raw"),
        ({"broken": "ignore"}, "--broken=ignore is not known; accepted are fatal and skip"),
    ],
)
def test_wrong_options(options, message, folder, tmp_path):
    with pytest.raises(UsageError, match=message):
        make(folder, tmp_path, **options)


@pytest.mark.parametrize("change", [{"file": "/none/x.JPEG"}, {"size": 9}])
def test_a_file_that_changes_is_fatal_even_where_broken_ones_are_skipped(change, folder, tmp_path, monkeypatch):
    real = prepare.list_originals

    def changes(*arguments):
        found = real(*arguments)
        found.splits["train"][0] = found.splits["train"][0]._replace(**change)
        return found

    monkeypatch.setattr(prepare, "list_originals", changes)
    with pytest.raises(UsageError, match=r"cannot be read .*(/none/x.JPEG|of 9 bytes)"):
        make(folder, tmp_path, broken="skip")


def test_an_image_more_or_less_changes_one_shard(folder, tmp_path):
    found = originals.list_originals(f"folder:{folder}", imagenet.NAME, "", tmp_path / "list.json")
    work = prepare.Work(tmp_path, "x", SIZE, "jpeg", False, "file", True, False)
    before = {(s.split, s.number): s.digest for s in prepare.plan(work, found)}
    found.splits["train"].pop(5)
    after = {(s.split, s.number): s.digest for s in prepare.plan(work, found)}
    assert before.keys() == after.keys()
    assert sum(before[key] != after[key] for key in before) == 1
