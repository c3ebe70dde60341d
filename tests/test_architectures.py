"""The networks' numbers: parameters, sizes, names, and what is refused."""

import math

import jax
import pytest

from alexnet_jax import (
    LRN,
    PAPER,
    QUICKSTART,
    SLIDES,
    AlexNet,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    ReLU,
    architectures,
    summary,
)
from alexnet_jax.architectures import check, layer_names, with_classes, without


def shapes(architecture):
    size = architecture[0].size
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return jax.eval_shape(AlexNet(architecture).init, jax.random.key(0), images)["params"]


def parameters(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def rows(architecture):
    """The summary's lines of layers: name -> (output, parameters)."""
    lines = [line.rsplit(maxsplit=1) for line in summary(architecture).splitlines()[1:-6]]
    return {left.split()[0]: (left.split(maxsplit=2)[2], int(count.replace(",", ""))) for left, count in lines}


def test_the_paper_has_60_965_224_parameters_and_the_slides_62_378_344():
    assert parameters(shapes(PAPER)) == 60_965_224
    assert parameters(shapes(SLIDES)) == 62_378_344


def test_the_summary_is_the_slides_table():
    table = rows(SLIDES)
    counts = [table[name][1] for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
    assert counts == [34_944, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000]
    assert sum(count for _, count in table.values()) == sum(counts)
    assert summary(SLIDES).splitlines()[-5:] == [
        "Parameters: 62,378,344",
        "Input size (MB): 0.59",
        "Forward/backward pass size (MB): 14.47",
        "Params size (MB): 237.95",
        "Estimated total size (MB): 253.01",
    ]


def test_each_layer_has_the_papers_number_of_neurons():
    table = rows(PAPER)
    outputs = [table[name][0] for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
    neurons = [math.prod(int(side) for side in output.split(" x ")) for output in outputs]
    # The first is 55x55x96; the paper prints 253,440, which no reading gives.
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


def test_towers_are_the_first_axis_of_every_parameter():
    tree = shapes(PAPER)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(tree)} == {2}
    assert tree["conv2"]["kernel"].shape == (2, 5, 5, 48, 128)  # 48: a kernel sees its own tower
    assert tree["conv3"]["kernel"].shape == (2, 3, 3, 256, 192)  # 256: of both towers
    assert tree["fc6"]["kernel"].shape == (2, 6 * 6 * 256, 2048)


def test_layers_are_named_as_in_the_paper():
    names = layer_names(PAPER)
    assert names[:6] == ("input", "conv1", "relu1", "lrn1", "pool1", "conv2")
    assert names[-9:] == ("pool5", "flatten5", "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8")
    for architecture in architectures.NAMED.values():
        assert len(set(layer_names(architecture))) == len(architecture)


def test_an_ablation_is_a_changed_tuple():
    bare = without(PAPER, LRN)
    assert len(bare) == len(PAPER) - 2
    assert not any(isinstance(layer, LRN) for layer in bare)
    assert parameters(shapes(bare)) == 60_965_224
    ten = with_classes(PAPER, 10)
    assert ten[:-1] == PAPER[:-1]
    assert ten[-1] == Dense(10)


@pytest.mark.parametrize("architecture", architectures.NAMED.values(), ids=architectures.NAMED)
def test_named_networks_pass_the_check(architecture):
    check(architecture)


HEAD = (Flatten(), Dense(10))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ((), "starts with Input and ends with Dense"),
        ((Conv(8, 3), *HEAD), "starts with Input"),
        ((Input(8), Conv(8, 3), ReLU()), "ends with Dense"),
        ((Input(8), Input(8), *HEAD), "input: Input stands at the start"),
        ((Input(8), Conv(8, 3), Dense(10)), r"fc2: .*put Flatten\(\) before"),
        ((Input(8), Flatten(), Conv(8, 3), Dense(10)), "conv1: Conv takes maps"),
        ((Input(8), Flatten(), MaxPool(), Dense(10)), "pool0: MaxPool takes maps"),
        ((Input(8), Conv(8, 11), *HEAD), "conv1: nothing is left"),
        ((Input(8, towers=2), Conv(9, 3), *HEAD), "conv1: 9 maps or units do not divide into 2 towers"),
        ((Input(8, towers=0), *HEAD), "input: towers is 0"),
        ((Input(8), LRN(n=4), *HEAD), "lrn0: n is 4; .* odd"),
        ((Input(8), Flatten(), Dense(8), LRN(), Dense(4)), "lrn1: LRN takes maps and must stand before Flatten"),
        ((Input(8, towers=2), Flatten(), *2 * (Dense(9),)), "fc1: 9 maps or units"),  # one object twice
    ],
)
def test_what_is_no_network_is_refused_by_the_layers_name(architecture, message):
    with pytest.raises(ValueError, match=message):
        check(architecture)


def test_the_last_layer_need_not_divide_into_the_towers():
    odd = with_classes(QUICKSTART, 7)
    check(odd)
    assert shapes(odd)["fc8"]["bias"].shape == (2, 4)
    assert isinstance(odd[-2], Dropout)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ((Input(8, towers=2), Flatten(), Dense(9), Dense(10)), "fc1: 9 maps or units do not divide into 2 towers"),
        ((Input(8), MaxPool(9, 2), *HEAD), "pool0: nothing is left"),
        ((Input(8), Conv(8, 11, padding=(0, 2)), *HEAD), "conv1: nothing is left"),
    ],
)
def test_hidden_units_windows_and_one_sided_padding_are_checked_too(architecture, message):
    with pytest.raises(ValueError, match=message):
        check(architecture)
    check((Input(8), Conv(8, 11, padding=(0, 3)), *HEAD))  # one pixel more is enough
