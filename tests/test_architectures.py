"""The networks' numbers: parameters, sizes, names, and what is refused."""

import dataclasses
import math

import jax
import pytest

from alexnet_jax import (
    LRN,
    PAPER,
    QUICKSTART,
    RBF,
    SLIDES,
    AlexNet,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    ReLU,
    SameMapLRN,
    Subsample,
    Tanh,
    replace,
    summary,
    with_classes,
    without,
)
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import check, layer_names


def shapes(architecture):
    size = architecture[0].size
    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    return jax.eval_shape(AlexNet(architecture).init, jax.random.key(0), images)["params"]


def parameters(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def rows(architecture, batch_size=1):
    """The summary's lines of layers: name -> (output, parameters, multiply-adds, bytes)."""
    lines = [line.rsplit(maxsplit=3) for line in summary(architecture, batch_size).splitlines()[1:-7]]
    return {
        left.split()[0]: (left.split(maxsplit=2)[2], *(int(number.replace(",", "")) for number in numbers))
        for left, *numbers in lines
    }


# By hand: (inputs of a kernel + its bias) x kernels, layer by layer.
FULL = 96 * 364 + 256 * 1201 + 384 * 2305 + 384 * 1729 + 256 * 1729 + 4096 * 9217 + 4096 * 4097 + 1000 * 4097
HALF = 48 * 364 + 128 * 1201 + 192 * 1153 + 192 * 1729 + 256 * 1729 + 4096 * 9217 + 4096 * 4097 + 1000 * 4097
CIFAR = 32 * 76 + 32 * 801 + 64 * 801 + 10 * 1025
CONVS = 64 * 76 + 64 * 1601
PARAMETERS = {
    "PAPER": 60_965_224,
    "SOURCE_2012": 60_965_224,
    "SLIDES": 62_378_344,
    "ONE_GPU": HALF,
    "SIX_CONV": FULL + 256 * 2305,
    "CAFFE_ALEXNET": 60_965_224,
    "CAFFENET": 60_965_224,
    "TORCHVISION": 61_100_840,
    "LENET5": 60_000,
    "CIFAR_FOUR_LAYER": CIFAR,
    "CIFAR_FOUR_LAYER_TANH": CIFAR,
    "CIFAR_FOUR_LAYER_LRN": CIFAR,
    "CIFAR_19PCT": CIFAR,
    "CIFAR_18PCT": CIFAR,
    "CIFAR_80SEC": 32 * 76 + 32 * 801 + 64 * 801 + 64 * 1025 + 10 * 65,
    "CONV_LOCAL_13PCT": CONVS + 36 * 32 * (577 + 289) + 10 * 1153,  # 6 x 6 places with kernels of their own
    "CONV_LOCAL_11PCT_FIRST": CONVS + 36 * 32 * (577 + 289) + 10 * 1153,
    "CONV_LOCAL_11PCT": CONVS + 36 * (64 * 577 + 32 * 577) + 10 * 1153,
    "QUICKSTART": 32 * 76 + 64 * 401 + 96 * 577 + 96 * 433 + 64 * 433 + 256 * 257 + 256 * 257 + 10 * 257,
    "PAPER_NO_LRN": FULL,
    "PAPER_NO_OVERLAP": FULL,
    "PAPER_TANH": FULL,
    "PAPER_NO_DROPOUT": FULL,
    "PAPER_ONE_COLUMN": 62_378_344,
    "PAPER_NO_CONV2": FULL - 256 * 1201 - 384 * 2305 + 384 * 865,  # conv3 sees conv1's 96 maps
    "PAPER_NO_CONV3": FULL - 384 * 2305 - 384 * 1729 + 384 * 1153,  # conv4 sees conv2's own 128 maps
    "PAPER_NO_CONV4": FULL - 384 * 1729,
    "PAPER_NO_CONV5": FULL - 256 * 1729 - 4096 * 9217 + 4096 * (36 * 384 + 1),
    "PAPER_NO_FC6": FULL - 4096 * 4097,
}


@pytest.mark.parametrize("change", ["ONE_GPU", "SIX_CONV"])
def test_changes_that_are_not_defined_for_local_layers_are_refused(change):
    with pytest.raises(ValueError, match=f"there is no CONV_LOCAL_13PCT_{change}: it has locally connected layers"):
        networks.named(f"CONV_LOCAL_13PCT_{change}")


def test_the_sum_by_hand_is_the_paper_s():
    assert PARAMETERS["PAPER"] == FULL


@pytest.mark.parametrize("name", networks.NAMED)
def test_each_network_has_the_parameters_that_are_counted_by_hand(name):
    assert parameters(shapes(networks.NAMED[name])) == PARAMETERS[name]


def kinds(architecture):
    return " ".join(type(layer).__name__ for layer in architecture)


CONV = "Conv ReLU LRN MaxPool Conv ReLU LRN MaxPool Conv ReLU Conv ReLU Conv"
DENSE = "Dense ReLU Dropout Dense ReLU Dropout Dense"
CIFARS, LOCALS = "Conv ReLU AveragePool Conv ReLU AveragePool", "Local ReLU Local ReLU"
KINDS = {
    "PAPER": f"Input {CONV} ReLU MaxPool Flatten {DENSE}",
    "SOURCE_2012": "Input Conv LRN MaxPool ReLU Conv ReLU LRN SameMapLRN MaxPool Conv ReLU Conv ReLU Conv MaxPool ReLU "
    f"Flatten {DENSE}",
    "SLIDES": f"Input {CONV} MaxPool Flatten Dropout Dense ReLU Dropout Dense ReLU Dense",
    "ONE_GPU": f"Input {CONV} ReLU MaxPool Flatten {DENSE}",
    "SIX_CONV": f"Input {CONV} ReLU MaxPool Conv ReLU Flatten {DENSE}",
    "CAFFE_ALEXNET": f"Input {CONV} ReLU MaxPool Flatten {DENSE}",
    "CAFFENET": "Input Conv ReLU MaxPool LRN Conv ReLU MaxPool LRN Conv ReLU Conv ReLU Conv ReLU MaxPool "
    f"Flatten {DENSE}",
    "TORCHVISION": "Input Conv ReLU MaxPool Conv ReLU MaxPool Conv ReLU Conv ReLU Conv ReLU MaxPool Flatten "
    "Dropout Dense ReLU Dropout Dense ReLU Dense",
    "LENET5": "Input Conv Tanh Subsample Tanh Conv Tanh Subsample Tanh Conv Tanh Flatten Dense Tanh RBF",
    "CIFAR_FOUR_LAYER": "Input Conv MaxPool ReLU Conv ReLU AveragePool Conv ReLU AveragePool Flatten Dense",
    "CIFAR_FOUR_LAYER_LRN": "Input Conv MaxPool ReLU LRN Conv ReLU AveragePool LRN Conv ReLU AveragePool Flatten Dense",
    "CIFAR_19PCT": f"Input Conv MaxPool ReLU {CIFARS} Flatten Dense",
    "CIFAR_18PCT": "Input Conv MaxPool ReLU SameMapLRN Conv ReLU AveragePool SameMapLRN Conv ReLU AveragePool "
    "Flatten Dense",
    "CIFAR_80SEC": f"Input Conv MaxPool ReLU {CIFARS} Flatten Dense ReLU Dense",
    "CONV_LOCAL_13PCT": f"Input Conv ReLU MaxPool Conv ReLU MaxPool {LOCALS} Flatten Dense",
    "CONV_LOCAL_11PCT": f"Input Conv ReLU MaxPool LRN Conv ReLU LRN MaxPool {LOCALS} Flatten Dense",
    "CONV_LOCAL_11PCT_FIRST": f"Input Conv ReLU LRN MaxPool Conv ReLU LRN MaxPool {LOCALS} Flatten Dense",
}
PAPERS_LRN, THE_MEAN = LRN(5, 2.0, 1e-4, 0.75, False, "own"), LRN(5, 2.0, 1e-4, 0.75, True, "own")
CAFFES_LRN = LRN(5, 1.0, 1e-4, 0.75, True, "all")
NORMS = {
    **{"PAPER": PAPERS_LRN, "ONE_GPU": PAPERS_LRN, "SIX_CONV": PAPERS_LRN, "CIFAR_FOUR_LAYER_LRN": PAPERS_LRN},
    "CONV_LOCAL_11PCT": LRN(9, 1.0, 0.001, 0.75, True, "own"),
    "CONV_LOCAL_11PCT_FIRST": LRN(5, 1.0, 0.001, 0.75, True, "own"),
    **{"SOURCE_2012": THE_MEAN, "SLIDES": THE_MEAN, "CAFFE_ALEXNET": CAFFES_LRN, "CAFFENET": CAFFES_LRN},
}


@pytest.mark.parametrize("name", KINDS)
def test_each_network_has_its_layers_in_their_order_and_the_same_constants_throughout(name):
    architecture = networks.NAMED[name]
    assert kinds(architecture) == KINDS[name]
    rescales = name in ("SLIDES", "CAFFE_ALEXNET", "CAFFENET", "TORCHVISION")
    for layer in architecture:
        match layer:
            case LRN():
                assert layer == NORMS[name]
            case SameMapLRN():
                within = SameMapLRN(3, 1.0, 5e-5, 0.75) if name == "CIFAR_18PCT" else SameMapLRN(5, 1.0, 1e-3, 0.75)
                assert layer == within
            case Dropout():
                assert layer == Dropout(0.5, rescales)
            case MaxPool() | AveragePool():
                assert (layer.size, layer.stride, layer.round_up) == (3, 2, name.startswith(("CIFAR", "CONV_LOCAL")))
            case Subsample():
                assert layer == Subsample(2)
            case Tanh():
                assert layer == Tanh(1.7159, 2 / 3)


def test_the_network_for_one_gpu_is_the_paper_s_with_half_the_kernels_but_conv5_s():
    half = replace(PAPER, Input, towers=1)
    for name, maps in {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192}.items():
        half = replace(half, name, maps=maps)
    assert replace(half, "conv3", sees="own") == networks.ONE_GPU


def test_the_sixth_convolution_sees_both_towers_and_is_all_that_is_new():
    assert without(networks.SIX_CONV, "conv6") == PAPER
    assert networks.SIX_CONV[16] == Conv(256, 3, padding=1, sees="all", bias=1.0)


def test_lenet_5_starts_as_its_paper_says():
    weighted = [layer for layer in networks.LENET5 if isinstance(layer, Conv | Dense)]
    fan_ins = (25, 60 * 25 / 16, 400, 120)  # C3's is a mean
    for layer, fan_in in zip(weighted, fan_ins, strict=True):
        assert layer.std == pytest.approx(2.4 / fan_in / 3**0.5, rel=5e-3)
        assert layer.bias == 0
    assert networks.LENET5[0].scale == pytest.approx(1.275 / 255)
    table = weighted[1].table
    assert [len(entry) for entry in table] == [3] * 6 + [4] * 9 + [6]
    assert [sum(i in entry for entry in table) for i in range(6)] == [10] * 6  # each map is seen by ten


def test_the_cifar_network_starts_as_the_2012_program_s():
    weighted = [layer for layer in networks.CIFAR_FOUR_LAYER if isinstance(layer, Conv | Dense)]
    assert [layer.std for layer in weighted] == [0.0001, 0.01, 0.01, 0.01]
    assert [layer.bias for layer in weighted] == [0] * 4


def test_lenet_5_has_its_paper_s_layers():
    table = rows(networks.LENET5)
    names = ("conv1", "subsample2", "conv3", "subsample4", "conv5", "fc6")  # C1 S2 C3 S4 C5 F6
    assert [table[name][1] for name in names] == [156, 12, 1_516, 32, 48_120, 10_164]
    assert [table[name][0] for name in names] == [
        "28 x 28 x 6",
        "14 x 14 x 6",
        "10 x 10 x 16",
        "5 x 5 x 16",
        "1 x 1 x 120",
        "84",
    ]
    (code,) = {len(code) for code in networks.LENET5[-1].codes}
    assert code == 7 * 12 == 84
    assert len(set(networks.LENET5[-1].codes)) == 10


def test_the_cifar_network_s_pools_round_up():
    table = rows(networks.CIFAR_FOUR_LAYER)
    sizes = [table[name][0] for name in ("conv1", "pool1", "pool2", "pool3")]
    assert sizes == ["32 x 32 x 32", "16 x 16 x 32", "8 x 8 x 32", "4 x 4 x 64"]


def test_multiply_adds_and_bytes_are_those_counted_by_hand():
    table = rows(PAPER, batch_size=2)
    assert table["conv1"][2] == 2 * 55 * 55 * 96 * 363
    assert table["conv2"][2] == 2 * 27 * 27 * 256 * 25 * 48
    assert table["conv3"][2] == 2 * 13 * 13 * 384 * 9 * 256
    assert table["fc6"][2] == 2 * 4096 * 9216
    assert table["lrn1"][2] == 0
    assert table["conv1"][3] == table["lrn1"][3] == 2 * 4 * 55 * 55 * 96
    assert rows(networks.LENET5)["conv3"][2] == 10 * 10 * 60 * 25  # sixty connections
    total = sum(row[2] for row in table.values())
    assert f"Multiply-adds, forward: {total:,}" in summary(PAPER, 2).splitlines()


def test_the_summary_is_the_slides_table():
    table = rows(SLIDES)
    counts = [table[name][1] for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
    assert counts == [34_944, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000]
    assert sum(row[1] for row in table.values()) == sum(counts)
    assert summary(SLIDES).splitlines()[-6:] == [
        "Parameters: 62,378,344",
        "Multiply-adds, forward: 1,135,256,096",
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
    for architecture in networks.NAMED.values():
        assert len(set(layer_names(architecture))) == len(architecture)


def test_what_comes_twice_behind_the_same_weights_is_counted():
    names = layer_names(networks.NAMED["PAPER_NO_CONV2"])
    assert names[:9] == ("input", "conv1", "relu1", "lrn1", "pool1", "lrn1_2", "pool1_2", "conv2", "relu2")


def test_an_ablation_is_a_changed_tuple():
    bare = without(PAPER, LRN)
    assert len(bare) == len(PAPER) - 2
    assert not any(isinstance(layer, LRN) for layer in bare)
    ten = with_classes(PAPER, 10)
    assert ten[:-1] == PAPER[:-1]
    assert ten[-1] == Dense(10)


def test_a_layer_that_is_left_out_by_name_takes_what_belongs_to_it():
    assert without(PAPER, "conv4") == (*PAPER[:11], *PAPER[13:])  # and its ReLU
    assert without(PAPER, "fc6") == (*PAPER[:17], *PAPER[20:])  # and its ReLU and dropout
    assert without(PAPER, "lrn2") == (*PAPER[:7], *PAPER[8:])
    with pytest.raises(ValueError, match="the architecture has no conv9; its layers are input, conv1, relu1"):
        without(PAPER, "conv9")
    with pytest.raises(ValueError, match="the architecture has no Tanh"):
        without(PAPER, Tanh)


def test_layers_are_exchanged_or_changed_by_kind_or_name():
    tanh = replace(PAPER, ReLU, Tanh())
    assert [type(layer) for layer in tanh if isinstance(layer, ReLU | Tanh)] == [Tanh] * 7
    assert replace(tanh, Tanh, ReLU()) == PAPER
    assert [layer.average for layer in replace(PAPER, LRN, average=True) if isinstance(layer, LRN)] == [True, True]
    changed = replace(PAPER, "conv2", bias=0.0)
    assert changed[5] == Conv(256, 5, padding=2)
    assert (*changed[:5], PAPER[5], *changed[6:]) == PAPER


def test_without_overlap_pooling_leaves_as_many_pixels():
    overlapping, not_overlapping = rows(PAPER), rows(networks.NAMED["PAPER_NO_OVERLAP"])
    for name in ("pool1", "pool2", "pool5"):
        assert not_overlapping[name][0] == overlapping[name][0]


def test_lenet_5_has_codes_for_ten_digits():
    assert with_classes(networks.LENET5, 3)[-1].codes == networks.LENET5[-1].codes[:3]
    with pytest.raises(ValueError, match=r"has codes for 10 classes, not for 11; .* replace its RBF by Dense"):
        with_classes(networks.LENET5, 11)


@pytest.mark.parametrize("architecture", networks.NAMED.values(), ids=networks.NAMED)
def test_named_networks_pass_the_check(architecture):
    check(architecture)


HEAD = (Flatten(), Dense(10))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ((), "starts with Input and ends with Dense"),
        ((Conv(8, 3), *HEAD), "starts with Input"),
        ((Input(8), Conv(8, 3), ReLU()), "ends with Dense"),
        ((Input(8), Input(8), *HEAD), "input_2: Input must be the first layer"),
        ((Input(8), Conv(8, 3), Dense(10)), r"fc2: .*put Flatten\(\) before"),
        ((Input(8), Flatten(), Conv(8, 3), Dense(10)), "conv1: Conv takes maps"),
        ((Input(8), Flatten(), MaxPool(), Dense(10)), "pool0: MaxPool takes maps"),
        ((Input(8), Conv(8, 11), *HEAD), "conv1: nothing is left"),
        ((Input(8, towers=2), Conv(9, 3), *HEAD), "conv1: 9 maps or units do not divide into 2 towers"),
        ((Input(8, towers=0), *HEAD), "input: towers is 0"),
        ((Input(8), LRN(n=4), *HEAD), "lrn0: n is 4; .* odd"),
        ((Input(8), Flatten(), Dense(8), LRN(), Dense(4)), "lrn1: LRN takes maps and must stand before Flatten"),
        ((Input(8, towers=2), Flatten(), *2 * (Dense(9),)), "fc1: 9 maps or units"),  # one object twice
        ((Input(8, scale=(1.0, 2.0)), *HEAD), "input: scale has 2 numbers; accepted is one, or 3"),
        ((Input(8), SameMapLRN(n=2), *HEAD), "maplrn0: n is 2; .* odd"),
        ((Input(8), Flatten(), Subsample(), Dense(4)), "subsample1: Subsample takes maps"),
        ((Input(8), Subsample(9), *HEAD), "subsample1: nothing is left"),
        ((Input(8), AveragePool(9, 2), *HEAD), "pool0: nothing is left"),
        ((Input(8), Conv(2, 3, table=((0,),)), *HEAD), "conv1: table .* 2 entries that name maps from 0 to 2, in a"),
        ((Input(8), Conv(2, 3, table=((0,), (3,))), *HEAD), "conv1: table does not fit"),
        ((Input(8, towers=2), Conv(2, 3, table=((0,), (1,))), *HEAD), "conv1: table .* of one tower"),
        ((Input(8), Flatten(), RBF(("#.",)), Dense(4)), "rbf1: RBF must be the last layer"),
        ((Input(8, towers=2), Flatten(), Dense(2), RBF(("#.",))), "rbf2: .* in a network of one tower"),
        ((Input(8), RBF(("#.",))), r"rbf1: RBF takes vectors; put Flatten\(\) before"),
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


def test_changes_make_the_papers_own_networks():
    assert networks.one_gpu(PAPER) == networks.ONE_GPU
    assert networks.six_conv(PAPER) == networks.SIX_CONV
    assert networks.named("QUICKSTART_NO_CROSS")[9] == dataclasses.replace(networks.QUICKSTART[9], sees="own")
    assert networks.named("CIFAR_FOUR_LAYER_TANH") == networks.NAMED["CIFAR_FOUR_LAYER_TANH"]


@pytest.mark.parametrize("base", ["PAPER", "SOURCE_2012", "QUICKSTART"])
@pytest.mark.parametrize("change", networks.CHANGES)
def test_each_change_of_a_network_has_a_name_and_can_be_built(base, change):
    if (base, change) == ("QUICKSTART", "QUARTER"):
        with pytest.raises(ValueError, match="no QUICKSTART_QUARTER: pool5: nothing is left"):
            networks.named("QUICKSTART_QUARTER")
        return
    changed = networks.named(f"{base}_{change}")
    assert changed == networks.CHANGES[change](networks.NAMED[base]) != networks.NAMED[base]
    check(changed)
    assert networks.exists(f"{base}_{change}")


def test_a_quarter_has_a_quarter_of_the_widths_and_half_the_pixels():
    small = networks.named("PAPER_QUARTER")
    assert [layer.maps for layer in small if isinstance(layer, Conv)] == [24, 64, 96, 96, 64]
    assert [layer.units for layer in small if isinstance(layer, Dense)] == [1024, 1024, 1000]
    assert small[0] == Input(112, towers=2)


def test_fan_in_scales_pixels_once_and_leaves_nothing_to_halve():
    changed = networks.named("PAPER_FAN_IN")
    assert changed[0].scale == 1 / 60
    assert {(layer.std, layer.bias) for layer in changed if isinstance(layer, Conv | Dense)} == {("fan_in", 0.0)}
    assert networks.named("TORCHVISION_FAN_IN")[0].scale == networks.TORCHVISION[0].scale
    with pytest.raises(ValueError, match="no PAPER_FAN_IN_STD_HALF: its initial weights are scaled"):
        networks.named("PAPER_FAN_IN_STD_HALF")


def test_changes_can_be_chained():
    both = networks.named("QUICKSTART_SIX_CONV_NO_LRN")
    assert both == without(networks.six_conv(networks.QUICKSTART), LRN)


@pytest.mark.parametrize("name", ["VGG", "NO_LRN", "QUICKSTART_", "QUICKSTART_NO_LRN_NO_LRN", "TORCHVISION_NO_LRN"])
def test_a_name_that_gives_no_network_is_refused(name):
    assert not networks.exists(name)
    with pytest.raises(ValueError, match=r"there is no network|the architecture has no LRN"):
        networks.named(name)
