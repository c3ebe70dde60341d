"""Weights without their run, and the file that holds them: safetensors, which cannot run code."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import errors
from alexnet_jax.files import write_whole
from alexnet_jax.network import architectures
from alexnet_jax.network.architectures import Architecture, Layer
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training import augment
from alexnet_jax.training.augment import ColorPCA

FORMAT, VERSION = "alexnet_jax", "1"  # key and value in the metadata of our own files
ILSVRC_2012 = (
    "the 1000 classes of ILSVRC-2012 by sorted WordNet id (n01440764 tench first), as TFDS imagenet2012 has them"
)
_KINDS = {kind.__name__: kind for kind in get_args(Layer)}
_FLOATS = ("F16", "BF16", "F32", "F64")

_predict = jax.jit(errors.predict, static_argnames=("network", "views", "mean_at"))


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A network with its weights, and everything that is needed to use it.

    Attributes:
      architecture: tuple of layers.
      params: {layer: {"kernel": float32 array, "bias": ...}}, towers first, as AlexNet has it.
      mean_image: (S, S, 3) float32, pixels in 0..255; images must have the same size.
      pca: ColorPCA of the training set, or None if the source has none.
      mean_at: as in augment.means.
      views: the largest number of views for a test, as in errors.predict; 5 if a mirrored image may have another
        class.
      classes: a sentence about the order of the classes.
      source: what the weights were converted from.
      class_names: the names of the K classes in their order, or None if the source does not have them.
    """

    architecture: Architecture
    params: dict[str, dict[str, np.ndarray]]
    mean_image: np.ndarray
    pca: ColorPCA | None
    mean_at: augment.MeanAt
    views: int
    classes: str
    source: str
    class_names: tuple[str, ...] | None = None

    def predict(self, images, views: int = 1):
        """Class probabilities of images, with the preprocessing that the weights were trained with.

        Args:
          images: (N, S, S, 3), RGB, pixels in 0..255.
          views: as in errors.predict.

        Returns:
          (N, K) float32.

        Raises:
          UsageError: if the images do not have the mean image's size.
        """
        if np.ndim(images) != 4 or np.shape(images)[1:] != self.mean_image.shape:
            accepted = ", ".join(map(str, self.mean_image.shape))
            raise UsageError(
                f"images have shape {np.shape(images)}; accepted is (N, {accepted}). Rescale the shorter side to "
                f"{len(self.mean_image)} pixels and cut out the centre."
            )
        network = AlexNet(self.architecture)
        return _predict(self.params, images, self.mean_image, network=network, views=views, mean_at=self.mean_at)

    @property
    def digest(self) -> str:
        """A short text (a hash), which is equal for equal networks, weights and means."""
        digest = hashlib.sha256(f"{to_json(self.architecture)} {self.mean_at} {self.views}".encode())
        for name, array in sorted({**_flat(self.params), "mean_image": self.mean_image}.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def preprocessing(self) -> str:
        """A sentence that says which images predict takes, and what it does with them."""
        side, first, colour = len(self.mean_image), self.architecture[0], self.mean_image[0, 0]
        if (self.mean_image == colour).all():
            mean = "the colour " + ", ".join(f"{name} {value:g}" for name, value in zip("RGB", colour, strict=True))
        else:
            mean = "the mean image at the crop's place" if self.mean_at == "crop" else "the mean image's central part"
        scale = "" if first.scale == 1 else ", times " + ", ".join(f"{s:.6g}" for s in np.ravel(first.scale))
        return (
            f"RGB pixels in 0..255, the shorter side rescaled to {side} and the central {side} x {side} cut out; "
            f"the network sees {first.size} x {first.size} of it, minus {mean}{scale}"
        )


def classes_of(architecture: Architecture) -> str:
    """A sentence about the order of the classes, for files without one; 1000 classes count as those of ILSVRC-2012."""
    count = architecture[-1].units
    return ILSVRC_2012 if count == 1000 else f"{count} classes, in the order of the training that made the weights"


def expected(architecture: Architecture) -> dict:
    """The tree of an architecture's parameters, with a jax.ShapeDtypeStruct for each array."""
    first = architecture[0]
    images = jax.ShapeDtypeStruct((1, first.size, first.size, first.channels), np.float32)
    return jax.eval_shape(AlexNet(architecture).init, jax.random.key(0), images)["params"]


def check(params: dict, like: dict, path: Path) -> None:
    """Raises UsageError unless parameters have the expected names and shapes; the message names the first wrong one."""
    stored, wanted = _flat(params), _flat(like)
    for name in sorted(stored.keys() | wanted.keys()):
        has, wants = (list(tree[name].shape) if name in tree else "nothing" for tree in (stored, wanted))
        if has != wants:
            raise UsageError(
                f"{path} has {has} for {name}, but its architecture needs {wants}: the file was changed, or written "
                "by another version. Convert the source again."
            )


def check_finite(weights: Weights, path: Path) -> None:
    """Raises UsageError if a number is infinite or not a number; the message names the array."""
    arrays = {**_flat(weights.params), "mean_image": weights.mean_image}
    if weights.pca is not None:
        arrays |= {"eigenvectors": weights.pca.eigenvectors, "eigenvalues": weights.pca.eigenvalues}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            first = np.ravel(array)[~np.isfinite(np.ravel(array))][0]
            raise UsageError(
                f"{path}: {name} has numbers that are not finite in float32, such as {first}. The training diverged, "
                "or the file is damaged. Give an earlier checkpoint, or copy or save the file again."
            )


def write(weights: Weights, path: Path) -> None:
    """Writes our .safetensors file, completely or not at all."""
    arrays = {**_flat(weights.params), "mean_image": weights.mean_image}
    if weights.pca is not None:
        arrays |= {"eigenvectors": weights.pca.eigenvectors, "eigenvalues": weights.pca.eigenvalues}
    metadata = {FORMAT: VERSION, "architecture": to_json(weights.architecture)}
    metadata |= {name: str(getattr(weights, name)) for name in ("mean_at", "views", "classes", "source")}
    if weights.class_names is not None:
        metadata["class_names"] = json.dumps(weights.class_names)
    # In C order, because safetensors writes the bytes in the order in which they are in memory.
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    metadata["digest"] = _digest(metadata, arrays)
    write_whole(path, safetensors.numpy.save(arrays, metadata))


def _digest(metadata, arrays):
    """A hash of everything in our file but itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k != "digest"}, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def load(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns the metadata and the arrays, as float32, of any .safetensors file; UsageError if it is not one."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = list(file.keys())
            for name in names:
                if (kind := file.get_slice(name).get_dtype()) not in _FLOATS:
                    raise UsageError(
                        f"{path}: {name} is of type {kind}; accepted are {', '.join(_FLOATS)}. Save it as one of them."
                    )
            with np.errstate(over="ignore"):  # what is then infinite is refused later
                return file.metadata() or {}, {name: file.get_tensor(name).astype(np.float32) for name in names}
    except safetensors.SafetensorError as error:
        raise UsageError(f"{path} is not a complete .safetensors file ({error}). Copy or save it again.") from error


def unpack(metadata: dict[str, str], arrays: dict[str, np.ndarray], path: Path) -> Weights:
    """Makes Weights from what `load` returns for our own file; UsageError if the parts do not fit together."""
    _check_metadata(metadata, arrays, path)
    try:
        architecture = from_json(metadata["architecture"])
        architectures.check(architecture)
        like = expected(architecture)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UsageError(
            f"{path} has an architecture that is not understood ({error}): the file was changed, or written by a "
            "newer version. Update this program, or convert the source again."
        ) from error
    mean_image = arrays.pop("mean_image", np.zeros(()))
    size = architecture[0].size
    if mean_image.shape != (*mean_image.shape[:1] * 2, 3) or len(mean_image) < size:
        raise UsageError(
            f"{path}: mean_image has the shape {list(mean_image.shape)}; accepted is [S, S, 3] with S of at least "
            f"{size}. Convert the source again."
        )
    pca = tuple(arrays.pop(name) for name in ("eigenvectors", "eigenvalues") if name in arrays)
    if [array.shape for array in pca] not in ([], [(3, 3), (3,)]):
        raise UsageError(
            f"{path}: the colour PCA is not eigenvectors [3, 3] and eigenvalues [3]. Convert the source again."
        )
    params = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        params.setdefault(layer, {})[kind] = array
    check(params, like, path)
    names = _class_names(metadata.get("class_names", "null"), path)
    if names is not None and len(names) != architecture[-1].units:
        raise UsageError(
            f"{path} names {len(names)} classes, but its network has {architecture[-1].units}. Convert the "
            "source again."
        )
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=mean_image,
        pca=ColorPCA(*pca) if pca else None,
        mean_at=metadata["mean_at"],
        views=int(metadata["views"]),
        classes=metadata["classes"],
        source=metadata["source"] + ("" if "digest" in metadata else ", a file without a digest"),
        class_names=names and tuple(names),
    )


def _check_metadata(metadata, arrays, path):
    wanted = {FORMAT, "architecture", "mean_at", "views", "classes", "source"}
    if missing := wanted - metadata.keys():
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))} in its metadata. Convert the source again.")
    if unknown := metadata.keys() - wanted - {"class_names", "digest"}:  # one of them may be the damaged word "digest"
        raise UsageError(
            f"{path} is damaged, or of a newer version: its metadata has {sorted(unknown)}, which this version does "
            "not know. Copy it again, or convert the source."
        )
    if metadata[FORMAT] != VERSION:
        raise UsageError(
            f"{path} is of version {metadata[FORMAT]!r} of our format; accepted is {VERSION!r}. Update this program, "
            "or convert the source again."
        )
    if metadata.get("digest", digest := _digest(metadata, arrays)) != digest:
        raise UsageError(
            f"{path} is damaged: its contents do not fit its digest. Copy it again, or convert the source."
        )
    if metadata["mean_at"] not in get_args(augment.MeanAt):
        raise UsageError(
            f"{path}: mean_at is {metadata['mean_at']!r}; accepted are {get_args(augment.MeanAt)}. "
            "Convert the source again."
        )
    if metadata["views"] not in ("1", "5", "10"):
        raise UsageError(f"{path}: views is {metadata['views']!r}; accepted are 1, 5 and 10. Convert the source again.")


def _class_names(text, path):
    try:
        names = json.loads(text)
        if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            return names
    except (ValueError, RecursionError):
        pass
    raise UsageError(f"{path}: class_names is not a list of texts. Convert the source again.")


def to_json(architecture: Architecture) -> str:
    """An architecture as text: a list of [kind, fields]."""
    return json.dumps([[type(layer).__name__, dataclasses.asdict(layer)] for layer in architecture])


def from_json(text: str) -> Architecture:
    """Returns the architecture that to_json wrote; TypeError or ValueError if it is not one."""
    layers = json.loads(text)
    if not isinstance(layers, list) or not all(isinstance(layer, list) and len(layer) == 2 for layer in layers):
        raise ValueError("accepted is a list of [kind, fields].")
    return tuple(_layer(kind, dict(fields)) for kind, fields in layers)


def _layer(kind, fields):
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{kind!r} is not a layer; accepted are {', '.join(_KINDS)}.")
    names = [field.name for field in dataclasses.fields(_KINDS[kind])]
    if unknown := fields.keys() - set(names):
        raise ValueError(f"{kind} has no field {', '.join(sorted(unknown))}; it has {', '.join(names) or 'none'}.")
    fields = {name: _tuples(value) for name, value in fields.items()}
    hints = get_type_hints(_KINDS[kind])
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{kind}.{name} is {str(value)[:50]!r}; accepted is {hints[name]}.")
    return _KINDS[kind](**fields)


def _fits(value, hint) -> bool:
    """Whether a value from JSON is of a type of our layers: numbers, texts, tuples of them, and unions of these."""
    of = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in of
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple) or (of[-1] is not ... and len(value) != len(of)):
            return False
        return all(_fits(inner, of[0]) for inner in value)
    if of:
        return any(_fits(value, one) for one in of)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30
    return type(value) is hint and (hint is not int or abs(value) < 2**31)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _flat(params):
    return {f"{layer}/{name}": array for layer, arrays in params.items() for name, array in arrays.items()}
