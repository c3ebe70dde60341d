"""An architecture (paper, section 3): a tuple of layers, one a line, in the order of the data.

A layer is a frozen dataclass that only says what it is; model.py gives it meaning, and
networks.py has the named ones. An ablation is a changed tuple, never a new class:
`without(PAPER, LRN)`, `replace(PAPER, ReLU, Tanh())`.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Input:
    """The image: size x size pixels; and the number of towers that see it (paper, section 3.2).

    A network of one channel sees the mean of an image's three. `scale`, one number or one a
    channel, multiplies what is left when the mean is subtracted; the paper leaves pixels as they are.
    """

    size: int
    channels: int = 3
    towers: int = 1
    scale: float | tuple[float, ...] = 1.0


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution with `maps` kernels over all towers, size x size pixels, plus a bias a map.

    `sees` says whether a kernel sees the maps of its own tower or of all towers.
    `padding` is one number of pixels for the four sides, or a pair (before, after).
    Weights start from N(0, std^2), biases at `bias`. With a `table`, of one entry a map, a map
    sees only those input maps that its entry counts up.
    """

    maps: int
    size: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    sees: Literal["own", "all"] = "own"
    bias: float = 0.0
    std: float = 0.01
    table: tuple[tuple[int, ...], ...] | None = None


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
class Tanh:
    """amplitude * tanh(slope * x): the paper's comparison in section 3.1; LeNet-5's is 1.7159 tanh(2/3 x)."""

    amplitude: float = 1.0
    slope: float = 1.0


@dataclasses.dataclass(frozen=True)
class LRN:
    """Local response normalization (paper, section 3.3): within a tower, or over the maps of all towers."""

    n: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75
    average: bool = False
    sees: Literal["own", "all"] = "own"


@dataclasses.dataclass(frozen=True)
class SameMapLRN:
    """Response normalization over n x n pixels of the same map (the 2012 program's "rnorm")."""

    n: int = 5
    k: float = 1.0
    alpha: float = 1e-3
    beta: float = 0.75


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maximum over size x size windows, `stride` pixels apart (paper, section 3.4).

    With `round_up`, what is left at the right and bottom gets a smaller window; else it is left out.
    """

    size: int = 3
    stride: int = 2
    round_up: bool = False


@dataclasses.dataclass(frozen=True)
class AveragePool:
    """Mean over size x size windows; fields as in MaxPool."""

    size: int = 3
    stride: int = 2
    round_up: bool = False


@dataclasses.dataclass(frozen=True)
class Subsample:
    """LeNet-5's subsampling: the mean of size x size pixels, times a weight a map, plus a bias a map."""

    size: int = 2


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


@dataclasses.dataclass(frozen=True)
class RBF:
    """LeNet-5's output: the logit of a class is minus the squared distance to its code.

    A code is text, "#" for a +1 and "." for a -1; there is one a class, and they are not trained.
    The loss counts one class more, of which no image is, with the logit -rubbish: it makes units
    go to the code of their class, where to be nearer to it than to others would be enough.
    """

    codes: tuple[str, ...]
    rubbish: float = 1.0

    @property
    def units(self) -> int:
        """The number of classes."""
        return len(self.codes)


Layer = (
    Input | Conv | Dense | ReLU | Tanh | LRN | SameMapLRN | MaxPool | AveragePool | Subsample | Flatten | Dropout | RBF
)
Architecture = tuple[Layer, ...]
WEIGHTED = Conv | Dense | Subsample
"""The layers that have parameters."""


def towers_of(architecture: Architecture) -> int:
    """The number of towers of an architecture."""
    return architecture[0].towers


def width(layer: Conv | Dense, towers: int) -> int:
    """The maps or units of a layer that one tower has; rounded up, if they do not divide (check)."""
    return -(-(layer.maps if isinstance(layer, Conv) else layer.units) // towers)


def without(architecture: Architecture, which: type | str) -> Architecture:
    """The architecture with some layers left out.

    Args:
      architecture: tuple of layers.
      which: a kind of layers, as in `without(PAPER, LRN)`; or the name of one, as in
        `without(PAPER, "conv4")`, where conv4 goes with its ReLU (and a dense layer with its
        dropout as well) and the layers behind it count one less.

    Raises:
      ValueError: if there is no such layer.
    """
    chosen = _choose(architecture, which)
    if isinstance(which, str) and isinstance(architecture[chosen[0]], WEIGHTED):
        for position in range(chosen[0] + 1, len(architecture)):
            if not isinstance(architecture[position], ReLU | Tanh | Dropout):
                break
            chosen.append(position)
    return tuple(layer for position, layer in enumerate(architecture) if position not in chosen)


def replace(architecture: Architecture, which: type | str, layer: Layer | None = None, **fields) -> Architecture:
    """The architecture with some layers exchanged, or some of their fields changed.

    `replace(PAPER, ReLU, Tanh())`, `replace(PAPER, LRN, average=True)`, `replace(PAPER, "conv2", bias=0.0)`

    Args:
      architecture: tuple of layers.
      which: a kind of layers, or the name of one.
      layer: to stand in their place; or None.
      fields: to change, where no layer is given.

    Raises:
      ValueError: if there is no such layer.
    """
    chosen = _choose(architecture, which)
    return tuple(
        (layer or dataclasses.replace(old, **fields)) if position in chosen else old
        for position, old in enumerate(architecture)
    )


def _choose(architecture, which):
    """The positions of the layers of a kind or a name."""
    names = layer_names(architecture)
    chosen = [
        position
        for position, (name, layer) in enumerate(zip(names, architecture, strict=True))
        if (name == which if isinstance(which, str) else isinstance(layer, which))
    ]
    if not chosen:
        which = which if isinstance(which, str) else getattr(which, "__name__", which)
        raise ValueError(f"the architecture has no {which}; its layers are {', '.join(names)}.")
    return chosen


def with_classes(architecture: Architecture, classes: int) -> Architecture:
    """The architecture with its last layer resized to a number of classes.

    Raises:
      ValueError: if the last layer has codes for fewer classes (RBF).
    """
    last = architecture[-1]
    if isinstance(last, Dense):
        return (*architecture[:-1], dataclasses.replace(last, units=classes))
    if classes > last.units:
        raise ValueError(
            f"the output layer has codes for {last.units} classes, not for {classes}; accepted are up to {last.units} "
            "classes. Choose another architecture, or replace its RBF by Dense."
        )
    return (*architecture[:-1], dataclasses.replace(last, codes=last.codes[:classes]))


def layer_names(architecture: Architecture) -> tuple[str, ...]:
    """The paper's name for each layer, by the count of layers with weights so far.

    PAPER's are input, conv1, relu1, lrn1, pool1, ..., pool5, flatten5, fc6, relu6, drop6, ..., fc8.
    What comes twice behind the same weights, as where conv2 is left out, is lrn1 and lrn1_2.
    """
    names, depth = [], 0
    words = {"Dense": "fc", "SameMapLRN": "maplrn", "MaxPool": "pool", "AveragePool": "pool", "Dropout": "drop"}
    for layer in architecture:
        depth += isinstance(layer, WEIGHTED | RBF)
        kind = type(layer).__name__
        name = "input" if kind == "Input" else f"{words.get(kind, kind.lower())}{depth}"
        before = sum(other.partition("_")[0] == name for other in names)
        names.append(f"{name}_{before + 1}" if before else name)
    return tuple(names)


def weighted(architecture: Architecture) -> tuple[str, ...]:
    """The names of the layers that have parameters."""
    return tuple(
        name for name, layer in zip(layer_names(architecture), architecture, strict=True) if isinstance(layer, WEIGHTED)
    )


def check(architecture: Architecture) -> None:
    """Raises ValueError unless the layers form a network that can be split into its towers.

    Checked: Input first and only there; Dense or RBF last, and RBF only there and in one tower;
    Flatten between maps and vectors; odd windows of LRN, tables that fit; sizes that leave at least
    one pixel; maps and units that divide into the towers (those of the last layer need not: it
    is rounded up and the surplus cut off).
    """
    if not architecture or not isinstance(architecture[0], Input) or not isinstance(architecture[-1], Dense | RBF):
        raise ValueError("An architecture starts with Input and ends with Dense or RBF (the logits).")
    first = architecture[0]
    towers, pixels, maps = first.towers, first.size, first.channels  # maps: those that a tower sees of its own
    if towers < 1:
        raise ValueError(f"input: towers is {towers}; accepted is an integer of at least 1.")
    if isinstance(first.scale, tuple) and len(first.scale) != first.channels:
        raise ValueError(f"input: scale has {len(first.scale)} numbers; accepted is one, or {first.channels}.")
    for position, (name, layer) in enumerate(zip(layer_names(architecture), architecture, strict=True)):
        match layer:
            case Input() if position:
                raise ValueError(f"{name}: Input stands at the start of an architecture and nowhere else.")
            case RBF() if position < len(architecture) - 1 or towers > 1:
                raise ValueError(f"{name}: RBF is the last layer, and of a network of one tower.")
            case Dense() | RBF() if pixels:
                raise ValueError(f"{name}: a {type(layer).__name__} layer takes vectors; put Flatten() before it.")
            case Conv() | LRN() | SameMapLRN() | MaxPool() | AveragePool() | Subsample() if not pixels:
                raise ValueError(f"{name}: {type(layer).__name__} takes maps and must stand before Flatten.")
            case LRN(n=n) | SameMapLRN(n=n) if n < 1 or n % 2 == 0:
                raise ValueError(f"{name}: n is {n}; the window must be a positive odd number, such as 5.")
            case Conv(table=table) if table is not None and (
                towers > 1 or len(table) != layer.maps or not all(0 <= i < maps for entry in table for i in entry)
            ):
                raise ValueError(
                    f"{name}: table does not fit; accepted are {layer.maps} entries that name maps from 0 to "
                    f"{maps - 1}, in a network of one tower."
                )
            case Conv(size=size, stride=stride, padding=padding):
                pixels = (pixels + (sum(padding) if isinstance(padding, tuple) else 2 * padding) - size) // stride + 1
                maps = layer.maps
            case MaxPool(size=size, stride=stride, round_up=up) | AveragePool(size=size, stride=stride, round_up=up):
                pixels = (-(-(pixels - size) // stride) if up else (pixels - size) // stride) + 1
            case Subsample(size=size):
                pixels //= size
            case Flatten():
                pixels = None
        if pixels is not None and pixels < 1:
            raise ValueError(f"{name}: nothing is left of the maps; use a larger Input or smaller windows.")
        width = layer.maps if isinstance(layer, Conv) else layer.units if isinstance(layer, Dense) else towers
        if width % towers and position < len(architecture) - 1:
            raise ValueError(f"{name}: {width} maps or units do not divide into {towers} towers.")
