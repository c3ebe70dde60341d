"""The network as blocks, as the paper's Figure 2 draws it, and what normalization does at one pixel (section 3.3)."""

import dataclasses

import numpy as np

from alexnet_jax.errors import UsageError
from alexnet_jax.inspection.explore.forward import Look
from alexnet_jax.network.architectures import LRN, RBF, WEIGHTED, Architecture, Layer, layer_names
from alexnet_jax.network.summary import Row, rows


@dataclasses.dataclass(frozen=True)
class Step:
    """A layer of a block: its name, its settings, and its sizes."""

    name: str
    layer: Layer
    row: Row


@dataclasses.dataclass(frozen=True)
class Block:
    """A layer with weights, and all layers without weights that follow it: conv1 is (conv1, relu1, lrn1, pool1)."""

    name: str
    steps: tuple[Step, ...]

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return self.steps[0].row.parameters

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of the weights, for one image."""
        return self.steps[0].row.multiply_adds


def blocks(architecture: Architecture) -> tuple[Block, ...]:
    """The blocks of an architecture, in their order. Layers before the first one with weights are in no block."""
    made = []
    sizes = {row.name: row for row in rows(architecture)}
    for name, layer in zip(layer_names(architecture), architecture, strict=True):
        if isinstance(layer, WEIGHTED | RBF):
            made.append([])
        if made:
            made[-1].append(Step(name, layer, sizes[name]))
    return tuple(Block(steps[0].name, tuple(steps)) for steps in made)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """What one LRN layer does to one map at one pixel: b = a / (k + alpha * sum of squares)^beta.

    Attributes:
      layer: the LRN.
      before: name of the layer that gives a, such as relu1.
      maps: (m,) numbers of the neighbouring maps in the tower, clipped at the first and the last map.
      a: (m,) float32, their activations before.
      b: (m,) float32, and after.
      squares: the sum of a^2 over the window of the map in the middle; the mean if the layer averages.
      divisor: (k + alpha * squares)^beta.
    """

    layer: LRN
    before: str
    maps: np.ndarray
    a: np.ndarray
    b: np.ndarray
    squares: float
    divisor: float


def norms(architecture: Architecture) -> tuple[str, ...]:
    """The names of the LRN layers of an architecture."""
    return tuple(
        name for name, layer in zip(layer_names(architecture), architecture, strict=True) if isinstance(layer, LRN)
    )


def window(look: Look, name: str, tower: int, map_number: int, row: int, column: int) -> Window:
    """The window of maps of an LRN layer around one map, at one pixel.

    Args:
      look: an image in the network.
      name: of the LRN layer, such as lrn1.
      tower: number of the tower, from 0.
      map_number: number of the map in its tower, from 0.
      row, column: the pixel of the map, from 0.

    Raises:
      UsageError: if there is no such layer, tower, map or pixel.

    Source: paper, section 3.3.
    """
    names = layer_names(look.architecture)
    if name not in norms(look.architecture):
        known = ", ".join(norms(look.architecture)) or "none"
        raise UsageError(f"layer is {name!r}; accepted are the LRN layers of this network: {known}.")
    before, layer = names[names.index(name) - 1], look.architecture[names.index(name)]
    a, b = look.outputs[before], look.outputs[name]  # (T, H, W, C)
    if layer.sees == "all":  # then the window crosses from tower to tower
        a, b = (np.concatenate(list(maps), -1)[None] for maps in (a, b))
    asked = (tower, row, column, map_number)
    if not all(0 <= number < count for number, count in zip(asked, a.shape, strict=True)):
        raise UsageError(f"(tower, row, column, map) is {asked}; accepted are numbers from 0 to below {a.shape}.")
    first, last = max(0, map_number - layer.n // 2), min(a.shape[-1], map_number + layer.n // 2 + 1)
    column_of_maps = a[tower, row, column].astype(np.float64)
    squares = np.square(column_of_maps[first:last]).sum() / (layer.n if layer.average else 1)
    return Window(
        layer=layer,
        before=before,
        maps=np.arange(first, last),
        a=a[tower, row, column, first:last],
        b=b[tower, row, column, first:last],
        squares=float(squares),
        divisor=float((layer.k + layer.alpha * squares) ** layer.beta),
    )


def strongest(look: Look, name: str, tower: int = 0) -> tuple[int, int, int]:
    """(map, row, column) of the largest input of an LRN layer in one tower, which is a good place to begin."""
    names = layer_names(look.architecture)
    maps = look.outputs[names[names.index(name) - 1]][tower]  # (H, W, C)
    row, column, number = np.unravel_index(np.abs(maps).argmax(), maps.shape)
    return int(number), int(row), int(column)
