"""Folders of images as people have them: hidden and foreign files, any format, images that lie on their side."""

import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

from alexnet_jax import doctor
from alexnet_jax.data import folders, prepare, sources
from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.doctor import speed
from alexnet_jax.errors import UsageError
from alexnet_jax.training import setup
from configs import folder as folder_config

SIDE = 8
FORMATS = {
    ".jpg": "JPEG",
    ".JPEG": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
}


def photo(suffix, seed=0, orientation=1, sides=(SIDE, SIDE)):
    """An image file of four coloured quarters."""
    quarters = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    pixels = Image.fromarray(quarters).resize(sides, Image.Resampling.NEAREST)
    exif, file = Image.Exif(), io.BytesIO()
    exif[Tag.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(FORMATS[suffix], {})
    options |= {} if FORMATS[suffix] in ("BMP", "GIF") else {"exif": exif}
    pixels.save(file, FORMATS[suffix], **options)
    return file.getvalue()


def write(root, files):
    """Writes files by their paths: bytes, or a photo for None."""
    for seed, (name, content) in enumerate(files.items()):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(path.suffix, seed) if content is None else content)
    return root


def both(*names):
    """Images of two classes in train and val, and more files."""
    return dict.fromkeys([f"{s}/{c}/1.png" for s in ("train", "val") for c in ("cat", "dog")] + list(names))


def opened(root, train="train", evaluation=""):
    return sources.open_dataset(f"folder:{root}", "", image_size=SIDE, train_split=train, eval_split=evaluation)


def names_of(source, root):
    return [os.path.relpath(path, root) for path in source.paths]


FOREIGN = [
    "train/.ipynb_checkpoints/1-checkpoint.jpg", "train/__MACOSX/cat/._1.jpg", "__MACOSX/train/cat/1.png",
    "train/cat/._0.jpg", "train/.DS_Store", "val/cat/.DS_Store", ".git/cat/1.png", "train/dog/.thumbs/1.png",
]  # fmt: skip


def test_hidden_and_foreign_files_are_not_seen(tmp_path):
    data = opened(write(tmp_path, both() | dict.fromkeys(FOREIGN, b"x")))
    assert data.class_names == ["cat", "dog"]
    assert sorted(names_of(data.train, tmp_path)) == ["train/cat/1.png", "train/dog/1.png"]
    assert data.remarks == ()


def test_every_format_counts_by_its_suffix_and_what_is_left_out_is_told_once(tmp_path):
    images = [f"train/cat/{i}{suffix}" for i, suffix in enumerate(FORMATS)]
    data = opened(write(tmp_path, both(*images) | {"train/cat/notes.txt": b"x", "train/dog/Thumbs.db": b"y"}))
    assert sorted(names_of(data.train, tmp_path)) == sorted([*images, "train/cat/1.png", "train/dog/1.png"])
    (told,) = data.remarks
    assert told.startswith(
        f"Left out of folder:{tmp_path}: 2 files that are not images of a class ({tmp_path}/train/cat/notes.txt, "
    )
    assert "ends in .jpg, .jpeg, .png, .webp" in told


def test_images_below_a_class_folder_belong_to_the_class(tmp_path):
    data = opened(write(tmp_path, both("train/cat/2020/may/1.jpg")))
    assert "train/cat/2020/may/1.jpg" in names_of(data.train, tmp_path)
    assert data.class_names == ["cat", "dog"]


def test_a_link_to_a_folder_is_followed_but_not_in_a_circle(tmp_path):
    write(tmp_path / "in", both())
    write(tmp_path / "other", {"9.png": None})
    (tmp_path / "in/train/cat/more").symlink_to(tmp_path / "other")
    (tmp_path / "in/train/dog/again").symlink_to(tmp_path / "in/train")
    (tmp_path / "in/train/dog/gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "in/train/dog/itself.jpg").symlink_to(tmp_path / "in/train/dog/itself.jpg")
    data = opened(tmp_path / "in")
    assert sorted(names_of(data.train, tmp_path / "in/train")) == ["cat/1.png", "cat/more/9.png", "dog/1.png"]
    assert "3 files that are not images" in data.remarks[0]


def test_a_link_that_the_system_does_not_follow_is_an_error():
    def refuses():
        raise PermissionError(13, "Permission denied")

    entry = SimpleNamespace(path="train/cat/there", is_dir=refuses, is_file=refuses)
    for question in (folders.is_folder, folders.is_file):
        with pytest.raises(UsageError, match=r"train/cat/there cannot be read \(Permission denied\)"):
            question(entry)


def test_a_name_that_is_not_utf8_is_told_if_it_is_no_image(tmp_path):
    write(tmp_path, both())
    Path(tmp_path / "train/cat", os.fsdecode(b"\xdcbersicht.txt")).write_text("x")
    (told,) = opened(tmp_path).remarks
    assert told.encode().startswith(f"Left out of folder:{tmp_path}: 1 file that is not an image".encode())
    assert r"\udcdcbersicht.txt" in told


def test_the_classes_are_those_of_the_splits_that_are_used(tmp_path):
    write(tmp_path, both("test/unknown/1.jpg", "masks/aardvark/1.jpg"))
    assert opened(tmp_path).class_names == ["cat", "dog"]
    # Whoever only evaluates gets the labels of training.
    shutil.rmtree(tmp_path / "val/cat")
    data = opened(tmp_path, train=None)
    assert (data.class_names, data.evaluation.labels.tolist()) == (["cat", "dog"], [1])


def test_classes_that_a_split_lacks_or_that_are_empty_are_told(tmp_path):
    write(tmp_path, both("val/cow/1.png") | {"train/goat/readme.txt": b""})
    data = opened(tmp_path)
    assert data.class_names == ["cat", "cow", "dog"]
    told = "\n".join(data.remarks)
    assert "class folders of train without an image: goat." in told
    assert f"folder:{tmp_path}/train has no images of cow: 1 of 3 classes." in told


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/1.jpg"], "/train/1.jpg is not in a class folder"),
        (["train/cat/a\nb.png"], "cannot be printed"),
        (["train/ cat/1.png"], "must not start or end with a blank"),
        ({"val": 0}, "/val holds no images in class folders, but 1 file that is not an image"),
    ],
)
def test_what_cannot_be_read_as_classes_is_refused(files, message, tmp_path):
    if files == {"val": 0}:
        write(tmp_path, {"train/cat/1.png": None, "val/cat/x.txt": b""})
    else:
        write(tmp_path, both(*files))
    with pytest.raises(UsageError, match=message):
        opened(tmp_path)


def test_a_folder_without_permission_is_told(tmp_path, monkeypatch):
    write(tmp_path, both())
    monkeypatch.setattr(
        os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied", path))
    )
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        folders.visible(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])  # Pillow itself turns TIFF
def test_an_image_stands_as_its_exif_orientation_says(suffix, orientation):
    content = photo(suffix, orientation, orientation, sides=(16, 16))
    with Image.open(io.BytesIO(content)) as image:
        upright, stored = (np.asarray(i.convert("RGB"), int) for i in (ImageOps.exif_transpose(image), image))
    assert np.abs(decode_square(content, 16) - upright).max() <= 3
    assert np.abs(decode_square(content, 16, upright=False) - stored).max() <= 3
    assert orientation == 1 or np.abs(upright - stored).max() > 3


NAMES = [
    "1.jpg",
    "2.JPEG",
    "3.png",
    "4.webp",
    "5.bmp",
    "6.gif",
    "7.tif",
    "._0.jpg",
    ".DS_Store",
    "Thumbs.db",
    "a.txt",
    "b",
]
PATHS = st.tuples(
    st.sampled_from(["train", "train", "val", "val", "test", "__MACOSX"]),
    st.sampled_from(["cat/", "dog/", "Zebra/", "cat/sub/", "dog/.x/", ".cat/", "__MACOSX/", ""]),
    st.sampled_from(NAMES),
).map(lambda parts: f"{parts[0]}/{parts[1]}{parts[2]}")
CONTENTS = st.one_of(st.integers(1, 8), st.sampled_from(["empty", "text", "cut"]))


def content_of(name, kind, seed):
    suffix = Path(name).suffix
    if kind == "empty" or suffix not in FORMATS:
        return b""
    whole = photo(suffix, seed, kind if isinstance(kind, int) else 1)
    return {"text": b"404 Not Found", "cut": whole[: len(whole) // 3]}.get(kind, whole)


def seen(root, split):
    """The names of the images of a split by the rules in folders, found in another way."""
    found = (path.relative_to(root / split) for path in (root / split).rglob("*") if path.is_file())
    return {
        str(name)
        for name in found
        if len(name.parts) > 1
        and not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
        and name.suffix in FORMATS
    }


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(PATHS, CONTENTS, min_size=4, max_size=14))
def test_any_tree_gives_its_images_or_a_sentence_and_prepare_gives_the_same(tree):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        root = Path(folder, "in")
        write(root, {name: content_of(name, kind, seed) for seed, (name, kind) in enumerate(tree.items())})
        try:
            data = opened(root)
        except UsageError:
            return
        splits = {source.name.rpartition(" ")[2]: source for source in (data.train, data.evaluation)}
        for split, source in splits.items():
            names = names_of(source, root / split)
            assert set(names) == seen(root, split)
            assert [data.class_names[label] for label in source.labels] == [name.split("/")[0] for name in names]
        good = {split: decoded(source, root / split) for split, source in splits.items()}
        if not all(good.values()):
            return  # all images of a split are broken, which ends both training and prepare
        try:
            prepare.prepare(f"folder:{root}", folder, SIDE, dataset="mine", encoding="raw", broken="skip", workers=1)
        except UsageError as error:
            if "Split test has no image that decodes" in str(error):
                return  # training did not look at this split
            raise
        again = sources.open_dataset("mine", folder, image_size=SIDE, train_split="train", eval_split="")
        assert again.class_names == data.class_names
        for source, (split, images) in zip((again.train, again.evaluation), good.items(), strict=True):
            pixels, labels = source.read(np.arange(len(source)))
            assert [source.describe(i).split(" of ")[0] for i in range(len(source))] == list(images)
            for image, label, (name, wanted) in zip(pixels, labels, images.items(), strict=True):
                np.testing.assert_array_equal(image, wanted)
                assert data.class_names[label] == name.split("/")[0], split


def decoded(source, folder):
    """Name -> pixels of the images that decode, in order; these are those that Pillow can open."""
    images = {}
    for path, name in zip(source.paths, names_of(source, folder), strict=True):
        content = Path(path).read_bytes()
        try:
            with Image.open(io.BytesIO(content)) as image:
                upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), int)
        except Exception:
            with pytest.raises(ImageError):
                decode_square(content, SIDE)
            continue
        images[name] = decode_square(content, SIDE)
        assert np.abs(images[name] - upright).max() <= 6, name
    return images


def config_for(root):
    config = folder_config.get_config()
    config.update(
        {
            "dataset": f"folder:{root}",
            "eval_batch_size": 8,
            "architecture": "QUICKSTART",
            "image_size": 32,
            "batch_size": 8,
        }
    )
    return config


def test_a_single_class_is_refused_by_doctor_and_by_main(tmp_path):
    config = config_for(write(tmp_path / "in", {f"{s}/cat/1.png": None for s in ("train", "val")}))
    wanted = "has one class only (cat); accepted are two or more"
    assert [f.level for f in doctor.examine(config, workdir=tmp_path / "w") if wanted in f.text] == ["problem"]
    with pytest.raises(UsageError, match=re.escape(wanted)):
        setup.set_up(config, tmp_path / "w")


def test_what_is_left_out_and_classes_that_a_split_lacks_are_told_by_doctor_and_by_main(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "who_waits", lambda run: iter(()))
    config = config_for(write(tmp_path / "in", both("val/cow/1.png") | {"train/cat/notes.txt": b""}))
    levels = {f.text: f.level for f in doctor.examine(config, workdir=tmp_path / "w")}
    setup.set_up(config, tmp_path / "w")
    told = capsys.readouterr().out
    for words in ("1 file that is not an image", "/train has no images of cow: 1 of 3 classes"):
        assert {level for text, level in levels.items() if words in text} == {"warning"}
        assert told.count(words) == 1
    assert "problem" not in levels.values()


def test_a_run_may_be_resumed_after_its_images_were_moved_but_not_on_others(tmp_path):
    config = config_for(write(tmp_path / "in", both()))
    setup.set_up(config, tmp_path / "w")
    (tmp_path / "in").rename(tmp_path / "moved")
    config.dataset = f"folder:{tmp_path}/moved"
    setup.set_up(config, tmp_path / "w")
    assert setup.config_of(tmp_path / "w").dataset == config.dataset
    write(tmp_path / "moved", {"train/cat/2.png": None})
    with pytest.raises(UsageError, match=r"a run with 2 images in its train split, and folder:.*/moved has 3 now"):
        setup.set_up(config, tmp_path / "w")
    (tmp_path / "moved/train/cat/1.png").unlink()
    with pytest.raises(UsageError, match="a run with images of other names in its train split"):
        setup.set_up(config, tmp_path / "w")
    write(tmp_path / "moved", {"train/cow/2.png": None})
    with pytest.raises(UsageError, match=r"a run on other classes than .* has now: they differ in cow"):
        setup.set_up(config, tmp_path / "w")
    (tmp_path / "w/contents.json").unlink()
    with pytest.raises(UsageError, match="a run of an older version of this program, which did not turn images"):
        setup.set_up(config, tmp_path / "w")


def test_where_moved_images_are_is_said_for_a_folder_only(tmp_path):
    config = config_for(write(tmp_path / "in", both()))
    setup.set_up(config, tmp_path / "w")
    assert setup.config_of(tmp_path / "w", dataset="folder:there").dataset == "folder:there"
    with pytest.raises(UsageError, match=r"--dataset is cifar10, but the run in .* is on folder:"):
        setup.config_of(tmp_path / "w", dataset="cifar10")


def test_labels_are_those_of_the_split_that_was_trained_on(tmp_path):
    write(tmp_path, {f"many/{c}/1.png": None for c in ("ant", "bee", "cat")} | {"few/cat/1.png": None})
    options = {"image_size": SIDE, "train_split": None, "eval_split": "few"}
    data = sources.open_dataset(f"folder:{tmp_path}", "", labels_of="many", **options)
    assert (data.class_names, data.evaluation.labels.tolist()) == (["ant", "bee", "cat"], [2])
