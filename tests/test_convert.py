"""Weights from other frameworks give the other framework's answers; what is not understood is refused in a sentence."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import flax.struct
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from tiny import TINY, statistics_of

from alexnet_jax import AlexNet, Conv, Dense, cli, convert
from alexnet_jax import config as config_lib
from alexnet_jax.convert import caffe
from alexnet_jax.convert.weights import ILSVRC_2012, expected, from_json, to_json
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import predict
from alexnet_jax.network import architectures, networks
from alexnet_jax.training.checkpoint import Checkpoints
from configs import quickstart

GOLDEN = Path(__file__).parent / "golden"
STATE_DICT = GOLDEN / "torchvision.safetensors"
CAFFEMODELS = ["alexnet", "alexnet_v1", "caffenet", "caffenet_v1"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "convert.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def mean_file(golden, tmp_path):
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(golden["mean_file"].tobytes())
    return path


def assert_same_answers(weights, golden, logits):
    """The golden images' probabilities are those of the logits, to 1e-4 of the largest, and so are the five best."""
    images = golden["blocks"].repeat(32, 1).repeat(32, 2)  # (N, 256, 256, 3)
    probabilities = np.asarray(weights.predict(images))
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.log(probabilities), wanted, rtol=0, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_array_equal(np.argsort(-probabilities)[:, :5], np.argsort(-logits)[:, :5])


def assert_same_params(weights, others):
    jax.tree.map(np.testing.assert_array_equal, weights.params, others.params)


def random_weights(architecture, seed=0, pca=True):
    """Weights of any architecture, with a mean image four pixels larger than its input."""
    rng = np.random.default_rng(seed)
    statistics = statistics_of(architecture[0].size + 4)
    return convert.Weights(
        architecture=architecture,
        params=jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32), expected(architecture)),
        mean_image=rng.uniform(90, 140, statistics.mean_image.shape).astype(np.float32),
        pca=statistics.pca if pca else None,
        mean_at="center",
        views=5,
        classes="five kinds of näse",
        source="nothing",
    )


def message_of(function, *arguments, **keywords):
    with pytest.raises(UsageError) as error:
        function(*arguments, **keywords)
    return str(error.value)


class Trap:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# torchvision


def test_torchvision_s_state_dict_gives_pytorch_s_answers(golden):
    weights = convert.read(str(STATE_DICT))
    assert_same_answers(weights, golden, golden["torchvision"])
    widths = {Conv: "maps", Dense: "units"}
    assert [getattr(layer, widths[type(layer)]) for layer in weights.architecture if type(layer) in widths] == [
        *(8, 12, 16, 16, 12),
        *(32, 24, 10),
    ]
    assert weights.classes.startswith("10 classes, in the order of the training")
    assert weights.source == "torchvision's alexnet, torchvision.safetensors"


@pytest.mark.torch
def test_a_pth_file_holds_the_same():
    assert_same_params(convert.read(GOLDEN / "torchvision.pth"), convert.read(STATE_DICT))


def saved(arrays, path):
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_types_become_float32(dtype, tmp_path):
    arrays = {name: array.astype(dtype) for name, array in safetensors.numpy.load_file(STATE_DICT).items()}
    weights = convert.read(saved(arrays, tmp_path / "other.safetensors"))
    assert {array.dtype for array in jax.tree.leaves(weights.params)} == {np.dtype(np.float32)}
    kernel = arrays["features.0.weight"].astype(np.float32)  # (O, I, h, w)
    np.testing.assert_array_equal(weights.params["conv1"]["kernel"], kernel.transpose(2, 3, 1, 0)[None])


def test_a_thousand_classes_are_taken_for_those_of_ilsvrc_2012(tmp_path):
    arrays = safetensors.numpy.load_file(STATE_DICT)
    arrays |= {"classifier.6.weight": np.zeros((1000, 24), np.float32), "classifier.6.bias": np.zeros(1000, np.float32)}
    assert convert.read(saved(arrays, tmp_path / "x.safetensors")).classes == ILSVRC_2012


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"features.3.bias": None}, "lacks features.3.bias; accepted are features.0.weight, features.0.bias, "),
        ({"avg.weight": np.ones(3, np.float32)}, "has the array avg.weight, which is not expected; accepted are "),
        ({"features.6.weight": np.ones((16, 12), np.float32)}, "weight has the shape [16, 12]; accepted are 4 axes"),
        ({"features.6.bias": np.ones(15, np.float32)}, "features.6.bias has the shape [15]; accepted is [16]"),
        (
            {"classifier.1.weight": np.ones((32, 433), np.float32)},
            "classifier.1.weight has the shape [32, 433]; accepted is [32, 432], which fits the layers before it.",
        ),
        ({"classifier.6.bias": np.ones(10, np.int32)}, "classifier.6.bias is of type I32; accepted are F16, BF16, F32"),
    ],
)
def test_another_state_dict_is_refused_by_name(changes, wanted, tmp_path):
    arrays = {**safetensors.numpy.load_file(STATE_DICT), **changes}
    path = saved({name: array for name, array in arrays.items() if array is not None}, tmp_path / "x.safetensors")
    message = message_of(convert.read, path)
    assert message.startswith(str(path))
    assert wanted in message


@pytest.mark.torch
def test_a_pth_file_that_would_run_code_is_refused_and_does_not(tmp_path):
    import torch

    path, touched = tmp_path / "model.pth", tmp_path / "touched"
    torch.save({"features.0.weight": torch.ones(1), "x": Trap(touched)}, path)
    message = message_of(convert.read, path)
    assert "loading it would run code from the file" in message
    assert "torch.save(model.state_dict(), 'alexnet.pth')" in message
    assert not touched.exists()
    torch.load(path, weights_only=False)  # as it would otherwise
    assert touched.exists()


@pytest.mark.torch
def test_a_pth_file_of_something_else_is_refused(tmp_path):
    import torch

    path = tmp_path / "x.pth"
    for content, holds in (([torch.ones(1)], "list"), ({"weight": {}, "epoch": 3}, "the entries weight, epoch")):
        torch.save(content, path)
        assert f"is not a state dict: it holds {holds}. A state dict has" in message_of(convert.read, path)
    torch.save({"features.0.weight": torch.ones(1, dtype=torch.int32)}, path)
    assert "features.0.weight is torch.int32; accepted are floating-point types" in message_of(convert.read, path)
    for content in (b"", b"text\n", STATE_DICT.read_bytes()):
        path.write_bytes(content)
        assert "or PyTorch did not write it" in message_of(convert.read, path)


def test_without_pytorch_a_pth_file_is_answered_by_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = message_of(convert.read, GOLDEN / "torchvision.pth")
    assert "can only be read with PyTorch, which is not installed. Install it (pip install torch), or save" in message
    assert "safetensors.torch.save_file(model.state_dict(), 'alexnet.safetensors')" in message


WRAPPED = [
    ([], lambda name: name),
    (["module."], lambda name: f"module.{name}"),
    (["_orig_mod.", "model."], lambda name: f"_orig_mod.model.{name}"),
    (["encoder."], lambda name: f"encoder.{name}"),
    (["features.module."], lambda name: name.replace("features.", "features.module.")),
    (["module.", "features.module."], lambda name: f"module.{name.replace('features.', 'features.module.')}"),
]


@pytest.mark.parametrize(("removed", "rename"), WRAPPED)
def test_prefixes_of_wrappers_are_removed_and_told(removed, rename, tmp_path):
    arrays = {rename(name): array for name, array in safetensors.numpy.load_file(STATE_DICT).items()}
    weights = convert.read(saved(arrays, tmp_path / "x.safetensors"))
    assert_same_params(weights, convert.read(STATE_DICT))
    told = "".join(f", without the prefix {prefix}" for prefix in removed)
    assert weights.source == f"torchvision's alexnet, x.safetensors{told}"


@pytest.mark.parametrize("ending", [".pth", ".pth.tar", ".pt", ".ckpt", ".bin"])
@pytest.mark.torch
def test_checkpoints_of_pytorch_hold_their_weights_deeper(ending, tmp_path):
    import torch

    state = torch.load(GOLDEN / "torchvision.pth", weights_only=True)
    half = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    for content in (
        {"state_dict": half, "epoch": 3, "arch": "alexnet", "optimizer": {"state": {}}},
        {"model": {"state_dict": half}},
        half,
    ):
        torch.save(content, tmp_path / f"x{ending}")
        weights = convert.read(tmp_path / f"x{ending}")
        assert weights.source.endswith(", without the prefix module.")
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4),
            weights.params,
            convert.read(STATE_DICT).params,
        )


def as_npy(path, change=lambda layers: layers):
    """The golden AlexNet of Caffe as bvlc_alexnet.npy holds it: a pickled dictionary, channels last."""
    weights = convert.read(GOLDEN / "alexnet.caffemodel")
    layers = {}
    for name, arrays in weights.params.items():
        kernel = arrays["kernel"]  # (T, h, w, I, O/T), or (T, I, O/T)
        kernel = np.concatenate(list(kernel), -1)
        bias = np.concatenate(list(arrays["bias"]))
        layers[name] = [kernel, bias[: 10 if name == "fc8" else None]]
    layers["conv1"][0] = layers["conv1"][0][:, :, ::-1]  # RGB -> BGR
    maps = len(layers["conv5"][1])
    fc6 = layers["fc6"][0].reshape(2, 6, 6, maps // 2, -1)  # (T, H, W, C/T, O)
    layers["fc6"][0] = fc6.transpose(1, 2, 0, 3, 4).reshape(36 * maps, -1)
    layers["fc8"][0] = layers["fc8"][0][:, :10]
    np.save(path, change(layers), allow_pickle=True)
    return path


def test_alexnet_as_a_pickled_dictionary_is_read_without_running_code(golden, tmp_path):
    weights = convert.read(as_npy(tmp_path / "bvlc_alexnet.npy"))
    assert_same_params(weights, convert.read(GOLDEN / "alexnet.caffemodel"))
    assert_same_answers(weights, golden, golden["alexnet_colour"])
    touched = tmp_path / "touched"
    path = as_npy(tmp_path / "trap.npy", lambda layers: layers | {"x": Trap(touched)})
    assert "which could run code" in message_of(convert.read, path)
    assert not touched.exists()
    np.load(path, allow_pickle=True)  # as it would otherwise
    assert touched.exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda layers: {**layers, "fc7": [layers["fc7"][0]]},
            "is not a dictionary of layers with a kernel and a bias",
        ),
        (lambda layers: [1, 2], "is not a dictionary of layers"),
        (lambda layers: np.ones(3), "is not a dictionary of layers"),
        (lambda layers: {name: pair[0] for name, pair in layers.items()}, "is not a dictionary of layers"),
        (lambda layers: layers | {"epoch": 5}, "is not a dictionary of layers"),
        (lambda layers: {n: p for n, p in layers.items() if n != "fc7"}, "lacks fc7/bias; accepted are conv1/kernel"),
    ],
)
def test_another_npy_is_refused(change, wanted, tmp_path):
    assert wanted in message_of(convert.read, as_npy(tmp_path / "x.npy", change))


def test_a_trunk_is_accepted_only_as_a_start(tmp_path):
    arrays = safetensors.numpy.load_file(STATE_DICT)
    for prefix in ("features.", "", "encoder."):
        trunk = {name.replace("features.", prefix): a for name, a in arrays.items() if name.startswith("features.")}
        path = saved(trunk, tmp_path / "trunk.safetensors")
        assert "has only the convolutions of a network, and no classifier" in message_of(convert.read, path)
        weights = convert.read(path, trunk=True)
        whole = convert.read(STATE_DICT)
        assert weights.params.keys() == {"conv1", "conv2", "conv3", "conv4", "conv5"}
        for layer in weights.params:
            jax.tree.map(np.testing.assert_array_equal, weights.params[layer], whole.params[layer])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_with_the_array(number, tmp_path):
    arrays = safetensors.numpy.load_file(STATE_DICT)
    arrays["features.3.weight"][0, 0, 0, 0] = number
    message = message_of(convert.read, saved(arrays, tmp_path / "x.safetensors"))
    assert f"conv2/kernel has numbers that are not finite in float32, such as {number}" in message
    weights = random_weights(TINY)
    weights.mean_image[0, 0, 0] = number
    convert.write(weights, tmp_path / "y.safetensors")
    assert "y.safetensors: mean_image has numbers that are not finite" in message_of(
        convert.read, tmp_path / "y.safetensors"
    )


def test_float64_that_overflows_float32_is_refused(tmp_path):
    arrays = {name: array.astype(np.float64) for name, array in safetensors.numpy.load_file(STATE_DICT).items()}
    arrays["classifier.4.bias"][0] = 1e39
    message = message_of(convert.read, saved(arrays, tmp_path / "x.safetensors"))
    assert "fc7/bias has numbers that are not finite in float32, such as inf" in message


def test_a_network_of_torchvision_s_architecture_goes_back_to_torchvision(tmp_path, golden):
    there = tmp_path / "there.safetensors"
    convert.convert(STATE_DICT, there, layout="torchvision")
    ours, theirs = (safetensors.numpy.load_file(path) for path in (there, STATE_DICT))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert_same_answers(convert.read(there), golden, golden["torchvision"])
    message = message_of(convert.convert, GOLDEN / "alexnet.caffemodel", there, layout="torchvision")
    assert "torchvision's alexnet is another network (" in message


@pytest.mark.torch
def test_pytorch_loads_what_goes_back_and_gives_the_same_answers(tmp_path):
    import torch

    nn = torch.nn

    def convolution(inputs, maps, size, **options):
        return [nn.Conv2d(inputs, maps, size, **options), nn.ReLU(inplace=True)]

    class TorchvisionAlexNet(nn.Module):  # as torchvision's alexnet, but narrow
        def __init__(self):
            super().__init__()
            pool = nn.MaxPool2d(3, 2)
            self.features = nn.Sequential(
                *(*convolution(3, 4, 11, stride=4, padding=2), pool, *convolution(4, 6, 5, padding=2), pool),
                *(*convolution(6, 8, 3, padding=1), *convolution(8, 6, 3, padding=1)),
                *(*convolution(6, 5, 3, padding=1), pool),
            )
            self.classifier = nn.Sequential(
                *(nn.Dropout(), nn.Linear(5 * 36, 16), nn.ReLU(inplace=True)),
                *(nn.Dropout(), nn.Linear(16, 12), nn.ReLU(inplace=True), nn.Linear(12, 7)),
            )

        def forward(self, x):
            return self.classifier(torch.flatten(self.features(x), 1))

    architecture = architectures.with_classes(networks.TORCHVISION, 7)
    for name, width in {"conv1": 4, "conv2": 6, "conv3": 8, "conv4": 6, "conv5": 5}.items():
        architecture = architectures.replace(architecture, name, maps=width)
    architecture = architectures.replace(architectures.replace(architecture, "fc6", units=16), "fc7", units=12)
    weights = random_weights(architecture)
    convert.write(weights, tmp_path / "ours.safetensors")
    convert.convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", layout="torchvision")
    model = TorchvisionAlexNet().eval()
    arrays = safetensors.numpy.load_file(tmp_path / "theirs.safetensors")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    images = np.random.default_rng(0).normal(0, 60, (2, 224, 224, 3)).astype(np.float32)
    ours = AlexNet(architecture).apply({"params": weights.params}, images)
    scaled = np.moveaxis(images * np.asarray(architecture[0].scale, np.float32), -1, 1)
    theirs = model(torch.from_numpy(np.ascontiguousarray(scaled))).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


# Caffe


@pytest.mark.parametrize("name", CAFFEMODELS)
def test_a_caffemodel_gives_caffe_s_answers(name, golden, mean_file):
    weights = convert.read(GOLDEN / f"{name}.caffemodel", mean=mean_file)
    network = name.removesuffix("_v1")
    assert_same_answers(weights, golden, golden[f"{network}_mean"])
    title = {"alexnet": "AlexNet", "caffenet": "CaffeNet"}[network]
    assert weights.source == f"Caffe's {title}, {name}.caffemodel, with the mean mean.binaryproto"


@pytest.mark.parametrize("name", CAFFEMODELS)
def test_without_a_mean_file_it_is_the_mean_colour_of_ilsvrc_2012(name, golden):
    weights = convert.read(GOLDEN / f"{name}.caffemodel")
    assert_same_answers(weights, golden, golden[f"{name.removesuffix('_v1')}_colour"])
    assert "with ILSVRC-2012's mean colour, as no mean file was given" in weights.source
    assert "minus the colour R 122.679, G 116.669, B 104.007" in weights.preprocessing


def test_what_a_conversion_can_get_wrong_would_be_seen(golden, mean_file):
    weights = convert.read(GOLDEN / "alexnet.caffemodel", mean=mean_file)
    for change in (
        {"mean_image": np.roll(weights.mean_image, 1, 0)},
        {"mean_image": weights.mean_image[..., ::-1]},
        {"architecture": architectures.replace(weights.architecture, architectures.LRN, sees="own")},
        {"architecture": architectures.replace(weights.architecture, architectures.LRN, average=False)},
    ):
        with pytest.raises(AssertionError):
            assert_same_answers(dataclasses.replace(weights, **change), golden, golden["alexnet_mean"])


def changed_net(tmp_path, change, name="alexnet"):
    """The path of a golden .caffemodel after change(net)."""
    net = caffe.CLASSES["NetParameter"].FromString((GOLDEN / f"{name}.caffemodel").read_bytes())
    change(net)
    path = tmp_path / "changed.caffemodel"
    path.write_bytes(net.SerializeToString())
    return path


def without_norms_and_pools(net):
    for layer in [layer for layer in net.layer if layer.name[:4] in (b"norm", b"pool")]:
        net.layer.remove(layer)


def test_without_norms_and_pools_the_name_tells_the_network(tmp_path):
    for name in ("alexnet", "caffenet"):
        path = changed_net(tmp_path, without_norms_and_pools, name)
        assert convert.read(path).architecture == convert.read(GOLDEN / f"{name}.caffemodel").architecture

    def nameless(net):
        without_norms_and_pools(net)
        net.name = b"Net"

    message = message_of(convert.read, changed_net(tmp_path, nameless))
    assert "does not say which network it is" in message
    assert "its name is 'Net'; accepted are AlexNet and CaffeNet" in message


def layer_of(net, name):
    return next(layer for layer in net.layer if layer.name.decode() == name)


def test_a_fine_tuned_network_may_name_its_last_layer_anew(tmp_path):
    path = changed_net(tmp_path, lambda net: setattr(layer_of(net, "fc8"), "name", b"fc8_flowers"))
    assert_same_params(convert.read(path), convert.read(GOLDEN / "alexnet.caffemodel"))


def test_numbers_in_double_precision_become_float32(tmp_path):
    def doubled(net):
        for blob in (blob for layer in net.layer for blob in layer.blobs):
            blob.double_data.append(np.frombuffer(blob.data[0], "<f4").astype("<f8").tobytes())
            del blob.data[:]

    assert_same_params(convert.read(changed_net(tmp_path, doubled)), convert.read(GOLDEN / "alexnet.caffemodel"))


def one_column(net):
    """conv2 without groups."""
    blob = layer_of(net, "conv2").blobs[0]
    blob.shape.dim[1] *= 2
    blob.data.append(blob.data[0])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda net: layer_of(net, "conv5").blobs.pop(), "lacks conv5.blobs[1]; accepted are conv1.blobs[0], conv1.bl"),
        (lambda net: net.layer.remove(layer_of(net, "fc7")), "lacks fc7.blobs[0]; accepted are conv1.blobs[0], "),
        (lambda net: setattr(layer_of(net, "conv2"), "name", b"\xff"), "lacks conv2.blobs[0]; accepted are "),
        (one_column, "conv2.blobs[0] has the shape [12, 8, 5, 5]; accepted is [12, 4, 5, 5]"),
        (lambda net: layer_of(net, "fc6").blobs[0].data.pop(), "fc6 has 0 bytes of numbers for the shape [16, 288]"),
        (lambda net: net.layer.__delitem__(slice(None)), "has no layers with weights that can be read"),
    ],
)
def test_another_caffemodel_is_refused_by_name(change, wanted, tmp_path):
    assert wanted in message_of(convert.read, changed_net(tmp_path, change))


def test_a_mean_file_that_does_not_fit_is_refused(tmp_path, mean_file):
    model = GOLDEN / "alexnet.caffemodel"
    assert "only a .caffemodel takes a mean file" in message_of(convert.read, STATE_DICT, mean=mean_file)
    assert f"mean is {tmp_path}/none, which is not a file." in message_of(convert.read, model, mean=tmp_path / "none")
    mean_file.write_text("text")
    assert "is not a mean file (.binaryproto)" in message_of(convert.read, model, mean=mean_file)
    small = caffe.CLASSES["BlobProto"](num=1, channels=3, height=4, width=4, data=[np.ones(48, "<f4").tobytes()])
    mean_file.write_bytes(small.SerializeToString())
    assert "has the shape [3, 4, 4]; accepted is [3, S, S] with S of at least 227" in message_of(
        convert.read, model, mean=mean_file
    )


# Our own file


@pytest.mark.parametrize("name", networks.NAMED)
def test_an_architecture_comes_back_from_json(name):
    assert from_json(to_json(networks.NAMED[name])) == networks.NAMED[name]


@pytest.mark.parametrize("pca", [True, False])
@pytest.mark.parametrize("architecture", [TINY, architectures.with_classes(TINY, 6), networks.LENET5])
def test_what_is_written_comes_back_to_the_bit(architecture, pca, tmp_path):
    weights = random_weights(architecture, pca=pca)
    convert.write(weights, tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    again = convert.read(tmp_path / "x.safetensors")
    for field in dataclasses.fields(weights):
        before, after = getattr(weights, field.name), getattr(again, field.name)
        if isinstance(before, str | tuple):
            assert after == before
        else:
            assert jax.tree.structure(after) == jax.tree.structure(before)
            jax.tree.map(np.testing.assert_array_equal, after, before)


def test_converting_gives_the_same_answers_from_the_new_file(golden, tmp_path):
    dest = tmp_path / "caffenet.safetensors"
    converted = convert.convert(GOLDEN / "caffenet.caffemodel", dest)
    again = convert.read(dest)
    assert_same_params(again, converted)
    assert_same_answers(again, golden, golden["caffenet_colour"])


def test_a_file_to_write_must_have_our_ending_and_a_folder(tmp_path):
    weights, source = random_weights(TINY), tmp_path / "none.pth"  # not even looked for
    for dest, wanted in (("x.npz", "ends in .safetensors"), ("none/x.safetensors", f"folder {tmp_path}/none does not")):
        assert wanted in message_of(convert.write, weights, tmp_path / dest)
        assert wanted in message_of(convert.convert, source, tmp_path / dest)
    assert list(tmp_path.iterdir()) == []


def ending_in(*layers):
    """The layers of TINY as JSON, others in the place of the last."""
    return {"architecture": json.dumps([*json.loads(to_json(TINY))[:-1], *layers])}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"alexnet_jax": "2"}, "is of version '2' of our format; accepted is '1'. Update this program"),
        ({"classes": None}, "lacks classes in its metadata"),
        ({"views": "3"}, "views is '3'; accepted are 1, 5 and 10"),
        ({"mean_at": "corner"}, "mean_at is 'corner'; accepted are ('crop', 'center')"),
        ({"architecture": "Input(3)"}, "has an architecture that is not understood (Expecting value"),
        ({"architecture": "[3]"}, "has an architecture that is not understood ("),
        (ending_in(), "(An architecture starts with Input and ends with Dense"),
        (ending_in(["Dance", {"units": 5}]), "('Dance' is not a layer; accepted are Input, Conv, Local, Dense, "),
        (ending_in(["Dense", {"unit": 5}]), "(Dense has no field unit; it has units, sees, bias, std."),
        (ending_in(["Dense", {}]), "missing 1 required positional argument: 'units'"),
        (ending_in(["Dense", {"units": "5"}]), "has an architecture that is not understood ("),
        (ending_in(["Dense", {"units": 5, "std": "x"}]), "has an architecture that is not understood ("),
        (ending_in(["Dense", {"units": 7}]), "has [2, 3] for fc5/bias, but its architecture needs [2, 4]"),
    ],
)
def test_a_file_of_ours_that_was_changed_is_refused(told, wanted, tmp_path):
    path = tmp_path / "x.safetensors"
    convert.write(random_weights(TINY), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() | told
    arrays = safetensors.numpy.load_file(path)
    metadata = {name: value for name, value in metadata.items() if value is not None and name != "digest"}
    safetensors.numpy.save_file(arrays, path, metadata)
    message = message_of(convert.read, path)
    assert message.startswith(str(path))
    assert wanted in message


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"conv1/bias": None}, "has nothing for conv1/bias, but its architecture needs [2, 4]"),
        ({"conv9/bias": np.ones(3, np.float32)}, "has [3] for conv9/bias, but its architecture needs nothing"),
        ({"bias": np.ones(3, np.float32)}, "has [3] for /bias, but its architecture needs nothing"),
        ({"mean_image": None}, "mean_image has the shape []; accepted is [S, S, 3] with S of at least 12"),
        ({"mean_image": np.ones((8, 8, 3), np.float32)}, "mean_image has the shape [8, 8, 3]; accepted is [S, S, 3]"),
        ({"eigenvalues": None}, "the colour PCA is not eigenvectors [3, 3] and eigenvalues [3]"),
    ],
)
def test_arrays_that_do_not_fit_the_architecture_are_named(changes, wanted, tmp_path):
    path = tmp_path / "x.safetensors"
    convert.write(random_weights(TINY), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    arrays = {**safetensors.numpy.load_file(path), **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    del metadata["digest"]
    safetensors.numpy.save_file(arrays, path, metadata)
    assert wanted in message_of(convert.read, path)


ABSURD = {
    "architecture": [
        "[", "5", "null", "[" * 10_000, "[[]]", '[["Input"]]', '[[5, {}]]', '[["Input", 5]]', '{"a": 1}',
    ],
    "class_names": ["[", "5", "[1, 2, 3, 4, 5]", "[" * 10_000, '{"a": 1}'],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in ABSURD for text in ABSURD[name]])
def test_metadata_that_someone_made_up_is_a_sentence(name, text, tmp_path):
    path = tmp_path / "x.safetensors"
    convert.write(random_weights(TINY), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() | {name: text}
    del metadata["digest"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    assert message_of(convert.read, path).startswith(str(path))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("Dropout", "rate", 1.5), ("Dropout", "rate", "0.5"), ("Dropout", "rate", -1), ("Dropout", "rescale", 1),
        ("LRN", "n", 5.0), ("LRN", "k", 0), ("LRN", "alpha", "x"), ("LRN", "sees", "none"), ("Conv", "stride", 0),
        ("Conv", "padding", -1), ("Conv", "padding", [1, 2, 3]), ("Conv", "std", None), ("Conv", "table", "x"),
        ("MaxPool", "size", 0), ("Input", "size", 10**12), ("Input", "scale", float("1e99")), ("Dense", "units", True),
    ],
)  # fmt: skip
def test_fields_of_absurd_types_and_values_are_refused(kind, field, value, tmp_path):
    layers = json.loads(to_json(TINY))
    next(fields for name, fields in layers if name == kind)[field] = value
    path = tmp_path / "x.safetensors"
    convert.write(random_weights(TINY), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() | {"architecture": json.dumps(layers)}
    del metadata["digest"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    assert "has an architecture that is not understood (" in message_of(convert.read, path)


def test_a_file_whose_contents_changed_is_refused_wherever_the_change_is(tmp_path):
    path = tmp_path / "x.safetensors"
    weights = random_weights(TINY)
    convert.write(weights, path)
    whole = path.read_bytes()
    anywhere = np.random.default_rng(0).integers(0, 8 * len(whole), 60).tolist()
    the_word = 8 * whole.index(b'"digest"')  # without it, this would be a file of before
    for at in (*anywhere, *range(the_word, the_word + 8 * len(b'"digest"'))):
        path.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
        assert message_of(convert.read, path).startswith(str(path))
    path.write_bytes(whole)
    assert convert.read(path).source == weights.source


def test_a_file_of_before_without_a_digest_is_read_and_says_so(tmp_path):
    path = tmp_path / "x.safetensors"
    convert.write(random_weights(TINY), path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    del metadata["digest"]
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    assert convert.read(path).source == "nothing, a file without a digest"


@pytest.mark.torch
def test_a_flipped_bit_in_a_file_of_pytorch_is_found(tmp_path):
    whole = (GOLDEN / "torchvision.pth").read_bytes()
    path = tmp_path / "x.pth"
    wanted = convert.read(GOLDEN / "torchvision.pth")
    for at in np.random.default_rng(0).integers(0, 8 * len(whole), 60).tolist():
        path.write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
        try:
            found = convert.read(path)
        except UsageError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
        else:
            assert_same_params(found, wanted)  # a bit that nobody reads


def test_predictions_are_those_of_evaluate():
    weights = random_weights(TINY)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    for views in (1, 10):
        wanted = predict(
            weights.params, images, weights.mean_image, network=AlexNet(TINY), views=views, mean_at="center"
        )
        np.testing.assert_allclose(weights.predict(images, views), wanted, rtol=1e-5)
    message = message_of(weights.predict, images[:, :12])
    assert message.startswith("images have shape (3, 12, 16, 3); accepted is (N, 16, 16, 3)")


# The workdir of a run


@flax.struct.dataclass
class State:
    step: np.ndarray
    params: dict
    velocity: dict


@pytest.fixture
def workdir(tmp_path):
    """A workdir as main.py leaves it, of a network of nine classes on two towers; and its weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    weights = random_weights(architectures.with_classes(networks.QUICKSTART, 9))
    config = quickstart.get_config()
    config.dataset = "folder:/home/me/pictures"
    config_lib.save(config, folder / "config.json")
    statistics_of(32).save(folder / "statistics.npz")
    with Checkpoints(folder) as checkpoints:
        state = State(jax.numpy.int32(3), *[jax.tree.map(jax.numpy.asarray, weights.params)] * 2)
        checkpoints.save(state, error=1.0, notes={"num_classes": 9})
    return folder, weights


def test_a_run_gives_its_weights_and_statistics(workdir, tmp_path):
    folder, weights = workdir
    again = convert.convert(folder, tmp_path / "run.safetensors")
    assert_same_params(again, weights)
    assert again.architecture == weights.architecture
    assert again.predict(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 9)
    np.testing.assert_array_equal(again.mean_image, np.full((32, 32, 3), 127.5))
    np.testing.assert_array_equal(again.pca.eigenvalues, statistics_of(32).pca.eigenvalues)
    assert again.classes == "9 classes of pictures"
    assert again.source == "step 3 of the run run (QUICKSTART)"
    assert_same_params(convert.read(tmp_path / "run.safetensors"), weights)


def test_a_folder_that_is_no_run_says_what_it_lacks(workdir, tmp_path):
    folder, _ = workdir
    assert f"{tmp_path} holds no run: it has no config.json" in message_of(convert.read, tmp_path)
    (folder / "statistics.npz").unlink()
    assert f"{folder} holds no run: it has no statistics.npz" in message_of(convert.read, folder)


def test_a_run_that_does_not_tell_its_classes_or_has_other_arrays_is_refused(workdir):
    folder, weights = workdir
    state = State(jax.numpy.int32(5), jax.tree.map(jax.numpy.asarray, weights.params), {})
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, error=None, notes={})
    assert "of another version of this program, without its number of classes" in message_of(convert.read, folder)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state.replace(step=jax.numpy.int32(6)), error=None, notes={"num_classes": 4})
    assert "has [2, 5] for fc8/bias, but its architecture needs [2, 2]" in message_of(convert.read, folder)


# What is no file of weights


@pytest.mark.parametrize("ending", [".pkl", ".pickle", ".npz", ".h5", ""])
def test_other_files_are_refused_and_not_loaded(ending, tmp_path):
    path, touched = tmp_path / f"weights{ending}", tmp_path / "touched"
    path.write_bytes(pickle.dumps(Trap(touched)))
    message = message_of(convert.read, path)
    wrong = f"is a {ending} file" if ending else "has no ending"
    assert message.startswith(f"{path} {wrong}; accepted are .safetensors, ")
    assert "safetensors.torch.save_file(model.state_dict(), FILE)" in message
    assert not touched.exists()


@pytest.mark.parametrize(
    "ending",
    [".safetensors", ".caffemodel", ".npy", ".SAFETENSORS"]
    + [pytest.param(ending, marks=pytest.mark.torch) for ending in (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")],
)
def test_an_ending_that_lies_is_found_out_and_nothing_run(ending, tmp_path):
    path, touched = tmp_path / f"weights{ending}", tmp_path / "touched"
    for content in (pickle.dumps(Trap(touched)), b"text\n", b"", b"\xff" * 99, STATE_DICT.read_bytes()[:-1]):
        path.write_bytes(content)
        assert message_of(convert.read, path).startswith(str(path))
        assert not touched.exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("x.safetensors", "x.pth", "x.caffemodel", "run"):
        assert message_of(convert.read, tmp_path / name).startswith(f"{tmp_path / name} does not exist.")


# The command


def test_the_command_says_what_it_read_assumed_and_wrote(mean_file, tmp_path, capsys):
    dest = tmp_path / "alexnet.safetensors"
    cli.main(["convert", str(GOLDEN / "alexnet.caffemodel"), str(dest), f"--mean={mean_file}"])
    count = sum(a.size for a in jax.tree.leaves(convert.read(dest).params))
    assert capsys.readouterr().out == (
        "Read: Caffe's AlexNet, alexnet.caffemodel, with the mean mean.binaryproto\n"
        f"Parameters: {count:,}\n"
        "Classes: 10 classes, in the order of the training that made the weights\n"
        "Images: RGB pixels in 0..255, the shorter side rescaled to 256 and the central 256 x 256 cut out; the "
        "network sees 227 x 227 of it, minus the mean image at the crop's place\n"
        f"Wrote: {dest}\n"
    )


def test_the_command_s_errors_are_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")])
    assert stop.value.code.startswith(f"error: {tmp_path / 'x.pkl'} does not exist.")


def test_preprocessing_is_told_in_words():
    assert convert.read(STATE_DICT).preprocessing.endswith(
        "the network sees 224 x 224 of it, minus the colour R 123.675, G 116.28, B 103.53, times 0.0171248, 0.017507, "
        "0.0174292"
    )
    assert random_weights(TINY).preprocessing.endswith("12 x 12 of it, minus the mean image's central part")
