"""An architecture (paper, section 3): a tuple of layers, in the order in which an image passes through them.

A layer is a frozen dataclass that holds only its settings. model.py does the computing, and
networks.py has the named architectures. An ablation is a changed tuple, never a new class:
`without(PAPER, LRN)`, `replace(PAPER, ReLU, Tanh())`.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Input:
    """The input image, size x size pixels, and the number of towers that see it (paper, section 3.2).

    A network with `channels=1` sees the mean of an image's three channels. `scale` multiplies the image
    after the mean is subtracted. It is one number, or one for each channel. The paper does not scale pixels.
    """

    size: int
    channels: int = 3
    towers: int = 1
    scale: float | tuple[float, ...] = 1.0


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution with `maps` kernels in all towers together, size x size pixels, plus one bias for each map.

    `sees` says whether a kernel sees the maps of its own tower ("own") or of all towers ("all").
    `padding` is one number of pixels for all four sides, or a pair (before, after).
    Weights start from N(0, std^2), biases at `bias`. The std "fan_in" is sqrt(2 / n) for n weights of a kernel: a layer
    with ReLU then keeps the size of its input's signal (He et al. 2015). A `table` has one entry for each output map,
    with the numbers of the input maps that it sees. Without a table, an output map sees all input maps.
    """

    maps: int
    size: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    sees: Literal["own", "all"] = "own"
    bias: float = 0.0
    std: float | Literal["fan_in"] = 0.01
    table: tuple[tuple[int, ...], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Local:
    """A locally connected layer: as Conv, but each place of the output has kernels and biases of its own.

    Source: the 2012 program's "local" layers, which the paper's networks for CIFAR-10 have (section 3.3, footnote 3).
    """

    maps: int
    size: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    sees: Literal["own", "all"] = "own"
    bias: float = 0.0
    std: float | Literal["fan_in"] = 0.01


@dataclasses.dataclass(frozen=True)
class Dense:
    """Fully connected layer with `units` neurons in all towers together; the other fields as in Conv."""

    units: int
    sees: Literal["own", "all"] = "all"
    bias: float = 0.0
    std: float | Literal["fan_in"] = 0.01


@dataclasses.dataclass(frozen=True)
class ReLU:
    """max(0, x) (paper, section 3.1)."""


@dataclasses.dataclass(frozen=True)
class Tanh:
    """amplitude * tanh(slope * x): tanh(x) in the paper's comparison (section 3.1), 1.7159 tanh(2/3 x) in LeNet-5."""

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

    Pixels at the right and bottom may not fill a window. With `round_up` they get a smaller window;
    otherwise they are left out.
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
    """LeNet-5's subsampling: the mean of size x size pixels, times a weight, plus a bias; one of each for each map."""

    size: int = 2


@dataclasses.dataclass(frozen=True)
class Flatten:
    """Turns the maps of a tower into one vector."""


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Sets units to zero with probability `rate` in training (paper, section 4.2).

    At test time the paper multiplies all units by 1 - rate. With `rescale`, training divides the
    units that are kept by 1 - rate instead, and test time does nothing.
    """

    rate: float = 0.5
    rescale: bool = False


@dataclasses.dataclass(frozen=True)
class RBF:
    """LeNet-5's output layer: the logit of a class is minus the squared distance to the code of the class.

    A code is a text with "#" for +1 and "." for -1. There is one code for each class; codes are not trained.
    The loss adds one extra class, to which no image belongs, with the logit -rubbish. Without the extra class,
    it would be enough for the units to be nearer to the right code than to the other codes. With it, they
    must come close to the right code.
    """

    codes: tuple[str, ...]
    rubbish: float = 1.0

    @property
    def units(self) -> int:
        """The number of classes."""
        return len(self.codes)


Layer = (
    Input
    | (Conv | Local | Dense)
    | (ReLU | Tanh | LRN | SameMapLRN | MaxPool | AveragePool | Subsample)
    | (Flatten | Dropout | RBF)
)
Architecture = tuple[Layer, ...]
WEIGHTED = Conv | Local | Dense | Subsample
"""The layers that have parameters."""


def towers_of(architecture: Architecture) -> int:
    """The number of towers of an architecture."""
    return architecture[0].towers


def width(layer: Conv | Local | Dense, towers: int) -> int:
    """The number of a layer's maps or units in one tower; rounded up if they do not divide evenly (see check)."""
    return -(-(layer.units if isinstance(layer, Dense) else layer.maps) // towers)


def without(architecture: Architecture, which: type | str) -> Architecture:
    """The architecture with some layers left out.

    Args:
      architecture: tuple of layers.
      which: a type, as in `without(PAPER, LRN)`, to leave out all its layers; or the name of one layer, as
        in `without(PAPER, "conv4")`. If that layer has weights, the ReLU, Tanh and Dropout layers directly
        after it are left out too, and the numbers in the later names decrease by one.

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
    """The architecture with some layers replaced, or some of their fields changed.

    `replace(PAPER, ReLU, Tanh())`, `replace(PAPER, LRN, average=True)`, `replace(PAPER, "conv2", bias=0.0)`

    Args:
      architecture: tuple of layers.
      which: a type, for all its layers; or the name of one layer.
      layer: the new layer; None to change fields only.
      fields: new values of fields, used if `layer` is None.

    Raises:
      ValueError: if there is no such layer.
    """
    chosen = _choose(architecture, which)
    return tuple(
        (layer or dataclasses.replace(old, **fields)) if position in chosen else old
        for position, old in enumerate(architecture)
    )


def _choose(architecture, which):
    """The positions of the layers of a type, or of the layer with a name."""
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
      ValueError: if the last layer is an RBF with codes for fewer classes.
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
    """The paper's name for each layer: its kind, and the number of layers with weights (or RBF) so far.

    The names in PAPER are input, conv1, relu1, lrn1, pool1, ..., pool5, flatten5, fc6, relu6, drop6, ..., fc8.
    If a kind occurs twice after the same weights, for example when conv2 is left out, the names are lrn1 and lrn1_2.
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


def _check_numbers(name, layer):
    for field in ("size", "channels", "maps", "units", "stride", "n"):
        if getattr(layer, field, 1) < 1:
            words = "the window must be a positive odd number, such as 5" if field == "n" else "it must be at least 1"
            raise ValueError(f"{name}: {field} is {getattr(layer, field)}; {words}.")
    padding = getattr(layer, "padding", 0)
    if min(padding if isinstance(padding, tuple) else (padding,)) < 0:
        raise ValueError(f"{name}: padding is {padding}; it must be at least 0.")
    if isinstance(layer, Dropout) and not 0 <= layer.rate < 1:
        raise ValueError(f"{name}: rate is {layer.rate}; it must be from 0 up to, not including, 1.")


def check(architecture: Architecture) -> None:
    """Raises ValueError unless the layers form a network that can be split into its towers.

    The check requires that:
      Input is the first layer and occurs once; Dense or RBF is the last layer;
      RBF is only the last layer, in a network of one tower;
      Flatten stands between maps and vectors;
      windows of LRN are odd, their k is above 0, and tables fit;
      at least one pixel is left after each layer;
      maps and units divide evenly into the towers. The last layer need not: its size is rounded up, and
      the surplus outputs are cut off.
    """
    if not architecture or not isinstance(architecture[0], Input) or not isinstance(architecture[-1], Dense | RBF):
        raise ValueError("An architecture starts with Input and ends with Dense or RBF (the logits).")
    first = architecture[0]
    towers, pixels, maps = first.towers, first.size, first.channels  # maps: of a layer's input; read for tables
    if towers < 1:
        raise ValueError(f"input: towers is {towers}; accepted is an integer of at least 1.")
    if isinstance(first.scale, tuple) and len(first.scale) != first.channels:
        raise ValueError(f"input: scale has {len(first.scale)} numbers; accepted is one, or {first.channels}.")
    for position, (name, layer) in enumerate(zip(layer_names(architecture), architecture, strict=True)):
        _check_numbers(name, layer)
        match layer:
            case Input() if position:
                raise ValueError(f"{name}: Input must be the first layer and can occur only once.")
            case RBF() if position < len(architecture) - 1 or towers > 1:
                raise ValueError(f"{name}: RBF must be the last layer, in a network of one tower.")
            case Dense() | RBF() if pixels:
                raise ValueError(f"{name}: {type(layer).__name__} takes vectors; put Flatten() before it.")
            case Conv() | Local() | LRN() | SameMapLRN() | MaxPool() | AveragePool() | Subsample() if not pixels:
                raise ValueError(f"{name}: {type(layer).__name__} takes maps and must stand before Flatten.")
            case LRN(n=n) | SameMapLRN(n=n) if n < 1 or n % 2 == 0:
                raise ValueError(f"{name}: n is {n}; the window must be a positive odd number, such as 5.")
            case LRN(k=k) | SameMapLRN(k=k) if not k > 0:
                raise ValueError(f"{name}: k is {k}; it must be above 0, or activations of 0 are divided by 0.")
            case Conv(table=table) if table is not None and (
                towers > 1 or len(table) != layer.maps or not all(0 <= i < maps for entry in table for i in entry)
            ):
                raise ValueError(
                    f"{name}: table does not fit; accepted are {layer.maps} entries that name maps from 0 to "
                    f"{maps - 1}, in a network of one tower."
                )
            case Conv(size=size, stride=stride, padding=padding) | Local(size=size, stride=stride, padding=padding):
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
        outputs = layer.maps if isinstance(layer, Conv | Local) else layer.units if isinstance(layer, Dense) else towers
        if outputs % towers and position < len(architecture) - 1:
            raise ValueError(f"{name}: {outputs} maps or units do not divide into {towers} towers.")
