"""bvlc_alexnet.npy: Caffe's AlexNet as others saved it for TensorFlow, and networks fine-tuned from it.

The file is a pickled dictionary, {layer: [kernel, bias]}. Kernels are (h, w, I, O), and those of dense layers (I, O);
before fc6 maps are flattened as (H, W, C). Channels are in the order BGR. Only arrays are unpickled: no code runs.
"""

import math
import pickle
from pathlib import Path

import numpy as np

from alexnet_jax.convert.caffe import LAYERS, MEAN
from alexnet_jax.convert.channels_first import to_towers
from alexnet_jax.convert.weights import Weights, classes_of
from alexnet_jax.errors import UsageError
from alexnet_jax.network import networks

_SAFE = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}
_SAFE |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}


class _Arrays(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return super().find_class(module, name)


def read(path: Path) -> Weights:
    """Returns the weights of a file; the widths of the network are those of the file."""
    arrays = {}
    for layer, pair in _load(path).items():
        for part, array in zip(("kernel", "bias"), pair, strict=True):
            arrays[f"{layer}/{part}"] = _channels_first(array)
    first = arrays.get("conv1/kernel")
    if first is not None and first.ndim == 4:
        arrays["conv1/kernel"] = first[:, ::-1]  # BGR -> RGB
    maps, fc6 = arrays.get("conv5/bias"), arrays.get("fc6/kernel")
    if fc6 is not None and maps is not None and fc6.ndim == 2 and len(maps):
        side = math.isqrt(fc6.shape[1] // len(maps))
        if side * side * len(maps) == fc6.shape[1]:  # otherwise to_towers says what is wrong
            by_place = fc6.reshape(-1, side, side, len(maps))  # (O, H, W, C)
            arrays["fc6/kernel"] = by_place.transpose(0, 3, 1, 2).reshape(len(fc6), -1)
    names = {layer: (f"{layer}/kernel", f"{layer}/bias") for layer in LAYERS}
    architecture, params = to_towers(networks.CAFFE_ALEXNET, arrays, names, path)
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=np.full((256, 256, 3), MEAN, np.float32),
        pca=None,
        mean_at="crop",
        views=10,
        classes=classes_of(architecture),
        source=f"Caffe's AlexNet as a dictionary of arrays, {path.name}, with ILSVRC-2012's mean colour",
    )


def _channels_first(array):
    """(h, w, I, O) -> (O, I, h, w); (I, O) -> (O, I)."""
    with np.errstate(over="ignore"):  # what is then infinite is refused later
        array = array.astype(np.float32)
    return {4: lambda: array.transpose(3, 2, 0, 1), 2: lambda: array.T}.get(array.ndim, lambda: array)()


def _load(path):
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            content = None
            if shape == () and dtype.hasobject:
                content = _Arrays(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises errors of many types
        raise UsageError(
            f"{path} cannot be read ({error}). Save the arrays with safetensors.numpy.save_file under torchvision's "
            "names, or copy the file again."
        ) from error
    content = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if not isinstance(content, dict) or not all(map(_is_pair, content.values())):
        raise UsageError(
            f"{path} is not a dictionary of layers with a kernel and a bias each, as bvlc_alexnet.npy is. Save the "
            "weights with safetensors.numpy.save_file under torchvision's names."
        )
    return {str(name): pair for name, pair in content.items()}


def _is_pair(value):
    if not isinstance(value, list | tuple):
        return False
    return [isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in value] == [True, True]
