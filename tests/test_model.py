"""The module that interprets an architecture: against NumPy, and how towers and dropout behave."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import (
    LRN,
    PAPER,
    RBF,
    AlexNet,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    ReLU,
    Subsample,
    Tanh,
    local_response_norm,
    max_pool,
    replace,
    with_classes,
)

TINY = (
    Input(10, towers=2),
    Conv(8, 3, padding=(0, 1), bias=0.2, std=0.3),
    ReLU(),
    LRN(alpha=0.1),
    MaxPool(3, 2),
    Conv(4, 3, padding=1, std=0.3),
    Conv(4, 3, padding=1, sees="all", std=0.3),
    ReLU(),
    Flatten(),
    Dense(6, std=0.3),
    Dropout(0.5),
    Dense(5, bias=1.0, std=0.3),
)
IMAGES = np.random.default_rng(0).normal(size=(3, 10, 10, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return AlexNet(TINY).init(jax.random.key(0), IMAGES)


def conv_numpy(x, kernel, bias, before, after):
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))  # (N, H', W', C, h, w)
    return np.einsum("nijcab,abco->nijo", windows, kernel) + bias


def test_logits_equal_an_interpretation_in_numpy(variables):
    p = jax.tree.map(np.float64, variables["params"])
    with jax.enable_x64(True):
        hs = []
        for t in range(2):
            h = np.maximum(
                conv_numpy(IMAGES.astype(np.float64), p["conv1"]["kernel"][t], p["conv1"]["bias"][t], 0, 1), 0
            )
            h = np.asarray(max_pool(local_response_norm(jnp.asarray(h), alpha=0.1)))
            hs.append(conv_numpy(h, p["conv2"]["kernel"][t], p["conv2"]["bias"][t], 1, 1))
    both = np.concatenate(hs, -1)
    hs = [np.maximum(conv_numpy(both, p["conv3"]["kernel"][t], p["conv3"]["bias"][t], 1, 1), 0) for t in range(2)]
    h = np.concatenate([h.reshape(3, -1) for h in hs], -1)
    h = np.concatenate([h @ p["fc4"]["kernel"][t] + p["fc4"]["bias"][t] for t in range(2)], -1) / 2
    want = np.concatenate([h @ p["fc5"]["kernel"][t] + p["fc5"]["bias"][t] for t in range(2)], -1)[:, :5]
    np.testing.assert_allclose(AlexNet(TINY).apply(variables, IMAGES), want, rtol=1e-4, atol=1e-5)


def test_a_tower_sees_the_other_only_where_the_architecture_says_so(variables):
    def outputs(variables):
        _, sown = AlexNet(TINY).apply(variables, IMAGES, mutable="intermediates")
        return {name: np.asarray(value[0]) for name, value in sown["intermediates"].items()}

    changed = jax.tree.map(jnp.copy, variables)
    changed["params"]["conv1"]["kernel"] = changed["params"]["conv1"]["kernel"].at[1].add(0.5)
    before, after = outputs(variables), outputs(changed)
    first, second = np.s_[..., :4], np.s_[..., 4:]  # of conv1's 8 maps
    np.testing.assert_array_equal(before["pool1_output"][first], after["pool1_output"][first])
    assert not np.allclose(before["pool1_output"][second], after["pool1_output"][second])
    np.testing.assert_array_equal(before["conv2_output"][..., :2], after["conv2_output"][..., :2])
    assert not np.allclose(before["conv3_output"][..., :2], after["conv3_output"][..., :2])


def test_parameters_start_as_the_layer_says():
    network = (Input(4, towers=2), Conv(512, 3, bias=1.0, std=0.03), Flatten(), Dense(1000, bias=0.5))
    params = AlexNet(network).init(jax.random.key(1), jnp.zeros((1, 4, 4, 3)))["params"]
    assert np.std(params["conv1"]["kernel"]) == pytest.approx(0.03, rel=0.05)
    assert np.std(params["fc2"]["kernel"]) == pytest.approx(0.01, rel=0.01)
    assert abs(np.mean(params["fc2"]["kernel"])) < 1e-4
    assert np.all(params["conv1"]["bias"] == 1)
    assert np.all(params["fc2"]["bias"] == 0.5)
    assert not np.array_equal(params["fc2"]["kernel"][0], params["fc2"]["kernel"][1])


def test_weights_by_fan_in_keep_the_size_of_the_signal():
    network = (Input(9, towers=2), Conv(512, 3, std="fan_in"), Flatten(), Dense(2000, std="fan_in"))
    params = AlexNet(network).init(jax.random.key(1), jnp.zeros((1, 9, 9, 3)))["params"]
    # 27 inputs of conv1 (3 x 3 x 3); 7 x 7 x 512 = 25,088 of fc2.
    assert np.std(params["conv1"]["kernel"]) == pytest.approx((2 / 27) ** 0.5, rel=0.05)
    assert np.std(params["fc2"]["kernel"]) == pytest.approx((2 / 25_088) ** 0.5, rel=0.01)


def test_biases_of_the_paper_are_1_in_conv2_conv4_conv5_fc6_and_fc7():
    ones = [layer.bias for layer in PAPER if isinstance(layer, Conv | Dense)]
    assert ones == [0, 1, 0, 1, 1, 1, 1, 0]
    assert {layer.std for layer in PAPER if isinstance(layer, Conv | Dense)} == {0.01}


def dropout_net(rescale):
    return AlexNet((Input(32), Flatten(), Dropout(0.25, rescale=rescale), Dense(3)))


@pytest.mark.parametrize(("rescale", "train_scale", "test_scale"), [(False, 1.0, 0.75), (True, 1 / 0.75, 1.0)])
def test_dropout_zeroes_in_training_and_keeps_the_mean_at_test_time(rescale, train_scale, test_scale):
    net, images = dropout_net(rescale), jnp.ones((4, 32, 32, 3))
    variables = net.init(jax.random.key(0), images)

    def dropped(**arguments):
        _, sown = net.apply(variables, images, mutable="intermediates", **arguments)
        return np.asarray(sown["intermediates"]["drop0_output"][0])

    np.testing.assert_allclose(dropped(), test_scale, rtol=1e-6)
    kept = dropped(train=True, rngs={"dropout": jax.random.key(1)})
    assert set(np.unique(kept)) == {np.float32(0), np.float32(train_scale)}
    assert np.mean(kept == 0) == pytest.approx(0.25, abs=0.02)
    assert not np.array_equal(kept[0], kept[1])  # one mask an example


def test_a_mask_belongs_to_the_example_not_to_its_place_in_the_batch(variables):
    def logits(order):
        return AlexNet(TINY).apply(
            variables, IMAGES[order], train=True, index=jnp.array([7, 8, 9])[order], rngs={"dropout": jax.random.key(2)}
        )

    order = np.array([2, 0, 1])
    np.testing.assert_allclose(logits(order), logits(np.arange(3))[order], rtol=1e-5)
    assert not np.allclose(logits(order), logits(np.arange(3)))


def test_an_odd_number_of_classes_is_cut_to_size():
    net = AlexNet(with_classes(TINY, 3))
    logits, variables = net.init_with_output(jax.random.key(0), IMAGES)
    assert logits.shape == (3, 3)
    assert variables["params"]["fc5"]["bias"].shape == (2, 2)


def test_bfloat16_gives_float32_logits_close_to_float32s(variables):
    net = AlexNet(TINY, dtype=jnp.bfloat16)
    logits = net.apply(variables, IMAGES)
    want = AlexNet(TINY).apply(variables, IMAGES)
    assert logits.dtype == jnp.float32
    assert not np.array_equal(logits, want)
    np.testing.assert_allclose(logits, want, atol=0.03 * np.abs(want).max())
    assert {p.dtype for p in jax.tree.leaves(net.init(jax.random.key(0), IMAGES))} == {jnp.dtype("float32")}


def sown(network, variables, images, **arguments):
    """Each layer's output, by its name."""
    _, intermediates = AlexNet(network).apply(variables, images, mutable="intermediates", **arguments)
    return {name.removesuffix("_output"): np.asarray(a[0]) for name, a in intermediates["intermediates"].items()}


def test_lrn_that_sees_all_maps_is_that_of_the_joined_towers(variables):
    own, both = TINY, replace(TINY, LRN, sees="all")
    before, after = sown(own, variables, IMAGES), sown(both, variables, IMAGES)
    np.testing.assert_array_equal(before["relu1"], after["relu1"])
    np.testing.assert_allclose(after["lrn1"], local_response_norm(before["relu1"], alpha=0.1), rtol=1e-6)
    by_tower = [local_response_norm(h, alpha=0.1) for h in np.split(before["relu1"], 2, -1)]
    np.testing.assert_allclose(before["lrn1"], np.concatenate(by_tower, -1), rtol=1e-6)
    assert not np.allclose(before["lrn1"], after["lrn1"], rtol=1e-3)


def test_a_table_says_which_maps_a_map_sees():
    table = ((0,), (0, 2), (1,))
    net = (Input(6), Conv(3, 3, table=table, std=0.5, bias=0.1), Flatten(), Dense(2))
    images = IMAGES[:, :6, :6]
    variables = AlexNet(net).init(jax.random.key(0), images)
    kernel = np.float64(variables["params"]["conv1"]["kernel"])
    assert kernel.shape == (1, 3, 3, 4)  # of each of the four connections
    whole = np.zeros((3, 3, 3, 3))
    for at, (seen, out) in enumerate([(0, 0), (0, 1), (2, 1), (1, 2)]):
        whole[:, :, seen, out] = kernel[0, ..., at]
    want = conv_numpy(images.astype(np.float64), whole, 0.1, 0, 0)
    np.testing.assert_allclose(sown(net, variables, images)["conv1"], want, rtol=1e-4, atol=1e-5)


def test_subsampling_is_a_mean_with_a_weight_and_a_bias_a_map():
    net = (Input(4, towers=3), Subsample(2), Flatten(), Dense(3))  # three towers that each see three channels
    images = IMAGES[:, :4, :4]
    variables = AlexNet(net).init(jax.random.key(0), images)
    means = images.reshape(3, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(sown(net, variables, images)["subsample1"], np.tile(means, 3), rtol=1e-5, atol=1e-6)
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(2, 3, 3))
    variables["params"]["subsample1"] = {"kernel": jnp.float32(weight), "bias": jnp.float32(bias)}
    want = np.concatenate([means * w + b for w, b in zip(weight, bias, strict=True)], -1)
    np.testing.assert_allclose(sown(net, variables, images)["subsample1"], want, rtol=1e-4, atol=1e-5)


def test_tanh_has_an_amplitude_and_a_slope():
    net = (Input(10), Tanh(1.7159, 2 / 3), Flatten(), Dense(2))
    variables = AlexNet(net).init(jax.random.key(0), IMAGES)
    np.testing.assert_allclose(sown(net, variables, IMAGES)["tanh0"], 1.7159 * np.tanh(2 / 3 * IMAGES), rtol=1e-5)


def test_the_logit_of_a_code_is_minus_the_squared_distance():
    net = (Input(1), Flatten(), RBF(("#.#", "...")))
    images = jnp.array([[1.0, -1.0, 1.0], [0.5, 2.0, 0.0]]).reshape(2, 1, 1, 3)
    logits = AlexNet(net).apply(AlexNet(net).init(jax.random.key(0), images), images)
    np.testing.assert_allclose(logits, [[0, -(4 + 0 + 4)], [-(0.25 + 9 + 1), -(2.25 + 9 + 1)]])


def test_the_image_is_scaled_by_colour_and_a_grey_network_sees_the_mean():
    scaled = AlexNet((Input(10, scale=(1.0, 2.0, 0.5)), Flatten(), Dense(300)))
    one = {"params": {"fc1": {"kernel": jnp.eye(300)[None], "bias": jnp.zeros((1, 300))}}}
    np.testing.assert_allclose(
        scaled.apply(one, IMAGES).reshape(IMAGES.shape), IMAGES * np.array([1.0, 2.0, 0.5]), rtol=1e-6
    )
    grey = AlexNet((Input(10, channels=1), Flatten(), Dense(100)))
    one = {"params": {"fc1": {"kernel": jnp.eye(100)[None], "bias": jnp.zeros((1, 100))}}}
    mean = IMAGES.mean(-1, keepdims=True)
    for images in (IMAGES, mean):
        np.testing.assert_allclose(grey.apply(one, images).reshape(mean.shape), mean, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="takes \\(N, 10, 10, 1\\) or three channels"):
        grey.apply(one, IMAGES[..., :2])


def test_images_of_another_size_are_refused(variables):
    with pytest.raises(ValueError, match=r"\(3, 9, 9, 3\); this network takes \(N, 10, 10, 3\)"):
        AlexNet(TINY).apply(variables, IMAGES[:, :9, :9])


def test_a_layer_is_a_value():
    assert dataclasses.replace(Conv(8, 3), maps=9) == Conv(9, 3)
    assert hash(TINY) == hash(tuple(TINY))


def test_masks_differ_between_towers_layers_examples_and_keys():
    # Constant weights pass on ones, so that both dropout layers show a mask of the same shape.
    net = AlexNet((Input(8, towers=2), Flatten(), Dropout(0.5), Dense(384, bias=1.0, std=0.0), Dropout(0.5), Dense(2)))
    images = jnp.ones((2, 8, 8, 3))
    variables = net.init(jax.random.key(0), images)

    def masks(key):
        rngs = {"dropout": jax.random.key(key)}
        _, sown = net.apply(variables, images, train=True, rngs=rngs, mutable="intermediates")
        outputs = [np.asarray(sown["intermediates"][name][0]) for name in ("drop0_output", "drop1_output")]
        return [mask for output in outputs for example in output for mask in np.split(example, 2)]  # of a tower

    drawn = [*masks(1), *masks(2)]
    assert len({mask.tobytes() for mask in drawn}) == len(drawn) == 16
    assert {mask.shape for mask in drawn} == {(192,)}


def test_examples_are_named_by_their_place_unless_told_otherwise(variables):
    arguments = {"train": True, "rngs": {"dropout": jax.random.key(2)}}
    by_place = AlexNet(TINY).apply(variables, IMAGES, **arguments)
    named = AlexNet(TINY).apply(variables, IMAGES, index=jnp.arange(3), **arguments)
    np.testing.assert_array_equal(by_place, named)
