"""Converts kernels from the layout of PyTorch and Caffe to ours, towers first.

Their kernels are (O, I, h, w), and those of dense layers (O, I): O outputs of all towers, I inputs of one kernel.
Before a dense layer they flatten maps as (C, H, W). We flatten the maps of each of T towers separately, as (H, W, C/T).
"""

import math
from pathlib import Path

import numpy as np

from alexnet_jax.convert.weights import expected
from alexnet_jax.errors import UsageError
from alexnet_jax.network import architectures
from alexnet_jax.network.architectures import Architecture, Conv, Dense, Flatten

Names = dict[str, tuple[str, str]]


def to_towers(
    architecture: Architecture, arrays: dict[str, np.ndarray], names: Names, path: Path
) -> tuple[Architecture, dict]:
    """Makes the parameters of an architecture from the arrays of another framework.

    Args:
      architecture: tuple of layers; its maps and units are replaced by those of the arrays.
      arrays: kernels and biases, float32, by their names in the other framework.
      names: the names of the kernel and of the bias, for each layer with weights.
      path: the file, for error messages.

    Returns:
      The architecture with the widths of the arrays, and its tree of parameters.

    Raises:
      UsageError: if an array is missing, not expected, or of another shape; the message names it.
    """
    layers = dict(zip(architectures.layer_names(architecture), architecture, strict=True))
    ranks = {}
    for name, (kernel, bias) in names.items():
        ranks |= {kernel: 4 if isinstance(layers[name], Conv) else 2, bias: 1}
    for name in sorted(ranks.keys() ^ arrays.keys()):
        has = f"lacks {name}" if name in ranks else f"has the array {name}, which is not expected"
        raise UsageError(f"{path} {has}; accepted are {', '.join(ranks)}, and no others. Is it another network?")
    for name, rank in ranks.items():
        if arrays[name].ndim != rank or not arrays[name].size:
            raise UsageError(
                f"{path}: {name} has the shape {list(arrays[name].shape)}; accepted are {rank} axes of size 1 or more. "
                "Is it another network?"
            )
    for name, (kernel, _) in names.items():
        width = {"maps" if isinstance(layers[name], Conv) else "units": len(arrays[kernel])}
        architecture = architectures.replace(architecture, name, **width)
    try:
        architectures.check(architecture)
    except ValueError as error:
        raise UsageError(f"{path} does not fit into a network: {error} Is it another network?") from error
    return architecture, _convert(architecture, arrays, names, path)


def _convert(architecture, arrays, names, path):
    towers, wanted = architectures.towers_of(architecture), expected(architecture)
    params, maps, flattened = {}, 0, False
    for name, layer in zip(architectures.layer_names(architecture), architecture, strict=True):
        match layer:
            case Conv():
                maps = outputs = layer.maps
            case Dense():
                outputs = layer.units
            case Flatten():
                flattened = True
        if name not in names:
            continue
        kernel, bias = (arrays[n] for n in names[name])
        _, *window, inputs, _ = wanted[name]["kernel"].shape
        for array, array_name, shape in zip(
            (kernel, bias), names[name], ((outputs, inputs, *window), (outputs,)), strict=True
        ):
            if array.shape != shape:
                raise UsageError(
                    f"{path}: {array_name} has the shape {list(array.shape)}; accepted is {list(shape)}, which fits "
                    "the layers before it. Is it another network?"
                )
        if flattened and isinstance(layer, Dense):
            kernel, flattened = _channels_last(kernel, towers, maps), False
        params[name] = {"kernel": _kernel(kernel, towers), "bias": _split(bias, towers)}
    return params


def _kernel(kernel, towers):
    """(O, I, h, w) -> (T, h, w, I, O/T), and (O, I) -> (T, I, O/T)."""
    kernel = _split(kernel, towers)  # (T, O/T, I, ...)
    return np.ascontiguousarray(np.moveaxis(kernel, (1, 2), (-1, -2)))


def _split(array, towers):
    """(O, ...) -> (T, O/T, ...); an odd number of classes is filled up with zeros, which model.py cuts off."""
    surplus = -len(array) % towers
    array = np.concatenate([array, np.zeros((surplus, *array.shape[1:]), array.dtype)])
    return array.reshape(towers, -1, *array.shape[1:])


def _channels_last(kernel, towers, maps):
    """Reorders the inputs of the dense layer after Flatten: C H W -> T H W C/T."""
    side = math.isqrt(kernel.shape[1] // maps)
    kernel = kernel.reshape(-1, towers, maps // towers, side, side)  # (O, T, C/T, H, W)
    return kernel.transpose(0, 1, 3, 4, 2).reshape(len(kernel), -1)  # (O, T H W C/T)
