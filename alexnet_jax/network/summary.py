"""The table of layers, sizes and parameters (paper, section 3.5; the seminar's slides)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from alexnet_jax.network.architectures import Architecture, Local, layer_names
from alexnet_jax.network.model import AlexNet

_MB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer: its name and kind, its output's shape for one image (all towers), and its parameters and multiply-adds.

    Multiply-adds are those of the weights for one image; normalization, pooling and biases are left out.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def rows(architecture: Architecture) -> tuple[Row, ...]:
    """A Row for each layer after the input."""
    size, channels = architecture[0].size, architecture[0].channels
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    network = AlexNet(architecture)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    _, sown = jax.eval_shape(lambda v, x: network.apply(v, x, mutable="intermediates"), variables, images)

    made = []
    for name, layer in list(zip(layer_names(architecture), architecture, strict=True))[1:]:
        (output,) = sown["intermediates"][f"{name}_output"]
        arrays = variables["params"].get(name, {})
        # A convolution uses each weight at every place of its output maps; Local and Dense use it once.
        places = 1 if isinstance(layer, Local) else math.prod(output.shape[1:-1])
        made.append(
            Row(
                name=name,
                kind=type(layer).__name__,
                shape=output.shape[1:],
                parameters=sum(math.prod(p.shape) for p in arrays.values()),
                multiply_adds=places * math.prod(arrays["kernel"].shape) if arrays else 0,
            )
        )
    return tuple(made)


def summary(architecture: Architecture, batch_size: int = 1) -> str:
    """A table of the network as text: for each layer the output's shape and bytes, parameters and multiply-adds.

    Multiply-adds are those of the weights; normalization, pooling and biases are left out. Sizes are for float32, in
    MB of 2^20 bytes. They are counted as in the slides: the forward and the backward pass together hold two arrays for
    the output of each layer.

    Args:
      architecture: tuple of layers.
      batch_size: the number of images that the sizes are computed for.

    Returns:
      Text: a heading, one line for each layer, and seven lines of totals.
    """
    size, channels = architecture[0].size, architecture[0].channels
    lines, outputs, parameters, products = [], 0, 0, 0
    for row in rows(architecture):
        shape, numbers = " x ".join(map(str, row.shape)), batch_size * math.prod(row.shape)
        multiply_adds = batch_size * row.multiply_adds
        outputs, parameters = outputs + numbers, parameters + row.parameters
        products += multiply_adds
        lines.append(
            f"{row.name:<11} {row.kind:<11} {shape:>14} {row.parameters:>11,} {multiply_adds:>14,} {4 * numbers:>14,}"
        )
    input_mb, outputs_mb = 4 * batch_size * size * size * channels / _MB, 2 * 4 * outputs / _MB
    parameters_mb = 4 * parameters / _MB
    return "\n".join(
        [
            f"{'layer':<11} {'kind':<11} {'output':>14} {'parameters':>11} {'multiply-adds':>14} {'bytes':>14}",
            *lines,
            f"Input {size} x {size} x {channels}, towers: {architecture[0].towers}, batch: {batch_size}",
            f"Parameters: {parameters:,}",
            f"Multiply-adds, forward: {products:,}",
            f"Input size (MB): {input_mb:.2f}",
            f"Forward/backward pass size (MB): {outputs_mb:.2f}",
            f"Params size (MB): {parameters_mb:.2f}",
            f"Estimated total size (MB): {input_mb + outputs_mb + parameters_mb:.2f}",
        ]
    )
