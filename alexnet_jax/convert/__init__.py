"""Reads weights from other frameworks and from runs, and writes all of them to one kind of file of our own.

weights          Weights, and our .safetensors file
channels_first   kernels of PyTorch and Caffe -> our layout, towers first
torchvision      torchvision's alexnet: .safetensors, .pth
caffe            bvlc_alexnet, bvlc_reference_caffenet: .caffemodel, .binaryproto
npy              bvlc_alexnet.npy
workdir          a run of main.py

Files are unpickled only in a safe way, which accepts nothing but arrays: PyTorch's own safe mode, and that of npy.
"""

from pathlib import Path
from typing import Literal

from alexnet_jax.convert import caffe, npy, torchvision, workdir
from alexnet_jax.convert import weights as own_format
from alexnet_jax.convert.weights import Weights
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, local, stores

__all__ = ["Weights", "convert", "read", "write"]


def read(
    path: str | Path,
    mean: str | Path | None = None,
    checkpoint: Literal["last", "best"] = "last",
    *,
    trunk: bool = False,
) -> Weights:
    """Reads the weights of a network, and everything that is needed to use them.

    Args:
      path: our own .safetensors; a state dict of torchvision's alexnet, as .safetensors, .pth, .pth.tar, .pt, .ckpt or
        .bin, also with the prefixes that wrappers add to its names; a .caffemodel; bvlc_alexnet.npy; or the workdir of
        a run of main.py. Also the address of one, gs://... or s3://...
      mean: Caffe's mean file (.binaryproto), for a .caffemodel; without it, the mean colour of ILSVRC-2012.
      checkpoint: which checkpoint of a run to read; "best" has the smallest validation error.
      trunk: whether a state dict without the dense layers is accepted; `params` then lacks these.

    Raises:
      UsageError: if the file does not exist, is of another kind or of another network, or has numbers that are not
        finite.
    """
    if stores.is_address(path):
        with copies.opened(path, "the path of the weights") as copy:
            return read(copy, mean, checkpoint, trunk=trunk)
    path, mean = check_there(path), None if mean is None else local(mean, "mean")
    if mean is not None and path.suffix.lower() != ".caffemodel":
        raise UsageError(f"mean is {mean}, but only a .caffemodel takes a mean file, not {path}. Leave the mean out.")
    if mean is not None and not mean.is_file():
        raise UsageError(f"mean is {mean}, which is not a file. Give the .binaryproto of the training set's mean.")
    weights = _read(path, mean, checkpoint, trunk)
    own_format.check_finite(weights, path)
    return weights


def _read(path, mean, checkpoint, trunk):
    if path.is_dir():
        return workdir.read(path, checkpoint)
    if path.name.lower().endswith(torchvision.SUFFIXES):
        return torchvision.read(torchvision.load(path), path, trunk)
    match kind := path.suffix.lower():
        case ".safetensors":
            metadata, arrays = own_format.load(path)
            if own_format.FORMAT in metadata:
                return own_format.unpack(metadata, arrays, path)
            return torchvision.read(arrays, path, trunk)
        case ".caffemodel":
            return caffe.read(path, mean)
        case ".npy":
            return npy.read(path)
    raise UsageError(
        f"{path} {f'is a {kind} file' if kind else 'has no ending'}; accepted are .safetensors, PyTorch's .pth, "
        ".pth.tar, .pt, .ckpt and .bin, Caffe's .caffemodel, bvlc_alexnet.npy and the workdir of a run. Other files "
        "may run code when they are loaded, or do not describe their layout. Open the file in the program that wrote "
        "it, and save the weights with safetensors.torch.save_file(model.state_dict(), FILE)."
    )


def check_there(path: str | Path) -> str | Path:
    """Returns the path, or the address. Raises UsageError if it does not exist."""
    if stores.is_address(path):
        if not stores.exists(stores.check_address(str(path), "the path of the weights")):
            raise UsageError(f"{path} does not exist. Give the address of a file of weights, or of a run's workdir.")
        return path
    path = local(path, "the path of the weights")
    if not path.exists():
        raise UsageError(f"{path} does not exist. Give the path of a file of weights, or of a run's workdir.")
    return path


def write(weights: Weights, path: str | Path) -> None:
    """Writes weights as our .safetensors file, completely or not at all.

    Raises:
      UsageError: if path does not end in .safetensors, or its folder does not exist.
    """
    own_format.write(weights, _checked(path))


def convert(
    source: str | Path,
    dest: str | Path,
    mean: str | Path | None = None,
    layout: Literal["alexnet_jax", "torchvision"] = "alexnet_jax",
) -> Weights:
    """Reads weights and writes them to a .safetensors file; arguments and errors as in read and write.

    Args:
      source, mean: as in read.
      dest: the file to write.
      layout: "alexnet_jax" for our own file; "torchvision" for a state dict of torchvision's alexnet, which only a
        network of that architecture (TORCHVISION) can give.
    """
    dest = _checked(dest)
    weights = read(source, mean)
    if layout == "torchvision":
        torchvision.write(weights, dest)
    else:
        own_format.write(weights, dest)
    return weights


def _checked(dest):
    dest = local(dest, "the file to write")
    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} cannot be written: accepted is a name that ends in .safetensors. Give such a name.")
    if not dest.parent.is_dir():
        raise UsageError(
            f"{dest} cannot be written: the folder {dest.parent} does not exist. Create it, or give another path."
        )
    return dest
