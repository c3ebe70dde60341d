"""The table of layers, sizes and parameters (paper, section 3.5; the seminar's slides)."""

import math

import jax
import jax.numpy as jnp

from alexnet_jax.architectures import Architecture, layer_names
from alexnet_jax.model import AlexNet

_MB = 2**20


def summary(architecture: Architecture, batch_size: int = 1) -> str:
    """A table of the network as text: output shape and parameters of each layer, and sizes.

    Sizes are those of float32 in MB of 2^20 bytes, counted as the slides count them:
    forward and backward hold two arrays for the output of each layer.

    Args:
      architecture: tuple of layers.
      batch_size: pictures that the sizes are given for.

    Returns:
      Text: a heading, one line a layer, and six lines of totals.
    """
    size, channels = architecture[0].size, architecture[0].channels
    images = jax.ShapeDtypeStruct((batch_size, size, size, channels), jnp.float32)
    network = AlexNet(architecture)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    _, sown = jax.eval_shape(lambda v, x: network.apply(v, x, mutable="intermediates"), variables, images)

    rows, outputs, parameters = [], 0, 0
    for name, layer in list(zip(layer_names(architecture), architecture, strict=True))[1:]:
        (output,) = sown["intermediates"][f"{name}_output"]
        count = sum(math.prod(p.shape) for p in variables["params"].get(name, {}).values())
        outputs, parameters = outputs + math.prod(output.shape), parameters + count
        shape = " x ".join(map(str, output.shape[1:]))
        rows.append(f"{name:<10} {type(layer).__name__:<8} {shape:>16} {count:>12,}")
    input_mb, outputs_mb = 4 * math.prod(images.shape) / _MB, 2 * 4 * outputs / _MB
    parameters_mb = 4 * parameters / _MB
    return "\n".join(
        [
            f"{'layer':<10} {'kind':<8} {'output':>16} {'parameters':>12}",
            *rows,
            f"Input {size} x {size} x {channels}, towers: {architecture[0].towers}, batch: {batch_size}",
            f"Parameters: {parameters:,}",
            f"Input size (MB): {input_mb:.2f}",
            f"Forward/backward pass size (MB): {outputs_mb:.2f}",
            f"Params size (MB): {parameters_mb:.2f}",
            f"Estimated total size (MB): {input_mb + outputs_mb + parameters_mb:.2f}",
        ]
    )
