"""Each row of docs/fidelity.md, measured: what the field says, and that its change is seen."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import place

from alexnet_jax import (
    LRN,
    QUICKSTART,
    AlexNet,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    Local,
    ReLU,
    SameMapLRN,
    replace,
    without,
)
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import layer_names, weighted
from alexnet_jax.training import schedule
from alexnet_jax.training import step as step_lib
from alexnet_jax.training.augment import ColorPCA
from alexnet_jax.training.setup import recipe_from_config
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import TrainState, adjust_rate
from configs import alexnet, cifar10


@dataclasses.dataclass(frozen=True)
class Row:
    """A difference: how it is measured, what each network (or variant of the config) must give, and another choice."""

    measure: Callable
    values: dict
    change: Callable


def first(architecture, kind):
    return next(layer for layer in architecture if isinstance(layer, kind))


def shapes(architecture):
    size = architecture[0].size
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return jax.eval_shape(AlexNet(architecture).init, jax.random.key(0), images)["params"]


def outputs(layers, images, *, towers=1, params=None, **arguments):
    """What some layers make of (1, S, S, C) images, each by the name that it has behind them."""
    net = AlexNet((Input(images.shape[1], images.shape[3], towers), *layers, Flatten(), Dense(towers)))
    variables = net.init(jax.random.key(0), images)
    if params is not None:
        variables = {"params": variables["params"] | params}
    _, sown = net.apply(variables, images, mutable="intermediates", **arguments)
    return {name.removesuffix("_output"): np.asarray(value[0]) for name, value in sown["intermediates"].items()}


# Networks: a measure takes an architecture.


def pixels(architecture):
    for size in (224, 227):
        try:
            images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
            jax.eval_shape(AlexNet(architecture).init, jax.random.key(0), images)
            return size
        except ValueError:
            continue
    return None


def zeros(architecture):
    """How many rows of the first window of conv1, and of the last, are image and not zeros."""
    conv = dataclasses.replace(first(architecture, Conv), maps=1)
    params = {"conv1": {"kernel": jnp.ones((1, 11, 11, 1, 1)), "bias": jnp.zeros((1, 1))}}
    sums = outputs((conv,), jnp.ones((1, *2 * [architecture[0].size], 1)), params=params)["conv1"][0, ..., 0]
    return round(np.sqrt(sums[0, 0])), round(np.sqrt(sums[-1, -1]))


def widths(architecture):
    return [shapes(architecture)[f"conv{i}"]["bias"].size for i in range(1, 6)]


def towers(architecture):
    """How many maps a kernel of conv2 and one of conv3 see."""
    return [shapes(architecture)[name]["kernel"].shape[-2] for name in ("conv2", "conv3")]


def behind(name):
    """The kinds of layers between a convolution and what comes next with weights."""

    def measure(architecture):
        after = architecture[layer_names(architecture).index(name) + 1 :]
        stop = next(i for i, layer in enumerate(after) if isinstance(layer, Conv | Flatten))
        return [type(layer).__name__ for layer in after[:stop]]

    return measure


def dropped(architecture):
    """Which layers get their input from a dropout, with nothing but a ReLU between."""
    names = layer_names(architecture)
    found = []
    for position, layer in enumerate(architecture):
        if isinstance(layer, Dropout):
            found.append(next(n for n in names[position:] if n.startswith("fc")))
    return found


def same_map(architecture):
    """What the norms of conv2 but LRN leave of the middle of a map of 30s: (1 + 0.001 x 900)^-0.75."""
    norms = [layer for layer in architecture if isinstance(layer, SameMapLRN)]
    if not norms:
        return 1.0
    return outputs(norms, 30 * jnp.ones((1, 9, 9, 1)))["maplrn0"][0, 4, 4, 0] / 30


def lrn_of_five(architecture, energy):
    """What LRN leaves of the middle one of five maps of one tower, each with that energy."""
    lrn = dataclasses.replace(first(architecture, LRN), sees="own")
    a = np.sqrt(energy)
    return outputs((lrn,), jnp.full((1, 1, 1, 5), a, jnp.float32))["lrn0"][0, 0, 0, 2] / a


def window(architecture):
    """Whether a large first map of the second tower makes the last map of the first tower smaller."""
    lrn = dataclasses.replace(first(architecture, LRN), alpha=1.0)

    def last_of_the_first(other):
        bias = {"kernel": jnp.zeros((2, 1, 1, 3, 2)), "bias": jnp.array([[1, 1], [other, 1.0]])}
        layers = (Conv(4, 1), lrn)
        return outputs(layers, jnp.ones((1, 1, 1, 3)), towers=2, params={"conv1": bias})["lrn1"][0, 0, 0, 1]

    return last_of_the_first(5.0) < last_of_the_first(1.0)


def drawn(architecture):
    """The standard deviation of each layer's weights and the mean of its biases, drawn in a narrower layer."""
    stds, biases = [], []
    for layer in architecture:
        if isinstance(layer, Conv):
            network = (Input(11, 8), dataclasses.replace(layer, maps=64, sees="own"), Flatten(), Dense(1))
        elif isinstance(layer, Dense):
            network = (Input(11, 8), Flatten(), dataclasses.replace(layer, units=64), Dense(1))
        else:
            continue
        params = AlexNet(network).init(jax.random.key(1), jnp.zeros((1, 11, 11, 8)))["params"]
        params = params["conv1" if isinstance(layer, Conv) else "fc1"]
        stds.append(float(np.std(params["kernel"])))
        biases.append(float(np.mean(params["bias"])))
    return stds, biases


def halving(architecture):
    """The factors of dropout at test time, and on what is kept in training."""
    layers, ones = (first(architecture, Dropout),), jnp.ones((1, 8, 8, 1))
    train_factor = outputs(layers, ones, train=True, rngs={"dropout": jax.random.key(0)})["drop0"].max()
    return [outputs(layers, ones)["drop0"].max(), train_factor]


def scale(architecture):
    """What an image of 100s is to the first layer."""
    net = AlexNet((dataclasses.replace(architecture[0], size=1, towers=1), Flatten(), Dense(3)))
    params = {"fc1": {"kernel": jnp.eye(3)[None], "bias": jnp.zeros((1, 3))}}
    return list(np.asarray(net.apply({"params": params}, jnp.full((1, 1, 1, 3), 100.0))[0]))


ALL = ("PAPER", "SLIDES", "SOURCE_2012", "CAFFE_ALEXNET", "CAFFENET", "TORCHVISION")


def of_all(*values, networks=ALL):
    return dict(zip(networks, values, strict=True))


FC = [0.01, 0.01, 0.01]
HIDDEN = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
NETWORKS = {
    "pixels": Row(
        pixels, of_all(224, 227, 224, 227, 227, 224), lambda a: replace(a, Input, size=224 + 227 - a[0].size)
    ),
    "zeros": Row(
        zeros,
        of_all((11, 8), (11, 11), (11, 8), (11, 11), (11, 11), (9, 10)),
        lambda a: replace(a, "conv1", padding=1),
    ),
    "widths": Row(
        widths,
        of_all(*5 * [[96, 256, 384, 384, 256]], [64, 192, 384, 256, 256]),
        lambda a: replace(a, "conv1", maps=32),
    ),
    "towers": Row(
        towers,
        of_all([48, 256], [96, 256], [48, 256], [48, 256], [48, 256], [64, 192]),
        lambda a: replace(a, Input, towers=3 - a[0].towers),
    ),
    "order": Row(
        behind("conv1"),
        of_all(
            ["ReLU", "LRN", "MaxPool"],
            ["ReLU", "LRN", "MaxPool"],
            ["LRN", "MaxPool", "ReLU"],
            ["ReLU", "LRN", "MaxPool"],
            ["ReLU", "MaxPool", "LRN"],
            ["ReLU", "MaxPool"],
        ),
        lambda a: (*a[:2], a[3], a[2], *a[4:]),
    ),
    "conv5": Row(
        behind("conv5"),
        of_all(
            ["ReLU", "MaxPool"],
            ["MaxPool"],
            ["MaxPool", "ReLU"],
            ["ReLU", "MaxPool"],
            ["ReLU", "MaxPool"],
            ["ReLU", "MaxPool"],
        ),
        lambda a: (*a[: (at := layer_names(a).index("conv5")) + 1], ReLU(), *a[at + 1 :]),
    ),
    "same_map": Row(
        same_map,
        of_all(1.0, 1.0, (1 + 0.001 * 900) ** -0.75, 1.0, 1.0, 1.0),
        lambda a: without(a, SameMapLRN) if a is networks.SOURCE_2012 else (*a[:8], SameMapLRN(), *a[8:]),
    ),
    "alpha": Row(
        lambda a: lrn_of_five(a, 1e4) / lrn_of_five(a, 1e-4),
        of_all(
            *((2 / (2 + 5)) ** 0.75, (2 / (2 + 1)) ** 0.75, (2 / (2 + 1)) ** 0.75, (1 / 2) ** 0.75, (1 / 2) ** 0.75),
            networks=ALL[:5],
        ),
        lambda a: replace(a, LRN, average=not first(a, LRN).average),
    ),
    "k": Row(
        lambda a: lrn_of_five(a, 1e-4),
        of_all(2**-0.75, 2**-0.75, 2**-0.75, 1.0, 1.0, networks=ALL[:5]),
        lambda a: replace(a, LRN, k=3 - first(a, LRN).k),
    ),
    "window": Row(
        window,
        {"PAPER": False, "SOURCE_2012": False, "CAFFE_ALEXNET": True, "CAFFENET": True},
        lambda a: replace(a, LRN, sees="own" if first(a, LRN).sees == "all" else "all"),
    ),
    "std": Row(
        lambda a: drawn(a)[0],
        of_all(
            [0.01] * 8,
            [0.01] * 8,
            [0.01, 0.01, 0.03, 0.03, 0.03, *FC],
            [*[0.01] * 5, 0.005, 0.005, 0.01],
            [*[0.01] * 5, 0.005, 0.005, 0.01],
            [(3 * fan_in) ** -0.5 for fan_in in (363, 1600, 1728, 3456, 2304, 9216, 4096, 4096)],
        ),
        lambda a: replace(a, "conv4", std=0.02),
    ),
    "biases": Row(
        lambda a: drawn(a)[1],
        of_all(
            [*HIDDEN, 0.0], [*HIDDEN, 1.0], [*HIDDEN, 0.0], [*(0.1 * b for b in HIDDEN), 0.0], [*HIDDEN, 0.0], [0.0] * 8
        ),
        lambda a: replace(a, "fc8", bias=0.5),
    ),
    "dropout": Row(
        dropped,
        of_all(["fc7", "fc8"], ["fc6", "fc7"], *3 * [["fc7", "fc8"]], ["fc6", "fc7"]),
        lambda a: without(a, Dropout),
    ),
    "halving": Row(
        halving,
        of_all([0.5, 1.0], [1.0, 2.0], [0.5, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]),
        lambda a: replace(a, Dropout, rescale=not first(a, Dropout).rescale),
    ),
    "scale": Row(
        scale,
        of_all(*5 * [[100.0, 100.0, 100.0]], [100 / 255 / 0.229, 100 / 255 / 0.224, 100 / 255 / 0.225]),
        lambda a: replace(a, Input, scale=0.5),
    ),
}


# Recipes: a measure takes a config. Ten steps are an epoch.


def recipe_of(config, **fields):
    config.update_from_flattened_dict({"architecture": "QUICKSTART", **fields})
    schedule = tuple((epoch, "conv1" if layer == "conv1" else "*", rate) for epoch, layer, rate in config.schedule)
    config.schedule = schedule
    return recipe_from_config(config, 10, 1280, place(architecture=QUICKSTART))


def state_of(recipe, epoch):
    """What the rates look at in a state."""
    plan = schedule.initial(10).replace(left_chance=jnp.int32(1))
    return TrainState(step=jnp.int32(10 * epoch), params={}, opt_state=(), schedule=plan)


def augmented(recipe, image, mean_image, n=64, step=0):
    """The same image, augmented as n examples in a row."""
    pca = ColorPCA(jnp.eye(3), jnp.array([0.04, 0.0, 0.0]))
    batch = {"index": jnp.arange(n, dtype=jnp.uint32), "image": jnp.broadcast_to(image, (n, *image.shape))}
    return np.asarray(step_lib.augmented(recipe, batch, Statistics(mean_image, pca), step))


RAMP = jnp.arange(40 * 40 * 3.0).reshape(40, 40, 3)
FLAT = jnp.full((40, 40, 3), 110.0)


def distinct(images):
    return len({image.tobytes() for image in images})


def mean_is_one(config):
    """Whether the same mean is subtracted wherever a crop falls."""
    recipe = recipe_of(config, **{"augment.pca_std": 0.0, "augment.flip": False, "augment.group": 1})
    return distinct(augmented(recipe, 0 * RAMP, RAMP)) == 1


def in_a_row(config):
    """How many examples in a row have one crop and flip."""
    images = augmented(recipe_of(config, **{"augment.pca_std": 0.0}), RAMP, 0 * RAMP, n=128)
    changes = np.flatnonzero([not np.array_equal(a, b) for a, b in itertools.pairwise(images)])
    return int(changes[0]) + 1 if distinct(images) < 100 else 1


def color_shift(config, step=0, **fields):
    """The standard deviation of the shift of the first colour, whose eigenvalue is 0.04."""
    recipe = recipe_of(config, **fields)
    return augmented(recipe, 0 * FLAT, 0 * FLAT, n=512, step=step)[:, 0, 0, 0].std()


def left_of_110(config):
    return augmented(recipe_of(config), FLAT, 0 * FLAT)[:, 0, 0, 1].mean()


def moved(config, gradient, steps, *, epoch=0):
    """How much a kernel and a bias, both 1, of one layer move in each step under a constant gradient."""
    recipe = recipe_of(config)
    params = {"conv2": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    state = state_of(recipe, epoch)
    rule = recipe.rule({"conv2": recipe.rate(state, "conv2")}, {"conv2": recipe.bias_rate(state, "conv2")})
    opt_state, gradients = rule.init(params), jax.tree.map(lambda p: gradient * p, params)
    moves = []
    for _ in range(steps):
        updates, opt_state = rule.update(gradients, opt_state, params)
        moves.append({name: float(u[0]) for name, u in updates["conv2"].items()})
    return moves


def decay_gathers(config):
    """How much larger the second step is, where only the weight decay acts."""
    one, two = moved(config, 0.0, 2)
    return two["kernel"] / one["kernel"]


def bias_rates(config):
    """A bias's step by a kernel's, at the start and after 30 epochs."""
    return [
        moves[0]["bias"] / moves[0]["kernel"]
        for moves in (moved(config, 1e3, 1, epoch=0), moved(config, 1e3, 1, epoch=30))
    ]


def rates(layer, *epochs):
    def measure(config):
        recipe = recipe_of(config)
        return [float(recipe.rate(state_of(recipe, epoch), layer)) for epoch in epochs]

    return measure


def plateau(config):
    """The rate after thirty evaluations without improvement."""
    recipe = recipe_of(config)
    state = state_of(recipe, 0)
    for epoch in range(30):  # of ImageNet's 10,009 steps
        after = adjust_rate(state.replace(step=jnp.int32(10_009 * epoch)), 50.0, recipe=recipe)
        state = state.replace(schedule=after)
    return [float(recipe.rate(state)), *rates("*", 24, 26, 52, 80)(config)]


def of_both(paper, source):
    return {"paper": paper, "source2012": source}


def setting(name, *choices):
    """The other of two choices for a field."""

    def change(config):
        inner, last = (config.augment, name.removeprefix("augment.")) if "." in name else (config, name)
        inner[last] = choices[choices.index(inner[last]) - 1]
        return config

    return change


SCHEDULE = alexnet.VARIANTS["source2012"]["schedule"]
CONFIGS = {
    "mean": Row(mean_is_one, of_both(False, True), setting("mean_at", "crop", "center")),
    "crops": Row(in_a_row, of_both(1, 32), setting("augment.group", 1, 32)),
    "colors": Row(
        lambda c: color_shift(c, **{"augment.pca_rescale": False}),
        of_both(255 * 0.04 * 0.1, 255 * 0.2 * 0.1),
        setting("augment.pca_scale", "eigenvalue", "stdev"),
    ),
    "division": Row(left_of_110, of_both(110.0, 100.0), setting("augment.pca_rescale", False, True)),
    "noise": Row(
        lambda c: [color_shift(c, step) > 0 for step in (0, 669, 670, 900)],
        of_both([True] * 4, [True, True, False, False]),
        setting("augment.pca_epochs", 0.0, 67.0),
    ),
    "decay": Row(decay_gathers, of_both(1.0, 1.9), setting("update_rule", "decoupled", "source2012")),
    "bias_rate": Row(bias_rates, of_both([1.0, 1.0], [2.0, 20.0]), setting("update_rule", "decoupled", "source2012")),
    "bias_decay": Row(
        lambda c: moved(c, 0.0, 1)[0]["bias"] != 0,
        of_both(True, False),
        setting("update_rule", "decoupled", "source2012"),
    ),
    "rates": Row(
        plateau,
        of_both([1e-5, 0.01, 0.01, 0.01, 0.01], [0.01, 0.01, 1e-3, 1e-4, 1e-5]),
        setting("schedule", (), SCHEDULE),
    ),
    "conv1": Row(
        rates("conv1", 26, 66, 68, 73, 80),
        of_both([0.01] * 5, [1e-3, 1e-4, 1e-5, 0.0, 0.0]),
        setting("schedule", (), SCHEDULE),
    ),
}


def agree(measured, value):
    """Whether both are the same; floats within 8%, for some are measured on hundreds of random numbers."""
    if isinstance(value, list):
        return len(measured) == len(value) and all(map(agree, measured, value))
    return measured == (pytest.approx(value, rel=0.08, abs=1e-9) if isinstance(value, float) else value)


@pytest.mark.parametrize(("row", "name"), [(row, name) for row in NETWORKS for name in NETWORKS[row].values])
def test_networks(row, name):
    measure, value, change = NETWORKS[row].measure, NETWORKS[row].values[name], NETWORKS[row].change
    architecture = networks.NAMED[name]
    assert agree(measure(architecture), value)
    assert not agree(measure(change(architecture)), value)


@pytest.mark.parametrize(("row", "name"), [(row, name) for row in CONFIGS for name in CONFIGS[row].values])
def test_recipes(row, name):
    measure, value, change = CONFIGS[row].measure, CONFIGS[row].values[name], CONFIGS[row].change
    assert agree(measure(alexnet.get_config(name)), value)
    assert not agree(measure(change(alexnet.get_config(name))), value)


def cuda_convnet(config):
    """What the page says of a network of cuda-convnet and its recipe: norms, local3, decays, lengths, crops."""
    architecture = networks.named(config.architecture)
    names = layer_names(architecture)
    norms = [
        (name, layer.n, layer.k, layer.alpha) for name, layer in zip(names, architecture, strict=True) if "lrn" in name
    ]
    wide = [layer.maps for layer in architecture if isinstance(layer, Local)]
    recipe = recipe_from_config(config, 10, 50_000, place(architecture=architecture))
    state = dataclasses.replace(state_of(recipe, 0), step=jnp.int32(0))
    decays = tuple(dict(config.weight_decays).get(name, 0.0) for name in weighted(architecture))
    late = dataclasses.replace(state, step=jnp.int32(recipe.end - 1))
    rates = [float(rate) for s in (state, late) for rate in (recipe.rate(s), recipe.bias_rate(s, "conv1"))]
    ends = [round(step * 128 / 50_000, 1) for step, _, _ in recipe.schedule], round(recipe.end * 128 / 50_000, 1)
    seen = config.augment.crop, config.augment.flip, config.mean_at, config.views, architecture[0].size
    return [norms, wide, decays, rates, ends, seen, config.early_share]


CONV_DECAYS = (0.004, 0.004, 0.004)
# Of kernels and biases, at the beginning and in the last step.
RATES, OF_80SEC, KERNELS = (
    pytest.approx(rates) for rates in ([1e-3, 2e-3, 1e-5, 2e-5], [1e-3, 2e-3, 1e-4, 2e-4], [1e-3, 2e-3, 1e-5, 2e-3])
)
WHOLE, CROPS = (False, False, "crop", 1, 32), (True, True, "center", 10, 24)
ACROSS_9 = [("lrn1", 9, 1.0, 0.001), ("lrn2", 9, 1.0, 0.001)]
ACROSS_5 = [("lrn1", 5, 1.0, 0.001), ("lrn2", 5, 1.0, 0.001)]
WITHIN = [("maplrn1", 3, 1.0, 5e-5), ("maplrn2", 3, 1.0, 5e-5)]
# The ends of the rates, in epochs of 50,000 images: 100 early epochs of 40,000 are 80 of them.
CUDA_CONVNET = {
    "conv_local_13pct": [[], [32, 32], (0, 0, 0.004, 0.004, 0.004), KERNELS, ([120, 130], 140), CROPS, 0.8],
    "conv_local_11pct": [ACROSS_9, [64, 32], (0, 0, 0.004, 0.004, 0.01), KERNELS, ([430, 440], 450), CROPS, 0.8],
    "conv_local_11pct_first": [
        ACROSS_5,
        [32, 32],
        (0, 0, 0.004, 0.004, 0.004),
        KERNELS,
        ([390, 400], 410),
        CROPS,
        0.8,
    ],
    "19pct": [[], [], (*CONV_DECAYS, 3.0), RATES, ([120, 130], 140), WHOLE, 1.0],
    "18pct": [WITHIN, [], (*CONV_DECAYS, 1.0), RATES, ([120, 130], 140), WHOLE, 1.0],
    "80sec": [[], [], (*CONV_DECAYS, 0.03, 0.03), OF_80SEC, ([8], 10), WHOLE, 1.0],
}
FLIPS = {
    "architecture": lambda config: "CIFAR_80SEC" if config.architecture != "CIFAR_80SEC" else "CIFAR_18PCT",
    "weight_decays": lambda config: config.weight_decays[:-1],
    "update_rule": lambda config: "caffe" if config.update_rule == "source2012" else "source2012",
    "learning_rate": lambda config: 0.002,
    "augment.flip": lambda config: not config.augment.flip,
    "num_epochs": lambda config: config.num_epochs + 1,
    "schedule": lambda config: config.schedule[:-1],
    "mean_at": lambda config: "center" if config.mean_at == "crop" else "crop",
    "augment.crop": lambda config: not config.augment.crop,
    "early_share": lambda config: 0.5,
    "views": lambda config: 5,
}


@pytest.mark.parametrize("variant", CUDA_CONVNET)
def test_cuda_convnet_s_recipes(variant):
    assert cuda_convnet(cifar10.get_config(variant)) == CUDA_CONVNET[variant]
    for field, other in FLIPS.items():
        config = cifar10.get_config(variant)
        config.update_from_flattened_dict({field: other(config)})
        if field == "architecture":
            config.weight_decays = ()
        assert cuda_convnet(config) != CUDA_CONVNET[variant], field


def test_each_row_of_the_page_is_tested_here():
    page = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.*\| `?([\w. ]+)[`,|]", page, re.MULTILINE)
    named = [row for row, _ in rows]
    assert [row for row in named if row not in networks.NAMED] == [*NETWORKS, *CONFIGS]
