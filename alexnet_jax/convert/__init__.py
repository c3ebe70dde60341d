"""Reads weights from other frameworks and from runs, and writes all of them to one kind of file of our own.

weights          Weights, and our .safetensors file
channels_first   kernels of PyTorch and Caffe -> our layout, towers first
torchvision      torchvision's alexnet: .safetensors, .pth
caffe            bvlc_alexnet, bvlc_reference_caffenet: .caffemodel, .binaryproto
workdir          a run of main.py

No file is unpickled, except PyTorch's files in its safe mode, which accepts only tensors.
"""

from pathlib import Path
from typing import Literal

from alexnet_jax.convert import caffe, torchvision, workdir
from alexnet_jax.convert import weights as own_format
from alexnet_jax.convert.weights import Weights
from alexnet_jax.errors import UsageError

__all__ = ["Weights", "convert", "read", "write"]


def read(path: str | Path, mean: str | Path | None = None, checkpoint: Literal["last", "best"] = "last") -> Weights:
    """Reads the weights of a network, and everything that is needed to use them.

    Args:
      path: our own .safetensors; a state dict of torchvision's alexnet, as .safetensors, .pth or .pt;
        a .caffemodel; or the workdir of a run of main.py.
      mean: Caffe's mean file (.binaryproto), for a .caffemodel; without it, the mean colour of ILSVRC-2012.
      checkpoint: which checkpoint of a run to read; "best" has the smallest validation error.

    Raises:
      UsageError: if the file does not exist, or is of another kind or of another network.
    """
    path, mean = check_there(path), None if mean is None else Path(mean).expanduser()
    kind = path.suffix.lower()
    if mean is not None and kind != ".caffemodel":
        raise UsageError(f"mean is {mean}, but only a .caffemodel takes a mean file, not {path}. Leave the mean out.")
    if mean is not None and not mean.is_file():
        raise UsageError(f"mean is {mean}, which is not a file. Give the .binaryproto of the training set's mean.")
    if path.is_dir():
        return workdir.read(path, checkpoint)
    match kind:
        case ".safetensors":
            metadata, arrays = own_format.load(path)
            if own_format.FORMAT in metadata:
                return own_format.unpack(metadata, arrays, path)
            return torchvision.read(arrays, path)
        case ".pth" | ".pt":
            return torchvision.read(torchvision.load(path), path)
        case ".caffemodel":
            return caffe.read(path, mean)
    raise UsageError(
        f"{path} {f'is a {kind} file' if kind else 'has no ending'}; accepted are .safetensors, PyTorch's .pth and "
        ".pt, Caffe's .caffemodel and the workdir of a run. Other files may run code when they are loaded, or do not "
        "describe their layout. Open the file in the program that wrote it, and save the weights with "
        "safetensors.torch.save_file(model.state_dict(), FILE)."
    )


def check_there(path: str | Path) -> Path:
    """Returns the path. Raises UsageError if it does not exist."""
    path = Path(path).expanduser()
    if not path.exists():
        raise UsageError(f"{path} does not exist. Give the path of a file of weights, or of a run's workdir.")
    return path


def write(weights: Weights, path: str | Path) -> None:
    """Writes weights as our .safetensors file, completely or not at all.

    Raises:
      UsageError: if path does not end in .safetensors, or its folder does not exist.
    """
    own_format.write(weights, _checked(path))


def convert(source: str | Path, dest: str | Path, mean: str | Path | None = None) -> Weights:
    """Reads weights and writes them as our .safetensors file; arguments and errors as in read and write."""
    dest = _checked(dest)
    weights = read(source, mean)
    own_format.write(weights, dest)
    return weights


def _checked(dest):
    dest = Path(dest).expanduser()
    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} cannot be written: accepted is a name that ends in .safetensors. Give such a name.")
    if not dest.parent.is_dir():
        raise UsageError(
            f"{dest} cannot be written: the folder {dest.parent} does not exist. Create it, or give another path."
        )
    return dest
