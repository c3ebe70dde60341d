"""ImageNet's two tars become square records, once and whole; small tars of the same form stand for the real ones."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from alexnet_jax.config import UsageError
from alexnet_jax.data import imagenet, sources
from alexnet_jax.data.pictures import decode_square

SIZE = 64
SYNSETS = ("n01440764", "n01443537", "n15075141")  # the first two of the classes and the last: labels 0, 1, 999
SIDES = ((70, 90), (120, 64), (64, 64), (33, 47), (201, 65))
TRAIN = {
    f"{synset}_{number}.JPEG": (label, sides)
    for synset, label in zip(SYNSETS, (0, 1, 999), strict=True)
    for number, sides in enumerate(SIDES * 9, 10026)  # more than one chunk of `imagenet`
}
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": sides for number, sides in enumerate(SIDES[:4], 1)}


def jpeg(name, sides):
    """A smooth coloured picture, another one for each name; grey for one of them."""
    height, width = sides
    a, b, c = np.random.default_rng(list(name.encode())).uniform(0, 255, 3)
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    image = np.stack([a * down + 0 * right, b * right + 0 * down, c * down * right], -1).astype(np.uint8)
    image = image[..., :1] if name.endswith("_10027.JPEG") else image
    return tf.io.encode_jpeg(image, quality=100).numpy()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_tars(folder, broken=None):
    """Both tars; one of the pictures may be cut off in the middle."""
    pictures = {name: jpeg(name, sides) for name, (_, sides) in TRAIN.items()}
    pictures |= {name: jpeg(name, sides) for name, sides in VAL.items()}
    if broken:
        pictures[broken] = b"no picture"
    inner = {f"{s}.tar": tar({n: pictures[n] for n in TRAIN if n.startswith(s)}) for s in SYNSETS}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / imagenet.TARS[0]).write_bytes(tar(inner))
    (folder / imagenet.TARS[1]).write_bytes(tar({n: pictures[n] for n in VAL}))
    return folder


def square(name, sides):
    return decode_square(jpeg(name, sides), SIZE).numpy()


def open_it(data_dir, size=SIZE):
    return sources.open_dataset("imagenet2012", str(data_dir), image_size=size, train_split="train", eval_split="")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the small ImageNet was prepared; the tars are gone again."""
    root = tmp_path_factory.mktemp("imagenet")
    tars = write_tars(root / "tars")
    imagenet.prepare(str(root / "data"), SIZE, str(tars))
    for name in imagenet.TARS:
        (tars / name).unlink()
    return root / "data"


def names_of(source):
    return [source.describe(i).split(" of ")[0] for i in range(len(source))]


def test_each_picture_is_stored_once_with_its_label(data_dir):
    data = open_it(data_dir)
    assert (data.num_classes, len(data.class_names)) == (1000, 1000)
    assert data.class_names[0] == "n01440764"
    names = names_of(data.train)
    assert sorted(names) == sorted(TRAIN)
    _, labels = data.train.read(range(len(names)))
    assert labels.dtype == np.int32
    assert dict(zip(names, labels.tolist(), strict=True)) == {name: label for name, (label, _) in TRAIN.items()}


def test_validation_labels_are_those_of_the_alphabetic_order_of_the_files(data_dir):
    data = open_it(data_dir)
    assert data.evaluation.name == "imagenet2012, split validation"
    names = names_of(data.evaluation)
    assert sorted(names) == sorted(VAL)
    with open(imagenet_common.tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")) as file:
        synsets = file.read().split()[: len(VAL)]
    _, labels = data.evaluation.read(range(len(names)))
    stored = dict(zip(names, labels.tolist(), strict=True))
    assert stored == {name: data.class_names.index(synset) for name, synset in zip(sorted(VAL), synsets, strict=True)}


def test_stored_pictures_are_the_squares_of_the_originals(data_dir):
    data = open_it(data_dir)
    sides_of = {name: sides for name, (_, sides) in TRAIN.items()} | VAL
    for source in (data.train, data.evaluation):
        encoded, _ = source.read(range(len(source)))
        for name, content in zip(names_of(source), encoded, strict=True):
            stored = tf.io.decode_jpeg(content).numpy()
            assert stored.shape == (SIZE, SIZE, 3)
            difference = np.abs(stored.astype(int) - square(name, sides_of[name]))
            assert difference.mean() < 2, name  # of JPEG at quality 95; another of these pictures is 20 away and more


def test_statistics_beside_the_records_are_those_of_the_training_pictures(data_dir):
    pictures = np.stack([square(name, sides) for name, (_, sides) in TRAIN.items()]).astype(np.float64)
    statistics = open_it(data_dir).statistics
    np.testing.assert_allclose(statistics.mean_image, pictures.mean(0), rtol=0, atol=1e-4)
    pixels = pictures.reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    np.testing.assert_allclose(np.sort(statistics.pca.eigenvalues), values, rtol=1e-5)
    covariance = (vectors * values) @ vectors.T
    ours = np.asarray(statistics.pca.eigenvectors, np.float64)
    np.testing.assert_allclose((ours * statistics.pca.eigenvalues) @ ours.T, covariance, atol=1e-6)
    # The stored squares went through JPEG once more, and still have nearly these statistics.
    source = open_it(data_dir).train
    stored = np.stack([tf.io.decode_jpeg(e).numpy() for e in source.read(range(len(source)))[0]])
    assert np.abs(stored.astype(np.float64).mean(0) - statistics.mean_image).mean() < 1


def test_a_second_prepare_does_nothing(data_dir):
    folder = imagenet.prepare(str(data_dir), SIZE)  # the tars are gone: to do it again would fail
    assert folder == data_dir / "imagenet2012_square" / str(SIZE) / "5.1.0"
    assert (folder / "statistics.npz").is_file()


def test_another_size_is_another_dataset(data_dir):
    with pytest.raises(UsageError, match="imagenet2012 at 48 pixels is not in"):
        open_it(data_dir, 48)


def test_where_it_is_not_prepared_the_message_is_the_command_that_prepares_it(tmp_path):
    with pytest.raises(UsageError) as error:
        open_it(tmp_path)
    message = str(error.value)
    assert f"python -m alexnet_jax prepare --data_dir={tmp_path} --image_size={SIZE}" in message
    assert "https://image-net.org/download-images" in message
    assert str(tmp_path / "downloads" / "manual") in message


@pytest.mark.parametrize("there", [(), imagenet.TARS[:1], imagenet.TARS[1:]], ids=["none", "train", "val"])
def test_missing_tars_are_named(tmp_path, there):
    for name in there:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match="not found in") as error:
        imagenet.prepare(str(tmp_path / "data"), SIZE, str(tmp_path))
    what = str(error.value).split(" not found in ")[0]
    assert what.split(" and ") == [name for name in imagenet.TARS if name not in there]
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("broken", ["n01443537_10028.JPEG", "ILSVRC2012_val_00000003.JPEG"])
def test_a_broken_picture_is_named_and_nothing_counts_as_prepared(tmp_path, broken):
    tars = write_tars(tmp_path / "tars", broken)
    with pytest.raises(UsageError, match=f"{broken} does not decode as a picture"):
        imagenet.prepare(str(tmp_path / "data"), SIZE, str(tars))
    assert not imagenet.Imagenet2012Square(image_size=SIZE, data_dir=str(tmp_path / "data")).is_prepared()
    with pytest.raises(UsageError, match="alexnet_jax prepare"):
        open_it(tmp_path / "data")
    # With a good tar in its place the same call succeeds.
    write_tars(tars)
    imagenet.prepare(str(tmp_path / "data"), SIZE, str(tars))
    data = open_it(tmp_path / "data")
    assert (len(data.train), len(data.evaluation)) == (len(TRAIN), len(VAL))
    assert np.isfinite(data.statistics.mean_image).all()
