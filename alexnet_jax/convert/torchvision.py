"""torchvision's alexnet, and networks fine-tuned from it: its state dict as .safetensors, .pth or .pt.

Its own preprocessing: rescale the shorter side to 256, cut out the central 224 x 224, divide pixels by 255, subtract
MEAN, and divide by a standard deviation (Input.scale of TORCHVISION).
"""

from pathlib import Path

import numpy as np

from alexnet_jax.convert.channels_first import to_towers
from alexnet_jax.convert.weights import Weights, classes_of
from alexnet_jax.errors import UsageError
from alexnet_jax.network import networks

MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
LAYERS = {
    **{"conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8"},
    **{"conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"},
}
NAMES = {layer: (f"{theirs}.weight", f"{theirs}.bias") for layer, theirs in LAYERS.items()}
_SAVE = "safetensors.torch.save_file(model.state_dict(), 'alexnet.safetensors')"


def read(arrays: dict[str, np.ndarray], path: Path) -> Weights:
    """Returns weights from the float32 arrays of a state dict, which give the widths and the number of classes."""
    architecture, params = to_towers(networks.TORCHVISION, arrays, NAMES, path)
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=np.full((256, 256, 3), 255 * np.array(MEAN), np.float32),
        pca=None,
        mean_at="crop",
        views=10,
        classes=classes_of(architecture),
        source=f"torchvision's alexnet, {path.name}",
    )


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .pth or .pt file, float32. PyTorch reads it in its safe mode, which runs no code."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{path} can only be read with PyTorch, which is not installed. Install it (pip install torch), or save "
            f"the weights on a machine that has it, with {_SAVE}, and convert that file."
        ) from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # PyTorch documents no errors for files of another kind
        raise UsageError(
            f"{path} cannot be read: PyTorch's safe mode refuses it ({type(error).__name__}). Either it holds more "
            "than tensors, for example a whole model, and loading it would run code from the file; or PyTorch did not "
            f"write it. Save only the weights, with {_SAVE} or torch.save(model.state_dict(), 'alexnet.pth')."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise UsageError(
            f"{path} is not a state dict: a state dict has a tensor for each name. Save only model.state_dict()."
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} is {tensor.dtype}; accepted are floating-point types. Convert it.")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}
