"""Evaluation against NumPy, on a network small enough to write down."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import AlexNet, Dense, Flatten, Input
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.evaluate import evaluate
from alexnet_jax.network import towers
from alexnet_jax.training.augment import ColorPCA
from alexnet_jax.training.statistics import Statistics

SIZE, CROP, CLASSES, EXAMPLES = 8, 6, 7, 11
LINEAR = (Input(CROP), Flatten(), Dense(CLASSES))


@dataclasses.dataclass(frozen=True)
class Images:
    images: np.ndarray
    labels: np.ndarray
    name: str = "made up"

    def __len__(self):
        return len(self.images)

    def describe(self, index):
        return f"image {index}"

    def read(self, indices):
        return [png(self.images[i]) for i in indices], self.labels[indices]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    source = Images(
        rng.integers(0, 256, (EXAMPLES, SIZE, SIZE, 3), np.uint8), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    )
    mean = rng.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
    kernel = rng.normal(0, 0.004, (1, CROP * CROP * 3, CLASSES)).astype(np.float32)
    params = {"fc1": {"kernel": kernel, "bias": rng.normal(size=(1, CLASSES)).astype(np.float32)}}
    return source, Statistics(mean, ColorPCA(np.eye(3), np.ones(3))), params


def by_numpy(source, statistics, params, views, mean_at="crop"):
    corners = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    places = [(i, j, step) for step in (1, -1) for i, j in corners]
    chosen = {1: [(1, 1, 1)], 5: places[:5], 10: places}[views]
    wrong1 = wrong5 = loss = 0
    for image, label in zip(source.images, source.labels, strict=True):
        average = np.zeros(CLASSES)
        for i, j, step in chosen:
            there = np.s_[i : i + CROP, j : j + CROP]
            crop = image[there][:, ::step].astype(np.float64)
            # The 2012 program mirrors the image, not the mean.
            crop -= statistics.mean_image[there][:, ::step] if mean_at == "crop" else statistics.mean_image[1:-1, 1:-1]
            logits = crop.reshape(-1) @ params["fc1"]["kernel"][0].astype(np.float64) + params["fc1"]["bias"][0]
            average += np.exp(logits) / np.exp(logits).sum() / len(chosen)
        order = np.argsort(-average)
        wrong1 += order[0] != label
        wrong5 += label not in order[:5]
        loss -= np.log(average[label])
    n = len(source)
    return 100 * wrong1 / n, 100 * wrong5 / n, loss / n


@pytest.mark.parametrize("views", [1, 5, 10])
@pytest.mark.parametrize("batch_size", [4, 8, 16])  # none divides 11
@pytest.mark.parametrize("data", [1, 4])
def test_errors_and_loss_equal_numpy_on_every_batch_size_and_mesh(problem, views, batch_size, data):
    source, statistics, params = problem
    errors = evaluate(
        params,
        source,
        statistics,
        network=AlexNet(LINEAR, placement=towers.place(LINEAR, devices=jax.devices()[:data])),
        batch_size=batch_size,
        views=views,
    )
    top1, top5, loss = by_numpy(source, statistics, params, views)
    assert (errors.top1_error, errors.top5_error) == pytest.approx((top1, top5))
    assert errors.loss == pytest.approx(loss, rel=1e-5)
    assert (errors.examples, errors.views) == (EXAMPLES, views)


@pytest.mark.parametrize("views", [1, 10])
def test_the_mean_of_the_centre_is_subtracted_from_every_view_where_the_recipe_says_so(problem, views):
    source, statistics, params = problem
    network = AlexNet(LINEAR, placement=towers.place(LINEAR, devices=jax.devices()[:1]))
    losses = {
        at: evaluate(params, source, statistics, network=network, batch_size=4, views=views, mean_at=at).loss
        for at in ("crop", "center")
    }
    for at, loss in losses.items():
        assert loss == pytest.approx(by_numpy(source, statistics, params, views, at)[2], rel=1e-5)
    if views == 10:
        assert losses["crop"] != pytest.approx(losses["center"], rel=1e-3)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_of_no_class_is_refused(problem, label):
    source, statistics, params = problem
    wrong = Images(source.images, np.where(np.arange(EXAMPLES) == 9, label, source.labels).astype(np.int32))
    network = AlexNet(LINEAR, placement=towers.place(LINEAR, devices=jax.devices()[:1]))
    with pytest.raises(UsageError, match=f"image 9 has the label {label}; accepted are 0 to {CLASSES - 1}"):
        evaluate(params, wrong, statistics, network=network, batch_size=4)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_refused(problem, number):
    source, statistics, params = problem
    params = jax.tree.map(np.copy, params)
    params["fc1"]["kernel"][0, 5, 2] = number
    network = AlexNet(LINEAR, placement=towers.place(LINEAR, devices=jax.devices()[:1]))
    with pytest.raises(FloatingPointError, match="the loss on made up is not finite: the parameters"):
        evaluate(params, source, statistics, network=network, batch_size=4)
