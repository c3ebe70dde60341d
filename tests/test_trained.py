"""What a trained network makes of images, on eight devices: the same as on one, for any number of them."""

import json

import jax
import numpy as np
import pytest
from tiny import TINY, batch_of, statistics_of

from alexnet_jax import LENET5, PAPER, SOURCE_2012, AlexNet, convert
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.trained import Trained, last_hidden
from alexnet_jax.network.architectures import layer_names
from alexnet_jax.training import augment


def weights(class_names=None):
    params = AlexNet(TINY).init(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))["params"]
    statistics = statistics_of()
    return convert.Weights(
        architecture=TINY,
        params=jax.tree.map(np.asarray, params),
        mean_image=np.random.default_rng(0).uniform(0, 255, (16, 16, 3)).astype(np.float32),
        pca=statistics.pca,
        mean_at="crop",
        views=10,
        classes="5 classes of tests",
        source="tests",
        class_names=class_names,
    )


@pytest.fixture(scope="module")
def trained():
    return Trained.of(weights(), batch_size=5)


@pytest.mark.parametrize("n", [1, 8, 19])
@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_of_any_number_of_images_are_the_networks(trained, n, views):
    assert trained.batch_size == 8  # 5, rounded up to eight devices
    images = batch_of(0, n=n)["image"]
    got = trained.probabilities(images, views)
    np.testing.assert_allclose(got, trained.weights.predict(images, views), rtol=1e-5)
    assert got.shape == (n, 5)


@pytest.mark.parametrize("layer", ["conv1", "pool1", "relu3", "fc5"])
def test_features_are_what_the_layer_makes_of_the_central_crop(trained, layer):
    images = batch_of(1, n=11)["image"]
    crops = np.stack([augment.center_crop(image - trained.weights.mean_image, 12) for image in images])
    params = {"params": trained.weights.params}
    _, sown = AlexNet(TINY).apply(params, crops, mutable="intermediates")
    (wanted,) = sown["intermediates"][f"{layer}_output"]
    got = trained.features(images, layer)
    np.testing.assert_allclose(got, np.asarray(wanted).reshape(11, -1), rtol=1e-4, atol=1e-5)
    assert got.dtype == np.float32


class Split:
    """Twenty-one examples as a source has them."""

    name = "tests"

    def __len__(self):
        return 21

    def read(self, indices):
        batch = batch_of(2, n=21)
        return list(batch["image"][indices]), batch["label"][indices]


def test_a_split_is_gone_through_once_and_in_order(trained):
    batch = batch_of(2, n=21)
    rows, labels = zip(*trained.over(Split(), lambda images: images), strict=True)
    assert [len(part) for part in rows] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate(rows), batch["image"])
    np.testing.assert_array_equal(np.concatenate(labels), batch["label"])


def test_what_does_not_fit_is_told_before_anything_runs(trained):
    with pytest.raises(UsageError, match=r"layer is 'fc9'; this network has conv1, .*fc5"):
        trained.features(batch_of(0)["image"], "fc9")
    with pytest.raises(UsageError, match=r"images have shape \(8, 15, 15, 3\); accepted is \(n, 16, 16, 3\)"):
        trained.probabilities(batch_of(0, size=15)["image"])


@pytest.mark.parametrize(
    ("architecture", "layer"), [(PAPER, "relu7"), (SOURCE_2012, "relu7"), (LENET5, "tanh6"), (TINY, "relu4")]
)
def test_the_last_hidden_layer_is_the_one_before_the_classifier(architecture, layer):
    assert last_hidden(architecture) == layer
    assert layer in layer_names(architecture)


def test_class_names_travel_with_the_weights(tmp_path):
    names = ("a", "b", "c", "d", "e f")
    convert.write(weights(names), tmp_path / "with.safetensors")
    convert.write(weights(), tmp_path / "without.safetensors")
    assert convert.read(tmp_path / "with.safetensors").class_names == names
    assert convert.read(tmp_path / "without.safetensors").class_names is None
    convert.write(weights(names[:4]), tmp_path / "few.safetensors")
    with pytest.raises(UsageError, match="names 4 classes, but its network has 5"):
        convert.read(tmp_path / "few.safetensors")
    assert json.dumps(names) in str(convert.weights.load(tmp_path / "with.safetensors")[0])
