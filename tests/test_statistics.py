"""Mean image and colour PCA against NumPy in float64 over all images, and the pass that finds what is broken."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.data.survey import check_labels, survey
from alexnet_jax.errors import UsageError
from alexnet_jax.training.statistics import Statistics, Sums

SIZE = 6


@dataclasses.dataclass
class InMemory:
    images: np.ndarray
    labels: np.ndarray
    name: str = "in memory, split train"

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return [tf.io.encode_png(self.images[i]).numpy() for i in indices], self.labels[indices]

    def describe(self, index):
        return f"image {index}"


def colourful(count, seed=0):
    """Images whose colours are correlated, and differ from place to place and from image to image."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(0, 150, (count, SIZE, SIZE, 1))
    colours = light * [0.9, 0.6, 0.3] + rng.uniform(0, 60, (count, SIZE, SIZE, 3)) + np.arange(SIZE)[:, None]
    return np.clip(colours, 0, 255).astype(np.uint8)


def source_of(count, labels=None):
    return InMemory(colourful(count), np.zeros(count, np.int32) if labels is None else np.asarray(labels, np.int32))


def assert_are_of(statistics, images):
    """Compares with float64; largest first, and the largest component of each eigenvector is positive."""
    pixels = images.astype(np.float64)
    assert {array.dtype for array in arrays_of(statistics)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(statistics.mean_image, pixels.mean(0), rtol=1e-9)
    values, vectors = np.linalg.eigh(np.cov(pixels.reshape(-1, 3).T / 255, bias=True))
    np.testing.assert_allclose(statistics.pca.eigenvalues, values[::-1], rtol=1e-9)
    vectors = vectors[:, ::-1] * np.sign(vectors[np.abs(vectors).argmax(0), range(3)])[::-1]
    np.testing.assert_allclose(statistics.pca.eigenvectors, vectors, rtol=1e-9)


def arrays_of(statistics):
    return statistics.mean_image, statistics.pca.eigenvectors, statistics.pca.eigenvalues


@pytest.mark.parametrize("count", [64, 128, 100, 65, 7], ids=lambda count: f"{count} images")
def test_statistics_are_of_each_image_once(count):
    # Batches are of 64: what fills the last of them must not count.
    source = source_of(count)
    assert_are_of(survey(source, image_size=SIZE, num_classes=1), source.images)


def test_sums_do_not_depend_on_how_images_are_grouped():
    images = colourful(50)
    one_by_one, together = Sums(SIZE), Sums(SIZE)
    for image in images:
        one_by_one.add(image[None])
    together.add(images)
    for a, b in ((one_by_one.image, together.image), (one_by_one.square, together.square)):
        assert a.dtype == np.int64
        np.testing.assert_array_equal(a, b)
    assert_are_of(one_by_one.statistics(), images)


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_parts_that_are_added_in_any_order_are_the_whole(cuts, order, seed):
    images = colourful(40, seed)
    whole, sums = Sums(SIZE), Sums(SIZE)
    whole.add(images)
    parts = np.split(images, sorted(cuts))  # some are empty
    order.shuffle(parts)
    for part in parts:
        sums.add(part)
    assert sums.images == 40
    for ours, wanted in zip(arrays_of(sums.statistics()), arrays_of(whole.statistics()), strict=True):
        np.testing.assert_array_equal(ours, wanted)  # to the bit
    assert_are_of(sums.statistics(), images)


def test_sums_of_many_bright_images_stay_exact():
    sums, bright = Sums(SIZE), np.full((1000, SIZE, SIZE, 3), 255, np.uint8)
    for _ in range(300):
        sums.add(bright)
    assert (sums.image == 255 * 300_000).all()
    assert (sums.square == 255**2 * 300_000 * SIZE**2).all()
    assert (sums.statistics().mean_image == 255).all()
    np.testing.assert_allclose(sums.statistics().pca.eigenvalues, 0, atol=1e-15)


def test_what_is_saved_is_loaded_bit_by_bit(tmp_path):
    path = tmp_path / "run" / "statistics.npz"  # the folder is made
    saved = survey(source_of(10), image_size=SIZE, num_classes=1)
    saved.save(path)
    loaded = Statistics.load(path)
    for a, b in zip(arrays_of(saved), arrays_of(loaded), strict=True):
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in path.parent.iterdir()] == ["statistics.npz"]


@pytest.mark.parametrize("wrong", [-1, 3, 1000])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_a_label_outside_the_classes_is_named(wrong, place):
    labels = np.arange(70) % 3
    labels[place] = wrong
    with pytest.raises(UsageError) as error:
        survey(source_of(70, labels), image_size=SIZE, num_classes=3)
    message = str(error.value)
    assert message.startswith(f"image {place} has the label {wrong}; accepted are 0 to 2. ")
    assert "--config.num_classes" in message


def test_labels_within_the_classes_pass():
    check_labels(np.array([0, 1, 2]), 3, lambda i: pytest.fail(f"example {i} is right"))


def test_the_first_of_several_wrong_labels_is_named():
    with pytest.raises(UsageError, match=r"^number 1 has the label 7"):
        check_labels(np.array([0, 7, -1]), 3, lambda i: f"number {i}")


def test_progress_is_shown(capsys):
    survey(source_of(70), image_size=SIZE, num_classes=1)
    shown = capsys.readouterr().err
    assert "Reading in memory, split train" in shown
    assert "70/70" in shown
