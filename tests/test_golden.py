"""Networks and training steps against PyTorch, whose numbers golden/networks.py made; the tests do not need it."""

import dataclasses
import importlib
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import weights
from PIL import Image
from tiny import place, put, recipe_of, statistics_of

from alexnet_jax import CAFFENET, LRN, SLIDES, TORCHVISION, AlexNet, Conv, Dense, Flatten, Input, MaxPool, ReLU
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import WEIGHTED, layer_names, towers_of
from alexnet_jax.training import setup
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import cross_entropy, init_state, state_shardings, train_step
from configs import cifar10

NETWORKS = {"SLIDES": SLIDES, "TORCHVISION": TORCHVISION, "CAFFENET": CAFFENET}
TRAINED = (
    Input(28, towers=2, scale=1 / 64),
    Conv(8, 5, stride=2, padding=(0, 3)),
    ReLU(),
    LRN(alpha=0.05),
    MaxPool(3, 2),
    Conv(16, 3, padding=1),
    ReLU(),
    MaxPool(3, 2),
    Conv(16, 3, padding=1, sees="all"),
    ReLU(),
    Flatten(),
    Dense(32),
    ReLU(),
    Dense(6),
)
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "golden"
with np.load(FOLDER / "networks.npz") as file:
    GOLDEN = dict(file)
with np.load(FOLDER / "cifar.npz") as file:
    CIFAR = dict(file)


def narrowed(architecture, width):
    """The architecture with `width` times fewer maps and units in each layer."""
    narrow = []
    for layer in architecture:
        if isinstance(layer, Conv):
            layer = dataclasses.replace(layer, maps=layer.maps // width)
        if isinstance(layer, Dense):
            layer = dataclasses.replace(layer, units=layer.units // width)
        narrow.append(layer)
    return tuple(narrow)


def to_ours(arrays, architecture):
    """Our parameters, towers first and maps last, from arrays of PyTorch's layout and names."""
    towers, before, params = towers_of(architecture), None, {}
    layers = zip(layer_names(architecture), architecture, strict=True)
    ours = [name for name, layer in layers if isinstance(layer, WEIGHTED)]
    theirs = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    for name, source in zip(ours, theirs, strict=True):
        weight = arrays[f"{source}.weight"]
        outputs, inputs, *window = weight.shape
        if window:
            kernel = weight.reshape(towers, -1, inputs, *window).transpose(0, 3, 4, 2, 1)  # (T, h, w, C, O/T)
        else:
            side = math.isqrt(inputs // before)  # of the maps that were flattened, or 1
            rows = weight.reshape(outputs, towers, -1, side, side).transpose(0, 1, 3, 4, 2)  # (O, T, H, W, C/T)
            kernel = rows.reshape(towers, -1, inputs).transpose(0, 2, 1)  # (T, I, O/T)
        params[name] = {"kernel": kernel, "bias": arrays[f"{source}.bias"].reshape(towers, -1)}
        before = outputs
    return params


def to_torch(params, arrays, architecture):
    """The way back, to the layout and names of `arrays`."""
    places = to_ours({name: np.arange(a.size).reshape(a.shape) for name, a in arrays.items()}, architecture)
    back = {}
    for name, (layer, kind) in zip(arrays, itertools.product(places, ("kernel", "bias")), strict=True):
        back[name] = np.empty(arrays[name].size)
        back[name][places[layer][kind].ravel()] = np.ravel(params[layer][kind])
        back[name] = back[name].reshape(arrays[name].shape)
    return back


def assert_near(got, want, of=None):
    """To 1e-5 of the largest, or of something else."""
    of = np.abs(want).max() if of is None else of
    made_with = "The goldens were made with " + ", ".join(GOLDEN["versions"])
    np.testing.assert_allclose(got / of, want / of, rtol=0, atol=1e-5, err_msg=made_with)


@pytest.mark.parametrize("width", [16, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_loss_and_gradients_equal_pytorch_s(name, width):
    architecture, where = narrowed(NETWORKS[name], width), f"{name}/{width}"
    arrays, (images, labels) = weights.parameters(name, width), weights.inputs(name)
    params = to_ours(arrays, architecture)

    def loss_of(params, dtype):
        logits = AlexNet(architecture, dtype=dtype).apply({"params": params}, images)
        return cross_entropy(logits, labels).mean(), logits

    loss, logits = jax.jit(loss_of, static_argnums=1)(params, jnp.float32)
    assert_near(logits, GOLDEN[f"{where}/logits"])
    assert_near(loss, GOLDEN[f"{where}/loss"])

    with jax.enable_x64(True):
        step = jax.jit(jax.value_and_grad(loss_of, has_aux=True), static_argnums=1)
        (loss, logits), gradients = jax.device_get(step(jax.tree.map(np.float64, params), jnp.float64))
    assert_near(logits, GOLDEN[f"{where}/logits"])
    assert_near(loss, GOLDEN[f"{where}/loss"])
    for parameter, gradient in to_torch(gradients, arrays, architecture).items():
        norm, product, *elements = weights.probe(gradient)
        wanted_norm, wanted_product, *wanted_elements = GOLDEN[f"{where}/{parameter}"]
        assert_near(norm, wanted_norm)
        assert_near(product, wanted_product, of=wanted_norm)
        assert_near(np.array(elements), np.array(wanted_elements))


def test_twenty_steps_of_the_paper_s_rule_equal_its_formula_in_pytorch():
    recipe = recipe_of(place(architecture=TRAINED), TRAINED, crop=False, flip=False, pca_std=0.0)
    recipe = dataclasses.replace(recipe, update_rule="paper", learning_rate=weights.RATE)
    arrays, (images, labels, mean) = weights.parameters("TRAINED"), weights.training_set()
    state = init_state(recipe=recipe).replace(params=to_ours(arrays, TRAINED))
    state = jax.device_put(state, state_shardings(state, recipe))
    statistics, losses = Statistics(mean, statistics_of().pca), []
    for step in range(20):
        if step == 10:
            state = state.replace(schedule=state.schedule.replace(scale=0.1 * state.schedule.scale))
        rows = np.arange(8) + 8 * (step % 4)
        batch = {"image": images[rows], "label": labels[rows], "index": rows.astype(np.uint32)}
        state, metrics = train_step(state, put(batch, recipe), statistics, recipe=recipe)
        losses.append(float(metrics["loss"]))
    for loss, wanted in zip(losses, GOLDEN["TRAINED/losses"], strict=True):
        assert_near(loss, wanted)
    for name, array in to_torch(jax.device_get(state.params), arrays, TRAINED).items():
        assert_near(array, GOLDEN[f"TRAINED/{name}"])


def cifar_to_ours(arrays):
    """Our parameters of cuda-convnet's networks, one tower first and maps last, from PyTorch's."""
    params = {}
    for name, array in arrays.items():
        layer, kind = name.split(".")
        if layer.startswith("local"):
            side = math.isqrt(len(array))
            array = array.reshape(side, side, *array.shape[1:])
            array = array.transpose(0, 1, 4, 5, 3, 2) if kind == "weight" else array  # (H', W', h, w, C, O)
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2 and array.shape[1] > 64:  # behind maps, which were flattened with the maps first
            places = array.shape[1] // (64 if array.shape[1] == 1024 else 32)
            side = math.isqrt(places)
            array = array.reshape(len(array), -1, side, side).transpose(2, 3, 1, 0).reshape(array.shape[1], -1)
        elif array.ndim == 2:
            array = array.T
        params.setdefault(layer, {})["kernel" if kind == "weight" else "bias"] = array[None]
    return params


def assert_probes(found, wanted, tolerance):
    """Arrays in our layout, and the probes of them by PyTorch's names."""
    for name, (norm, product, *elements) in wanted.items():
        got_norm, got_product, *got_elements = weights.probe(found[name])
        np.testing.assert_allclose(got_norm, norm, rtol=tolerance, err_msg=name)
        np.testing.assert_allclose(got_product, product, atol=tolerance * norm, err_msg=name)
        largest = np.abs(elements).max()
        np.testing.assert_allclose(got_elements, elements, rtol=0, atol=tolerance * largest, err_msg=name)


def cifar_to_torch(params, arrays):
    """The way back, to the layout and names of `arrays`."""
    places = cifar_to_ours({name: np.arange(a.size).reshape(a.shape) for name, a in arrays.items()})
    back = {}
    for name, array in arrays.items():
        layer, kind = name.split(".")
        kind = "kernel" if kind == "weight" else "bias"
        back[name] = np.empty(array.size)
        back[name][places[layer][kind].ravel()] = np.ravel(params[layer][kind])
        back[name] = back[name].reshape(array.shape)
    return back


@pytest.mark.parametrize("name", weights.CIFAR)
def test_cuda_convnet_s_networks_and_twenty_steps_of_each_equal_pytorch_s(name):
    variant = name.removeprefix("CIFAR_").lower()
    config, architecture = cifar10.get_config(variant), networks.named(name)
    config.update(batch_size=8, plateau={"drops": 0}, schedule=())
    config.augment.update(crop=False, flip=False)
    arrays, (images, labels) = weights.cifar_parameters(name), weights.cifar_inputs(name)
    recipe = setup.recipe_from_config(config, 10, 8, place(architecture=architecture))
    assert dict(recipe.weight_decays) == weights.CIFAR_DECAYS[name]
    side = architecture[0].size
    batch = {"image": (images + 128).astype(np.uint8), "label": labels.astype(np.int32), "index": np.arange(8)}
    with jax.enable_x64(True):
        recipe = dataclasses.replace(recipe, network=recipe.network.clone(dtype=np.dtype("float64")))
        statistics = Statistics(np.full((side, side, 3), 128.0), statistics_of().pca)
        params = jax.tree.map(np.float64, cifar_to_ours(arrays))
        state = init_state(recipe=recipe)
        opt_state = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, state.opt_state)
        state = state.replace(params=params, opt_state=opt_state)

        def loss_of(params):
            logits = recipe.network.apply({"params": params}, images.astype(np.float64))
            return cross_entropy(logits, labels).mean(), logits

        (loss, logits), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params))
        losses = []
        for _ in range(20):
            state, metrics = train_step(state, put(batch, recipe), statistics, recipe=recipe)
            losses.append(float(metrics["loss"]))
        after = jax.device_get(state.params)
    golden = {key.removeprefix(f"{name}/"): array for key, array in CIFAR.items() if key.startswith(f"{name}/")}
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-9 * np.abs(logits).max())
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-9)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)  # rates are float32
    for what, tree in (("gradient", gradients), ("after", after)):
        probes = {key.removeprefix(f"{what}/"): probe for key, probe in golden.items() if key.startswith(f"{what}/")}
        assert_probes(cifar_to_torch(tree, arrays), probes, 1e-5)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of what imports TFDS
@pytest.mark.torch
def test_losses_of_a_run_equal_pytorch_s_step_by_step(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    learning_curve, rng = importlib.import_module("learning_curve"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 1)):
        for i in range(count):
            path = tmp_path / split / f"class{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(path)
    config = learning_curve.config_of([f"--config.dataset=folder:{tmp_path}", "--config.batch_size=8"])
    with jax.enable_x64(True):
        here, there = zip(*learning_curve.losses(config, 6, "float64"), strict=True)  # two epochs
    np.testing.assert_allclose(here, there, rtol=1e-12)
    assert len(set(here)) == 6


@pytest.mark.torch
def test_the_script_still_makes_these_goldens(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    made = importlib.import_module("networks").goldens(widths=(16,))
    del made["versions"]
    for name, array in made.items():
        np.testing.assert_allclose(array, GOLDEN[name], rtol=1e-9, atol=1e-9 * np.abs(array).max(), err_msg=name)
    made = importlib.import_module("cifar").goldens()
    del made["versions"]
    for name, array in made.items():
        np.testing.assert_allclose(array, CIFAR[name], rtol=1e-7, atol=1e-9 * np.abs(array).max(), err_msg=name)
