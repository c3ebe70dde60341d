"""One image through a network, with every layer's output kept, and with changes: "what if" (paper, section 3)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.errors import UsageError
from alexnet_jax.network import architectures
from alexnet_jax.network.architectures import LRN, WEIGHTED, Architecture, layer_names, towers_of
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training import augment


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """Changes of the network or of the image. The default changes nothing.

    Attributes:
      towers_off: numbers of towers, from 0. A tower that is off has maps and neurons of 0 in every layer but the last.
      lrn: False leaves out local response normalization.
      dropout: a seed, to draw dropout once, as in training; None computes as in a test.
      colours: a seed, to draw colours once (paper, section 4.1, std 0.1); None leaves the colours.
      corner: (top, left) corner of the crop in pixels, for the single view; None for the central crop.
    """

    towers_off: tuple[int, ...] = ()
    lrn: bool = True
    dropout: int | None = None
    colours: int | None = None
    corner: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """What a network computes for one crop.

    Attributes:
      architecture: tuple of layers that computed it.
      crop: (H, W, 3) float32, what the first layer sees, with the mean added again: pixels about 0..255.
      corner: (top, left) of the crop in the image, pixels.
      outputs: for each layer after the input, by name: (T, ..., C) float32, one array for each tower.
      probabilities: (K,) float32.
    """

    architecture: Architecture
    crop: np.ndarray
    corner: tuple[int, int]
    outputs: dict[str, np.ndarray]
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """What a network says of each view of an image: `crops` (V, H, W, 3) and `probabilities` (V, K), both float32.

    The views are those of augment.ten_crop, or the first five of them. As in a test, the network's answer is the mean
    of their probabilities.
    """

    crops: np.ndarray
    probabilities: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(K,) float32: the average of the views' probabilities."""
        return self.probabilities.mean(0)

    @property
    def others(self) -> np.ndarray:
        """Indices of the views whose likeliest class is not the likeliest class of the mean."""
        return np.flatnonzero(self.probabilities.argmax(1) != self.mean.argmax())


def on_device(weights: Weights) -> Weights:
    """The same weights, with their arrays on JAX's default device, so that they are not sent for every image."""
    return dataclasses.replace(
        weights, params=jax.device_put(weights.params), mean_image=jax.device_put(weights.mean_image)
    )


def see(weights: Weights, image: np.ndarray, what_if: WhatIf = WhatIf()) -> tuple[Look, Views]:
    """Computes one crop of an image, of which every layer's output is kept, and all views of the image.

    Args:
      weights: the network; `on_device` makes repeated calls faster.
      image: (S, S, 3) uint8, the size of the weights' mean image.
      what_if: changes.

    Returns:
      A Look at the crop. And Views: as many as the weights accept, ten or five (or one); `what_if.corner` does not
      change them, because they have corners of their own.

    Raises:
      UsageError: if the image has another shape, or a change does not fit the network (see `check`).
      FloatingPointError: if a probability is not finite.

    Source: paper, sections 3 and 4.
    """
    architecture, params = changed(weights, image, what_if)
    margin = len(image) - architecture[0].size
    corner = (margin // 2,) * 2 if what_if.corner is None else what_if.corner
    shown, outputs, probabilities = jax.device_get(
        _see(
            params,
            image,
            weights.mean_image,
            np.asarray(corner, np.int32),
            colour_shift(weights, what_if),
            _key(what_if),
            network=AlexNet(architecture),
            mean_at=weights.mean_at,
            train=what_if.dropout is not None,
            count=weights.views,
        )
    )
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(
            f"the network's answers are not finite numbers ({weights.source}): its weights are too large, or damaged."
        )
    corner = tuple(map(int, corner))
    return Look(architecture, shown[0], corner, outputs, probabilities[0]), Views(shown[1:], probabilities[1:])


def look(weights: Weights, image: np.ndarray, what_if: WhatIf = WhatIf()) -> Look:
    """The first result of `see`: one crop of an image, with every layer's output."""
    return see(weights, image, what_if)[0]


def views(weights: Weights, image: np.ndarray, what_if: WhatIf = WhatIf()) -> Views:
    """The second result of `see`: the probabilities of each view of an image (paper, section 4.1)."""
    return see(weights, image, what_if)[1]


def changed(weights: Weights, image: np.ndarray, what_if: WhatIf):
    """The architecture and the parameters with the changes of `what_if`, after `check`."""
    check(weights, image, what_if)
    architecture = weights.architecture
    if not what_if.lrn and any(isinstance(layer, LRN) for layer in architecture):
        architecture = architectures.without(architecture, LRN)
    return architecture, switch_off(weights.params, weights.architecture, what_if.towers_off)


def check(weights: Weights, image: np.ndarray, what_if: WhatIf) -> None:
    """Raises UsageError unless the image and the changes fit the network; the message says what is accepted."""
    accepted = tuple(np.shape(weights.mean_image))
    if np.shape(image) != accepted:
        raise UsageError(
            f"the image has the shape {np.shape(image)}; accepted is {accepted}. Rescale its shorter side to "
            f"{accepted[0]} pixels and cut out the centre."
        )
    count = towers_of(weights.architecture)
    if not set(what_if.towers_off) <= set(range(count)) or (what_if.towers_off and count == 1):
        raise UsageError(
            f"towers_off is {what_if.towers_off}; this network has {count} tower(s)"
            + (f", with the numbers 0 to {count - 1}." if count > 1 else ", which cannot be switched off.")
        )
    if what_if.colours is not None and weights.pca is None:
        raise UsageError("these weights have no colour PCA, so that colours cannot be drawn. Leave the colours out.")
    margin = accepted[0] - weights.architecture[0].size
    if what_if.corner is not None and not all(0 <= offset <= margin for offset in what_if.corner):
        raise UsageError(f"corner is {what_if.corner}; accepted are two numbers of pixels from 0 to {margin}.")


def switch_off(params: dict, architecture: Architecture, off: tuple[int, ...]) -> dict:
    """Parameters with weights and biases of 0 for some towers, in all layers but the last.

    The maps and neurons of these towers are then 0, because ReLU, normalization and pooling keep 0. The last layer is
    unchanged: each of its neurons is a class, and it sees the neurons of the other towers.

    Args:
      params: {layer: {"kernel": (T, ...), "bias": (T, ...)}}.
      architecture: tuple of layers.
      off: numbers of towers, from 0.
    """
    if not off:
        return params
    names = layer_names(architecture)
    last = [name for name, layer in zip(names, architecture, strict=True) if isinstance(layer, WEIGHTED)][-1]
    works = np.array([tower not in off for tower in range(towers_of(architecture))])
    return _zero(params, works, last=last)


@functools.partial(jax.jit, static_argnames="last")
def _zero(params, works, *, last):
    def zero(array):
        return jnp.where(works.reshape(-1, *[1] * (array.ndim - 1)), array, 0)

    return {name: arrays if name == last else jax.tree.map(zero, arrays) for name, arrays in params.items()}


def colour_shift(weights: Weights, what_if: WhatIf) -> np.ndarray:
    """(3,) float32: the colour that `what_if.colours` adds to each pixel, in 0..255; 0 if it is None."""
    if what_if.colours is None:
        return np.zeros(3, np.float32)
    return np.asarray(_shift(jax.random.key(what_if.colours), weights.pca))


@jax.jit
def _shift(key, pca):
    return augment.pca_jitter(key, jnp.zeros((1, 1, 3)), pca)[0, 0]


def _key(what_if):
    return jax.random.key(what_if.dropout or 0)


@functools.partial(jax.jit, static_argnames=("network", "mean_at", "train", "count"))
def _see(params, image, mean_image, corner, shift, key, *, network, mean_at, train, count):
    """The crop and the views are one batch, so that only one program is compiled."""
    size, towers = network.architecture[0].size, network.architecture[0].towers
    of_image, of_crop = augment.means(mean_image, size, mean_at)

    def cut(pixels):
        one = jax.lax.dynamic_slice(pixels, (*corner, 0), (size, size, 3))[None]
        own = augment.center_crop(pixels, size)[None] if count == 1 else augment.ten_crop(pixels, size)[:count]
        return jnp.concatenate([one, own])  # (1 + V, size, size, 3)

    shown = cut(image.astype(jnp.float32)) + shift
    crops = cut(image - of_image) - of_crop + shift
    # All get the same dropout mask, because they are views of one example.
    index, rngs = jnp.zeros(len(crops), jnp.int32), {"dropout": key} if train else None
    logits, sown = network.apply(
        {"params": params}, crops, train=train, index=index, rngs=rngs, mutable="intermediates"
    )
    outputs = {
        name.removesuffix("_output"): jnp.stack(jnp.split(output[0], towers, -1))  # (T, ..., C/T)
        for name, (output,) in sown["intermediates"].items()
    }
    return shown, outputs, jax.nn.softmax(logits)
