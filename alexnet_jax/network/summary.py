"""The table of layers, sizes and parameters (paper, section 3.5; the seminar's slides)."""

import math

import jax
import jax.numpy as jnp

from alexnet_jax.network.architectures import Architecture, layer_names
from alexnet_jax.network.model import AlexNet

_MB = 2**20


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
    images = jax.ShapeDtypeStruct((batch_size, size, size, channels), jnp.float32)
    network = AlexNet(architecture)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    _, sown = jax.eval_shape(lambda v, x: network.apply(v, x, mutable="intermediates"), variables, images)

    rows, outputs, parameters, products = [], 0, 0, 0
    for name, layer in list(zip(layer_names(architecture), architecture, strict=True))[1:]:
        (output,) = sown["intermediates"][f"{name}_output"]
        arrays = variables["params"].get(name, {})
        count = sum(math.prod(p.shape) for p in arrays.values())
        # A convolution uses each weight at every position of its output maps, a dense layer uses it once.
        places = math.prod(output.shape[:-1])
        multiply_adds = places * math.prod(arrays["kernel"].shape) if arrays else 0
        outputs, parameters = outputs + math.prod(output.shape), parameters + count
        products += multiply_adds
        shape, size_of_output = " x ".join(map(str, output.shape[1:])), 4 * math.prod(output.shape)
        kind = type(layer).__name__
        rows.append(f"{name:<11} {kind:<11} {shape:>14} {count:>11,} {multiply_adds:>14,} {size_of_output:>14,}")
    input_mb, outputs_mb = 4 * math.prod(images.shape) / _MB, 2 * 4 * outputs / _MB
    parameters_mb = 4 * parameters / _MB
    return "\n".join(
        [
            f"{'layer':<11} {'kind':<11} {'output':>14} {'parameters':>11} {'multiply-adds':>14} {'bytes':>14}",
            *rows,
            f"Input {size} x {size} x {channels}, towers: {architecture[0].towers}, batch: {batch_size}",
            f"Parameters: {parameters:,}",
            f"Multiply-adds, forward: {products:,}",
            f"Input size (MB): {input_mb:.2f}",
            f"Forward/backward pass size (MB): {outputs_mb:.2f}",
            f"Params size (MB): {parameters_mb:.2f}",
            f"Estimated total size (MB): {input_mb + outputs_mb + parameters_mb:.2f}",
        ]
    )
