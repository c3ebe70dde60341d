"""The named networks: the paper's (section 3), and related ones. Each is a tuple of layers.

docs/fidelity.md lists their differences, and the layer's field that makes each difference.
"""

import dataclasses
import functools

from alexnet_jax.network.architectures import (
    LRN,
    Architecture,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    Local,
    MaxPool,
    ReLU,
    SameMapLRN,
    Tanh,
    check,
    replace,
    without,
)
from alexnet_jax.network.small_networks import CIFAR_FOUR_LAYER, CUDA_CONVNET, LENET5, QUICKSTART

PAPER: Architecture = (
    Input(224, towers=2),
    Conv(96, 11, stride=4, padding=(0, 3)),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(256, 5, padding=2, bias=1.0),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(384, 3, padding=1, sees="all"),
    ReLU(),
    Conv(384, 3, padding=1, bias=1.0),
    ReLU(),
    Conv(256, 3, padding=1, bias=1.0),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(1000),
)
"""Krizhevsky, Sutskever and Hinton (2012), as the paper describes it."""

SOURCE_2012: Architecture = (
    Input(224, towers=2),
    Conv(96, 11, stride=4, padding=(0, 3)),
    LRN(average=True),
    MaxPool(3, 2),
    ReLU(),
    Conv(256, 5, padding=2, bias=1.0),
    ReLU(),
    LRN(average=True),
    SameMapLRN(),
    MaxPool(3, 2),
    Conv(384, 3, padding=1, sees="all", std=0.03),
    ReLU(),
    Conv(384, 3, padding=1, bias=1.0, std=0.03),
    ReLU(),
    Conv(256, 3, padding=1, bias=1.0, std=0.03),
    MaxPool(3, 2),
    ReLU(),
    Flatten(),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(1000),
)
"""The authors' own program, as used for the run that the paper reports (its layers-145.cfg)."""

SLIDES: Architecture = (
    Input(227),
    Conv(96, 11, stride=4),
    ReLU(),
    LRN(average=True),
    MaxPool(3, 2),
    Conv(256, 5, padding=2, bias=1.0),
    ReLU(),
    LRN(average=True),
    MaxPool(3, 2),
    Conv(384, 3, padding=1),
    ReLU(),
    Conv(384, 3, padding=1, bias=1.0),
    ReLU(),
    Conv(256, 3, padding=1, bias=1.0),
    MaxPool(3, 2),
    Flatten(),
    Dropout(0.5, rescale=True),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(4096, bias=1.0),
    ReLU(),
    Dense(1000, bias=1.0),
)
"""The one-column PyTorch network of a 2022 seminar on the paper."""

ONE_GPU: Architecture = (
    Input(224),
    Conv(48, 11, stride=4, padding=(0, 3)),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(128, 5, padding=2, bias=1.0),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(192, 3, padding=1),
    ReLU(),
    Conv(192, 3, padding=1, bias=1.0),
    ReLU(),
    Conv(256, 3, padding=1, bias=1.0),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(4096, bias=1.0),
    ReLU(),
    Dropout(0.5),
    Dense(1000),
)
"""The network of the paper's comparison in section 3.2, without the second tower.

Each convolution has half of the kernels, except the last (conv5). The dense layers keep all their neurons. So it
has about as many parameters as the network of two towers (footnote in section 3.2; the 2012 program's
layers-145-half.cfg).
"""

SIX_CONV: Architecture = (
    *PAPER[:16],  # up to the last pool
    Conv(256, 3, padding=1, sees="all", bias=1.0),
    ReLU(),
    *PAPER[16:],
)
"""The paper's "1 CNN*" (section 6): a sixth convolution after the last pool.

The paper gives neither its size nor its bias; these are the 2012 program's (its layers-146.cfg).
"""

CAFFE_ALEXNET: Architecture = (
    Input(227, towers=2),
    Conv(96, 11, stride=4),
    ReLU(),
    LRN(k=1.0, average=True, sees="all"),
    MaxPool(3, 2),
    Conv(256, 5, padding=2, bias=0.1),
    ReLU(),
    LRN(k=1.0, average=True, sees="all"),
    MaxPool(3, 2),
    Conv(384, 3, padding=1, sees="all"),
    ReLU(),
    Conv(384, 3, padding=1, bias=0.1),
    ReLU(),
    Conv(256, 3, padding=1, bias=0.1),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(4096, bias=0.1, std=0.005),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(4096, bias=0.1, std=0.005),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(1000),
)
"""Caffe's bvlc_alexnet."""

CAFFENET: Architecture = (
    Input(227, towers=2),
    Conv(96, 11, stride=4),
    ReLU(),
    MaxPool(3, 2),
    LRN(k=1.0, average=True, sees="all"),
    Conv(256, 5, padding=2, bias=1.0),
    ReLU(),
    MaxPool(3, 2),
    LRN(k=1.0, average=True, sees="all"),
    Conv(384, 3, padding=1, sees="all"),
    ReLU(),
    Conv(384, 3, padding=1, bias=1.0),
    ReLU(),
    Conv(256, 3, padding=1, bias=1.0),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(4096, bias=1.0, std=0.005),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(4096, bias=1.0, std=0.005),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(1000),
)
"""Caffe's bvlc_reference_caffenet: pooling before normalization, and the paper's biases."""

TORCHVISION: Architecture = (
    Input(224, scale=(1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225))),
    Conv(64, 11, stride=4, padding=2, std=(3 * 363) ** -0.5),
    ReLU(),
    MaxPool(3, 2),
    Conv(192, 5, padding=2, std=(3 * 1600) ** -0.5),
    ReLU(),
    MaxPool(3, 2),
    Conv(384, 3, padding=1, std=(3 * 1728) ** -0.5),
    ReLU(),
    Conv(256, 3, padding=1, std=(3 * 3456) ** -0.5),
    ReLU(),
    Conv(256, 3, padding=1, std=(3 * 2304) ** -0.5),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dropout(0.5, rescale=True),
    Dense(4096, std=(3 * 9216) ** -0.5),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(4096, std=(3 * 4096) ** -0.5),
    ReLU(),
    Dense(1000, std=(3 * 4096) ** -0.5),
)
"""torchvision's alexnet: one column, other widths (those of Krizhevsky 2014), no normalization.

Each std is that of PyTorch's own initialization, which is uniform over +-1/sqrt(fan-in); biases start at 0.
"""


def one_gpu(architecture: Architecture) -> Architecture:
    """Removes the second tower (section 3.2).

    Each convolution but the last loses half of its kernels; PAPER becomes ONE_GPU.
    """
    _check_no_local(architecture)
    last = max(position for position, layer in enumerate(architecture) if isinstance(layer, Conv))
    halved = [
        dataclasses.replace(layer, maps=layer.maps if position == last else layer.maps // 2, sees="own")
        if isinstance(layer, Conv)
        else layer
        for position, layer in enumerate(architecture)
    ]
    return replace(tuple(halved), Input, towers=1)


def six_conv(architecture: Architecture) -> Architecture:
    """Adds a convolution like the last one, which sees all maps, after the last pool; PAPER becomes SIX_CONV."""
    _check_no_local(architecture)
    behind = architecture.index(Flatten())
    last = [layer for layer in architecture if isinstance(layer, Conv)][-1]
    return (*architecture[:behind], dataclasses.replace(last, sees="all"), ReLU(), *architecture[behind:])


def _check_no_local(architecture):
    if any(isinstance(layer, Local) for layer in architecture):
        raise ValueError("it has locally connected layers, for which this change is not defined.")


def fan_in(architecture: Architecture) -> Architecture:
    """Makes a network learn in few steps: initial weights scaled to the inputs of each layer (see Conv.std).

    Biases start at 0; with the paper's biases of 1, the signal would grow from layer to layer. Pixels, which lie about
    60 levels from their mean, are divided by 60 if the network does not scale them already.
    """
    scale = architecture[0].scale
    return replace(
        replace(architecture, Conv | Local | Dense, std="fan_in", bias=0.0),
        Input,
        scale=1 / 60 if scale == 1.0 else scale,
    )


def quarter(architecture: Architecture) -> Architecture:
    """A quarter of the maps and neurons, and half the pixels a side; PAPER's pools then give 13, 6 and 2 pixels."""
    narrow = [
        dataclasses.replace(layer, maps=layer.maps // 4)
        if isinstance(layer, Conv | Local)
        else dataclasses.replace(layer, units=layer.units // 4)
        if isinstance(layer, Dense)
        else layer
        for layer in architecture[:-1]
    ]
    return replace((*narrow, architecture[-1]), Input, size=architecture[0].size // 2)


def _times_std(architecture, factor):
    if any(getattr(layer, "std", None) == "fan_in" for layer in architecture):
        raise ValueError("its initial weights are scaled to the inputs of each layer, and have no std of their own.")
    return tuple(
        dataclasses.replace(layer, std=factor * layer.std) if isinstance(layer, Conv | Local | Dense) else layer
        for layer in architecture
    )


CHANGES = {
    "NO_LRN": lambda architecture: without(architecture, LRN),
    # PAPER's pools still give 27, 13 and 6 pixels a side.
    "NO_OVERLAP": lambda architecture: replace(architecture, MaxPool, size=2, stride=2),
    "TANH": lambda architecture: replace(architecture, ReLU, Tanh()),
    "NO_DROPOUT": lambda architecture: without(architecture, Dropout),
    "ONE_COLUMN": lambda architecture: replace(architecture, Input, towers=1),  # each kernel sees all maps
    # The network without fc7 would be the same as the one without fc6.
    **{f"NO_{n.upper()}": functools.partial(without, which=n) for n in ("conv2", "conv3", "conv4", "conv5", "fc6")},
    # Towers meet in the dense layers only.
    "NO_CROSS": lambda architecture: replace(architecture, Conv | Local, sees="own"),
    "ONE_GPU": one_gpu,
    "SIX_CONV": six_conv,
    "FAN_IN": fan_in,
    "QUARTER": quarter,
    "BIAS_0": lambda architecture: replace(architecture, Conv | Local | Dense, bias=0.0),
    "STD_HALF": functools.partial(_times_std, factor=0.5),
    "STD_DOUBLE": functools.partial(_times_std, factor=2.0),
}
"""The changes that can be made to a network, by the ending that its name then has, as in QUICKSTART_NO_LRN."""

ABLATIONS = {
    f"PAPER_{change}": CHANGES[change](PAPER)
    for change in (
        *("NO_LRN", "NO_OVERLAP", "TANH", "NO_DROPOUT", "ONE_COLUMN"),
        *("NO_CONV2", "NO_CONV3", "NO_CONV4", "NO_CONV5", "NO_FC6"),
    )
}
"""The paper's network without one of its ideas (sections 3.1 to 3.4, 4.2 and 7)."""

NAMED = {
    "PAPER": PAPER,
    "SOURCE_2012": SOURCE_2012,
    "SLIDES": SLIDES,
    "ONE_GPU": ONE_GPU,
    "SIX_CONV": SIX_CONV,
    "CAFFE_ALEXNET": CAFFE_ALEXNET,
    "CAFFENET": CAFFENET,
    "TORCHVISION": TORCHVISION,
    "LENET5": LENET5,
    "CIFAR_FOUR_LAYER": CIFAR_FOUR_LAYER,
    "CIFAR_FOUR_LAYER_TANH": replace(CIFAR_FOUR_LAYER, ReLU, Tanh()),
    "CIFAR_FOUR_LAYER_LRN": (*CIFAR_FOUR_LAYER[:4], LRN(), *CIFAR_FOUR_LAYER[4:7], LRN(), *CIFAR_FOUR_LAYER[7:]),
    **CUDA_CONVNET,
    "QUICKSTART": QUICKSTART,
    **ABLATIONS,
}
"""The networks that have a name of their own."""


ACCEPTED = (
    f"one of {', '.join(NAMED)}; or one of these with a change at the end of its name, as in QUICKSTART_NO_LRN; "
    f"the changes are {', '.join(CHANGES)}"
)
"""The names that `named` accepts, in words."""


class UnknownNetworkError(ValueError):
    """There is no network of that name."""


def named(name: str) -> Architecture:
    """The network with a name, in any case: one of NAMED, or one of these with CHANGES, as in QUICKSTART_NO_LRN.

    Raises:
      UnknownNetworkError: if the name does not have this form.
      ValueError: if this change cannot be made to the network.
    """
    name = name.upper()
    if name in NAMED:
        return NAMED[name]
    for change, changed in CHANGES.items():
        if name.endswith(f"_{change}"):
            base = named(name.removesuffix(f"_{change}"))
            try:
                architecture = changed(base)
                check(architecture)
            except ValueError as error:
                raise ValueError(f"there is no {name}: {error}") from error
            return architecture
    raise UnknownNetworkError(f"there is no network {name}; accepted is {ACCEPTED}.")


def exists(name: str) -> bool:
    """Whether `named` gives a network for a name."""
    try:
        named(name)
    except ValueError:
        return False
    return True
