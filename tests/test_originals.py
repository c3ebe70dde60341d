"""Folders, ImageNet's tars and TFDS's datasets are listed and read alike; what is wrong with them is said."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_imagenet as small
import tensorflow as tf
import tensorflow_datasets as tfds

from alexnet_jax.data import imagenet, labels, originals
from alexnet_jax.errors import UsageError

NAME = imagenet.NAME


def tfds_from_tars(tars, data_dir, file_format):
    """TFDS's own imagenet2012, made by its own program."""
    builder = tfds.builder(NAME, data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(tars)))
    return builder


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return small.write_tars(tmp_path_factory.mktemp("tars"), *small.files())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from alexnet_jax.data.digits import Digits

    data_dir = tmp_path_factory.mktemp("digits")
    Digits(data_dir=str(data_dir)).download_and_prepare(file_format="array_record")
    return next(data_dir.rglob("dataset_info.json")).parent


def listed(source, tmp_path, dataset=NAME, data_dir=""):
    return originals.list_originals(source, dataset, str(data_dir), tmp_path / "list.json")


def by_name(found):
    """split -> name -> (label, bytes)"""
    read = lambda example: (example.label, originals.read(found.kind, example))  # noqa: E731
    return {split: {e.name: read(e) for e in examples} for split, examples in found.splits.items()}


def expected():
    classes = labels.synsets()
    return {
        split: {name: (classes.index(labels.synset_of(name)), content) for name, content in files.items()}
        for split, files in zip(("train", "validation"), small.files(), strict=True)
    }


@pytest.mark.parametrize("source", ["tars", "folder", "flat"])
def test_names_labels_and_bytes_of_imagenet_as_it_was_published(source, tars, tmp_path):
    place = tars if source == "tars" else small.write_folder(tmp_path / "in", *small.files(), flat=source == "flat")
    found = listed(f"{'tars' if source == 'tars' else 'folder'}:{place}", tmp_path)
    assert by_name(found) == expected()
    assert found.classes == labels.synsets()


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_names_labels_and_bytes_of_tfds_s_own_dataset(file_format, tars, tmp_path):
    builder = tfds_from_tars(tars, tmp_path, file_format)
    wanted = {
        split: {name: (label, imagenet.as_tfds_stores(name, content)) for name, (label, content) in files.items()}
        for split, files in expected().items()
    }
    for source in (f"tfds:{NAME}", f"tfds:{builder.data_dir}"):
        found = listed(source, tmp_path, data_dir=tmp_path)
        assert found.kind == file_format
        assert by_name(found) == wanted
    os.remove(next(iter(builder.info.splits["train"].filepaths)))
    with pytest.raises(UsageError, match="-00000-of-00001 cannot be read"):
        listed(f"tfds:{NAME}", tmp_path, data_dir=tmp_path)


def test_a_list_of_tars_is_kept_until_they_change(tars, tmp_path, monkeypatch):
    first = listed(f"tars:{tars}", tmp_path)
    monkeypatch.setattr(originals, "_train_members", lambda *_: pytest.fail("listed again"))
    assert listed(f"tars:{tars}", tmp_path) == first
    os.utime(tars / imagenet.TARS[1], ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        listed(f"tars:{tars}", tmp_path)


def test_a_folder_of_one_s_own_has_its_own_splits_and_classes(tmp_path):
    for name in ("train/cat/1.JPEG", "train/dog/1.JPEG", "val/cow/x.gif", "val/.hidden/a.jpg", "val/cow/.b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    (tmp_path / "in" / "test").mkdir()
    (tmp_path / "in" / "test" / "1.jpg").write_bytes(b"")
    found = listed(f"folder:{tmp_path}/in", tmp_path, "mine")
    assert found.classes == ["cat", "cow", "dog"]
    assert by_name(found) == {
        "train": {"cat/1.JPEG": (0, b"train/cat/1.JPEG"), "dog/1.JPEG": (2, b"train/dog/1.JPEG")},
        "val": {"cow/x.gif": (1, b"val/cow/x.gif")},
    }


def test_records_without_names_are_named_by_their_position(digits, tmp_path):
    found = listed(f"tfds:{digits}", tmp_path, "numbers")
    assert [len(examples) for examples in found.splits.values()] == [4000, 1000]
    assert found.splits["test"][17].name == "00000017"
    builder = tfds.builder_from_directory(digits)
    images = builder.as_data_source("test")
    assert found.splits["test"][17].label == images[17]["label"]
    content = originals.read(found.kind, found.splits["test"][17])
    assert np.array_equal(tfds.core.utils.image_utils.decode_image(content), images[17]["image"])


@pytest.mark.parametrize(
    ("source", "dataset", "message"),
    [
        ("nothing", NAME, "--source=nothing is not known; accepted are tfds:NAME, tars:FOLDER"),
        ("folder:", NAME, "--source=folder: is not known"),
        ("folder:/none", NAME, "folder:/none: there is no such folder"),
        ("tars:/none", NAME, "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found in /none"),
        ("tars:/none", "mine", "tars: accepts only the tars of imagenet2012. Unpack those of mine; "),
        ("tfds:nothing_such", NAME, "TFDS does not know this dataset"),
        ("tfds:cifar10:9.9.9", "mine", "TFDS does not know this dataset, or not this version of it"),
        ("tfds:imagenet2012", NAME, "tfds:imagenet2012 is not in"),
    ],
)
def test_a_source_that_is_not_there(source, dataset, message, tmp_path):
    with pytest.raises(UsageError) as error:
        listed(source, tmp_path, dataset, tmp_path)
    assert message in str(error.value)


def test_a_dataset_of_a_package_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: (_ for _ in ()).throw(ModuleNotFoundError("a package")))
    with pytest.raises(UsageError, match="tfds:huggingface:mnist: TFDS does not know this dataset"):
        listed("tfds:huggingface:mnist", tmp_path, "mine")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train/cat/1.JPEG", "holds 'cat', which is not one of the 1000 classes"),
        ("train/n01440764/n15075141_1.JPEG", "but by its name it belongs to the class n15075141"),
        ("val/n01440764/ILSVRC2012_val_00000001.JPEG", "by its name it belongs to the class n01751748"),
        ("val/ILSVRC2012_val_00050001.JPEG", "accepted are ILSVRC2012_val_00000001.JPEG to"),
        ("train/n01440764_3.JPEG", "is not in a class folder"),
        ("train/n01440764/images/n01440764_3.JPEG", "images is not a file; accepted is SPLIT/CLASS/FILE"),
        ("validation/ILSVRC2012_val_00000001.JPEG", "two files have the name ILSVRC2012_val_00000001.JPEG"),
        ("train/n01440764/a\nb.JPEG", "cannot be printed"),
    ],
)
def test_what_is_wrong_with_a_folder_of_imagenet_is_named(path, message, tmp_path):
    small.write_folder(tmp_path / "in", *small.files())
    (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / path).write_bytes(b"")
    with pytest.raises(UsageError) as error:
        listed(f"folder:{tmp_path}/in", tmp_path)
    assert message in str(error.value)


def test_a_folder_of_imagenet_without_both_splits_is_refused(tmp_path):
    small.write_folder(tmp_path / "in", small.files()[0], {})
    with pytest.raises(UsageError, match="/in holds train; accepted are the folders train and val"):
        listed(f"folder:{tmp_path}/in", tmp_path)
    with pytest.raises(UsageError, match=r"/in/train holds n01440764, .*n15075141; .* Give the folder that holds"):
        listed(f"folder:{tmp_path}/in/train", tmp_path)
    (tmp_path / "in" / "val").mkdir()
    with pytest.raises(UsageError, match="/in holds no images of validation"):
        listed(f"folder:{tmp_path}/in", tmp_path)


def test_what_is_left_out_or_too_little_is_told(tmp_path, capsys):
    small.write_folder(tmp_path / "in", *small.files())
    (tmp_path / "in" / "test").mkdir()
    listed(f"folder:{tmp_path}/in", tmp_path)
    told = capsys.readouterr().out
    assert f"Left out: {tmp_path}/in/test, which is neither train nor val.\n" in told
    assert "has 18 images of 4 classes for train, but the complete imagenet2012 has 1,281,167 of 1,000." in told
    assert "has 6 images of 6 classes for validation, but the complete imagenet2012 has 50,000 of 1,000." in told


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("cat/1.jpg", "/cat/1.jpg is not in a class folder; .* If cat is a class, give the folder that .*/in "),
        ("all/cat/1.jpg", "/all: the name of a split must have only letters, digits and _, and must not be `all`"),
        ("train/cat /1.jpg", "/train/cat ': the name of a class must not start or end with a blank"),
    ],
)
def test_what_is_wrong_with_a_folder_of_one_s_own_is_named(path, message, tmp_path):
    (tmp_path / "in" / path).parent.mkdir(parents=True)
    (tmp_path / "in" / path).write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        listed(f"folder:{tmp_path}/in", tmp_path, "mine")


def test_a_source_means_the_same_in_any_folder(digits, monkeypatch):
    monkeypatch.chdir(digits.parent)
    assert originals.absolute("tars:in") == f"tars:{digits.parent}/in"
    assert originals.absolute("folder:~/in") == f"folder:{Path.home()}/in"
    assert originals.absolute("tfds:cifar10") == "tfds:cifar10"
    assert originals.absolute(f"tfds:{digits.name}") == f"tfds:{digits}"


def harmed(tar, damage):
    """A tar without the last of its files, which tarfile takes for whole."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as whole:
        *others, last = whole
    at = last.offset
    if damage == "a byte":
        tar = tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :]
    else:
        tar = tar[: at + (100 if damage == "cut within a header" else 0)]
    with tarfile.open(fileobj=io.BytesIO(tar)) as harmed:
        assert len(list(harmed)) == len(others)
    return tar


@pytest.mark.parametrize("damage", ["cut between files", "cut within a header", "a byte"])
@pytest.mark.parametrize("which", [*imagenet.TARS, "a class"])
def test_a_tar_of_which_tarfile_misses_the_end_is_refused(which, damage, tmp_path):
    train, val = small.files()
    small.write_tars(tmp_path, train, val)
    path = tmp_path / (imagenet.TARS[0] if which == "a class" else which)
    if which == "a class":
        classes = small.class_tars(train)
        path.write_bytes(small.tar(classes | {"n01440764.tar": harmed(classes["n01440764.tar"], damage)}))
    else:
        path.write_bytes(harmed(path.read_bytes(), damage))
    with pytest.raises(UsageError, match=f"{path} is not a complete tar .it ends early, or a header is damaged"):
        listed(f"tars:{tmp_path}", tmp_path)


@pytest.mark.parametrize("tar", imagenet.TARS)
@pytest.mark.parametrize("at", [0.5, 1])
def test_a_tar_that_is_cut_off_is_refused(tar, at, tars, tmp_path):
    for name in imagenet.TARS:
        content = (tars / name).read_bytes().rstrip(b"\0")[:-20]  # the last image lacks its end
        content = content if name == tar else (tars / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(at * len(content))] if name == tar else content)
    with pytest.raises(UsageError, match="not a complete tar"):
        listed(f"tars:{tmp_path}", tmp_path)


def test_tfds_s_data_of_other_classes_or_features_is_refused(digits, tmp_path):
    with pytest.raises(UsageError, match="does not have the 1000 classes of imagenet2012"):
        listed(f"tfds:{digits}", tmp_path)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"x.JPEG in /none/x.JPEG cannot be read"):
        originals.read("file", originals.Original("x.JPEG", 0, "/none/x.JPEG"))


@pytest.mark.parametrize("kind", ["file", "tar", "tfrecord"])
def test_a_file_that_became_shorter_is_named(kind, tmp_path):
    (tmp_path / "file").write_bytes(b"12345678")
    with pytest.raises(UsageError, match=r"x.JPEG in .*/file cannot be read \(8 of 9 bytes were read\)"):
        originals.read(kind, originals.Original("x.JPEG", 0, str(tmp_path / "file"), size=9))


def test_a_record_that_is_no_example_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff" * 20)
    with pytest.raises(UsageError, match=r"x.JPEG in .*/file cannot be read \(Error parsing message"):
        originals.read("tfrecord", originals.Original("x.JPEG", 0, str(tmp_path / "file"), size=20))


@pytest.mark.parametrize(
    ("records", "message"),
    [([b"\xff" * 20], "is damaged .Error parsing message"), ([], "has 0 of 18 records for train")],
)
def test_files_of_tfds_that_are_not_whole_are_refused(records, message, tars, tmp_path):
    path = next(iter(tfds_from_tars(tars, tmp_path, "tfrecord").info.splits["train"].filepaths))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    with pytest.raises(UsageError, match=message):
        listed(f"tfds:{NAME}", tmp_path, data_dir=tmp_path)
