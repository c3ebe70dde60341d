"""torchvision's alexnet, and networks fine-tuned from it: its state dict as .safetensors, .pth or .pt.

Its own preprocessing: rescale the shorter side to 256, cut out the central 224 x 224, divide pixels by 255, subtract
MEAN, and divide by a standard deviation (Input.scale of TORCHVISION).
"""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

from alexnet_jax.convert.channels_first import to_towers
from alexnet_jax.convert.weights import Weights, classes_of
from alexnet_jax.errors import UsageError
from alexnet_jax.files import write_whole
from alexnet_jax.network import architectures, networks
from alexnet_jax.network.architectures import Conv
from alexnet_jax.training.pretrained import changes

MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
LAYERS = {
    **{"conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8"},
    **{"conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}
NAMES = {layer: (f"{theirs}.weight", f"{theirs}.bias") for layer, theirs in LAYERS.items()}
SUFFIXES = (".pth", ".pth.tar", ".pt", ".ckpt", ".bin")
PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "net.")
"""What wrappers put before the names of a network: DataParallel, torch.compile, Lightning and others."""

_WITHIN = ("state_dict", "model_state_dict", "model", "net", "weights")  # where a checkpoint keeps the state dict
_SAVE = "safetensors.torch.save_file(model.state_dict(), 'alexnet.safetensors')"


def read(arrays: dict[str, np.ndarray], path: Path, trunk: bool = False) -> Weights:
    """Returns weights from the float32 arrays of a state dict, which give the widths and the number of classes.

    Args:
      arrays: by their names in the file.
      path: of the file.
      trunk: whether a state dict without the dense layers is accepted.
    """
    arrays, removed = without_prefixes(arrays)
    names = NAMES
    if arrays and all(name.startswith("features.") for name in arrays):
        if not trunk:
            raise UsageError(
                f"{path} has only the convolutions of a network, and no classifier. It can be the start of a training, "
                f"as --config.pretrained={path}, but it has no answers of its own."
            )
        names = {layer: pair for layer, pair in NAMES.items() if layer.startswith("conv")}
    architecture, params = to_towers(networks.TORCHVISION, arrays, names, path)
    notes = [f"without the prefix {prefix}" for prefix in removed] + ["without its classifier"] * (names is not NAMES)
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=np.full((256, 256, 3), 255 * np.array(MEAN), np.float32),
        pca=None,
        mean_at="crop",
        views=10,
        classes=classes_of(architecture),
        source=", ".join([f"torchvision's alexnet, {path.name}", *notes]),
    )


def without_prefixes(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Removes PREFIXES that all names have, and `module.` after `features.`; also returns what was removed."""
    removed = []
    while prefix := next((p for p in PREFIXES if arrays and all(name.startswith(p) for name in arrays)), None):
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        removed.append(prefix)
    if any(name.startswith("features.module.") for name in arrays):  # PyTorch's example for ImageNet wraps `features`
        arrays = {name.replace("features.module.", "features."): array for name, array in arrays.items()}
        removed.append("features.module.")
    if arrays and all(name.split(".")[0].isdigit() for name in arrays):  # the state dict of model.features alone
        arrays = {f"features.{name}": array for name, array in arrays.items()}
    return arrays, removed


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of PyTorch, float32. PyTorch reads it in its safe mode, which runs no code."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{path} can only be read with PyTorch, which is not installed. Install it (pip install torch), or save "
            f"the weights on a machine that has it, with {_SAVE}, and convert that file."
        ) from error
    _check_zip(path)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # PyTorch documents no errors for files of another kind
        raise UsageError(
            f"{path} cannot be read: PyTorch's safe mode refuses it ({type(error).__name__}). Either it holds more "
            "than tensors, for example a whole model, and loading it would run code from the file; or PyTorch did not "
            f"write it. Save only the weights, with {_SAVE} or torch.save(model.state_dict(), 'alexnet.pth')."
        ) from error
    state = _state_dict(state, path, torch.Tensor)
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} is {tensor.dtype}; accepted are floating-point types. Convert it.")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _check_zip(path):
    """Raises UsageError if a file of PyTorch, which is a zip, is damaged; PyTorch does not compare its checksums."""
    try:
        if not zipfile.is_zipfile(path):  # an old form of such files
            return
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is None:
                return
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, zlib.error, EOFError) as error:
        bad = error
    raise UsageError(f"{path} is damaged ({bad}). Copy or download it again.")


def _state_dict(state, path, tensor):
    """The dictionary of tensors in what a file holds: at its top, or under one of the usual names."""
    top = state
    while isinstance(state, dict) and not (state and all(isinstance(value, tensor) for value in state.values())):
        state = next((state[name] for name in _WITHIN if isinstance(state.get(name), dict)), None)
    if state is None or not isinstance(state, dict):
        holds = f"the entries {', '.join(map(str, list(top)[:5]))}" if isinstance(top, dict) else type(top).__name__
        raise UsageError(
            f"{path} is not a state dict: it holds {holds}. A state dict has a tensor for each name, at the top or "
            f"under {', '.join(_WITHIN)}. Save only model.state_dict()."
        )
    return state


def write(weights: Weights, path: Path) -> None:
    """Writes a .safetensors file that torchvision's alexnet loads by load_state_dict.

    Raises:
      UsageError: if the network is not of torchvision's architecture.
    """
    names, architecture = list(NAMES), networks.TORCHVISION
    layers = dict(zip(architectures.layer_names(weights.architecture), weights.architecture, strict=True))
    for name in names:
        if name in layers:
            width = "maps" if isinstance(layers[name], Conv) else "units"
            architecture = architectures.replace(architecture, name, **{width: getattr(layers[name], width)})
    if differ := changes(weights.architecture, architecture):
        raise UsageError(
            f"{weights.source}: torchvision's alexnet is another network ({differ[:300]}). Only a network of the "
            "architecture TORCHVISION can be written in its layout."
        )
    arrays = {}
    for layer, (kernel, bias) in NAMES.items():
        ours = weights.params[layer]
        arrays[kernel] = np.moveaxis(ours["kernel"][0], (-1, -2), (0, 1))  # (h, w, I, O) -> (O, I, h, w)
        arrays[bias] = ours["bias"][0]
    maps = len(arrays[NAMES["conv5"][1]])
    fc6, _ = NAMES["fc6"]
    side = math.isqrt(arrays[fc6].shape[1] // maps)
    by_place = arrays[fc6].reshape(-1, side, side, maps)  # (O, H, W, C)
    arrays[fc6] = by_place.transpose(0, 3, 1, 2).reshape(len(by_place), -1)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    metadata = {"format": "pt", "source": weights.source, "classes": weights.classes}
    write_whole(path, safetensors.numpy.save(arrays, metadata | {"preprocessing": weights.preprocessing}))
