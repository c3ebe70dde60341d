"""The networks (paper, section 3): each a tuple of layers, one a line, in the order of the data.

A layer is a frozen dataclass that only says what it is; model.py gives it meaning.
An ablation is a changed tuple, never a new class: `without(PAPER, LRN)`.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Input:
    """The picture: size x size pixels; and the number of towers that see it (paper, section 3.2)."""

    size: int
    channels: int = 3
    towers: int = 1


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution with `maps` kernels over all towers, size x size pixels, plus a bias a map.

    `sees` tells whether a kernel sees the maps of its own tower or of all towers.
    `padding` is one number of pixels for the four sides, or a pair (before, after).
    Weights start from N(0, std^2), biases at `bias`.
    """

    maps: int
    size: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    sees: Literal["own", "all"] = "own"
    bias: float = 0.0
    std: float = 0.01


@dataclasses.dataclass(frozen=True)
class Dense:
    """Fully-connected layer with `units` neurons over all towers; fields as in Conv."""

    units: int
    sees: Literal["own", "all"] = "all"
    bias: float = 0.0
    std: float = 0.01


@dataclasses.dataclass(frozen=True)
class ReLU:
    """max(0, x) (paper, section 3.1)."""


@dataclasses.dataclass(frozen=True)
class LRN:
    """Local response normalization within a tower (paper, section 3.3)."""

    n: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75
    average: bool = False


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maximum over size x size windows, `stride` pixels apart (paper, section 3.4)."""

    size: int = 3
    stride: int = 2


@dataclasses.dataclass(frozen=True)
class Flatten:
    """Lays the maps of a tower out as one vector."""


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Zeroes units with probability `rate` in training (paper, section 4.2).

    The paper multiplies by 1 - rate at test time; with `rescale`, training divides
    by 1 - rate instead, and test time does nothing.
    """

    rate: float = 0.5
    rescale: bool = False


Layer = Input | Conv | Dense | ReLU | LRN | MaxPool | Flatten | Dropout
Architecture = tuple[Layer, ...]


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
"""Krizhevsky, Sutskever and Hinton (2012), as written there."""

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

QUICKSTART: Architecture = (
    Input(28, towers=2),
    Conv(32, 5, padding=2, std=0.02),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(64, 5, padding=2, bias=0.1, std=0.03),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(96, 3, padding=1, sees="all", std=0.04),
    ReLU(),
    Conv(96, 3, padding=1, bias=0.1, std=0.05),
    ReLU(),
    Conv(64, 3, padding=1, bias=0.1, std=0.05),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(256, bias=0.1, std=0.06),
    ReLU(),
    Dropout(0.5),
    Dense(256, bias=0.1, std=0.06),
    ReLU(),
    Dropout(0.5),
    Dense(10, std=0.06),
)
"""The paper's ideas in a network that two CPU cores train in a minute or two.

Narrow layers need larger weights than N(0, 0.01^2) to pass a signal through.
"""

NAMED = {"PAPER": PAPER, "SLIDES": SLIDES, "QUICKSTART": QUICKSTART}
"""What `config.architecture` accepts."""


def towers_of(architecture: Architecture) -> int:
    """The number of towers of an architecture."""
    return architecture[0].towers


def width(layer: Conv | Dense, towers: int) -> int:
    """The maps or units of a layer that one tower has; rounded up, if they do not divide (check)."""
    return -(-(layer.maps if isinstance(layer, Conv) else layer.units) // towers)


def without(architecture: Architecture, kind: type) -> Architecture:
    """The architecture with every layer of one kind left out, e.g. `without(PAPER, LRN)`."""
    return tuple(layer for layer in architecture if not isinstance(layer, kind))


def with_classes(architecture: Architecture, classes: int) -> Architecture:
    """The architecture with its last layer resized to a number of classes."""
    return (*architecture[:-1], dataclasses.replace(architecture[-1], units=classes))


def layer_names(architecture: Architecture) -> tuple[str, ...]:
    """The paper's name for each layer, by the count of weight layers so far.

    PAPER's are input, conv1, relu1, lrn1, pool1, ..., pool5, flatten5, fc6, relu6, drop6, ..., fc8.
    """
    names, depth = [], 0
    words = {"Conv": "conv", "Dense": "fc", "MaxPool": "pool", "Dropout": "drop"}
    for layer in architecture:
        depth += isinstance(layer, Conv | Dense)
        kind = type(layer).__name__
        names.append("input" if kind == "Input" else f"{words.get(kind, kind.lower())}{depth}")
    return tuple(names)


def check(architecture: Architecture) -> None:
    """Raises ValueError unless the layers form a network that can be split into its towers.

    Checked: Input first and only there, Dense last, Flatten between Conv and Dense, odd
    windows of LRN, sizes that leave at least one pixel, maps and units that divide into the
    towers (those of the last layer need not: it is rounded up and the surplus cut off).
    """
    if not architecture or not isinstance(architecture[0], Input) or not isinstance(architecture[-1], Dense):
        raise ValueError("An architecture starts with Input and ends with Dense (the logits).")
    towers, pixels = architecture[0].towers, architecture[0].size
    if towers < 1:
        raise ValueError(f"input: towers is {towers}; accepted is an integer of at least 1.")
    for position, (name, layer) in enumerate(zip(layer_names(architecture), architecture, strict=True)):
        match layer:
            case Input() if position:
                raise ValueError(f"{name}: Input stands at the start of an architecture and nowhere else.")
            case Dense() if pixels:
                raise ValueError(f"{name}: a Dense layer takes vectors; put Flatten() before it.")
            case Conv() | LRN() | MaxPool() if not pixels:
                raise ValueError(f"{name}: {type(layer).__name__} takes maps and must stand before Flatten.")
            case Conv(size=size, stride=stride, padding=padding):
                pixels = (pixels + (sum(padding) if isinstance(padding, tuple) else 2 * padding) - size) // stride + 1
            case MaxPool(size=size, stride=stride):
                pixels = (pixels - size) // stride + 1
            case Flatten():
                pixels = None
            case LRN(n=n) if n < 1 or n % 2 == 0:
                raise ValueError(f"{name}: n is {n}; the window of maps must be a positive odd number, such as 5.")
        if pixels is not None and pixels < 1:
            raise ValueError(f"{name}: nothing is left of the maps; use a larger Input or smaller windows.")
        width = layer.maps if isinstance(layer, Conv) else layer.units if isinstance(layer, Dense) else towers
        if width % towers and position < len(architecture) - 1:
            raise ValueError(f"{name}: {width} maps or units do not divide into {towers} towers.")
