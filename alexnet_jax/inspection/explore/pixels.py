"""Which pixels matter for a class: the gradient, and what happens when a part of the image is covered."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.errors import UsageError
from alexnet_jax.inspection.explore import forward
from alexnet_jax.inspection.explore.forward import WhatIf
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training import augment

PLACES = 12  # about so many places of the patch in a row
BATCH = 24  # covered crops at a time, so that the activations of PAPER need 200 MB at most


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """Which pixels of a crop matter for one class.

    Attributes:
      target: number of the class.
      gradient: (H, W) float32, the largest of the absolute derivatives of the class's logit by the three colours.
      covered: (R, C) float32, the probability of the class when a patch of the crop has the mean colour.
      whole: the probability when nothing is covered.
      patch: side of the patch, pixels.
      starts: (R,) the first row of each patch; the columns are the same, because crops are square.
    """

    target: int
    gradient: np.ndarray
    covered: np.ndarray
    whole: float
    patch: int
    starts: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """(H, W) float64: for each pixel, the mean loss of probability over all patches that cover it."""
        side = len(self.gradient)
        total, count = np.zeros((side, side)), np.zeros((side, side))
        for r, top in enumerate(self.starts):
            for c, left in enumerate(self.starts):
                where = np.s_[top : top + self.patch, left : left + self.patch]
                total[where] += self.whole - self.covered[r, c]
                count[where] += 1
        return total / np.maximum(count, 1)


def pixels(weights: Weights, image: np.ndarray, what_if: WhatIf = WhatIf(), target: int | None = None) -> Pixels:  # noqa: B008 - frozen
    """Which pixels matter for a class, by gradient and by covering.

    Gradient: d logit / d pixel, the largest absolute value over the colours. Covering: a square patch of the mean
    colour, which is 0 for the first layer, is moved over the crop; where the probability falls, the network needs the
    pixels.

    Args:
      weights, image, what_if: as in forward.look.
      target: number of the class; None for the likeliest.

    Raises:
      UsageError: as forward.look; or if there is no such class.

    Source: not in the paper; Zeiler and Fergus (2014) for covering, Simonyan et al. (2013) for the gradient.
    """
    architecture, params = forward.changed(weights, image, what_if)
    size, classes = architecture[0].size, architecture[-1].units
    if target is not None and not 0 <= target < classes:
        raise UsageError(f"target is {target}; accepted are the classes from 0 to {classes - 1}.")
    margin = len(image) - size
    corner = (margin // 2,) * 2 if what_if.corner is None else what_if.corner
    how = {"network": AlexNet(architecture), "train": what_if.dropout is not None}
    key = jax.random.key(what_if.dropout or 0)
    crop = _crop(
        image, weights.mean_image, np.asarray(corner, np.int32), forward.colour_shift(weights, what_if),
        size=size, mean_at=weights.mean_at,
    )  # fmt: skip
    starts, patch = places(size)
    corners = np.stack(np.meshgrid(starts, starts, indexing="ij"), -1).reshape(-1, 2)  # (R C, 2)
    # The first one lies outside: nothing is covered.
    asked = np.concatenate([[[size, size]], corners]).astype(np.int32)
    filled = np.concatenate([asked, np.repeat(asked[:1], -len(asked) % BATCH, 0)])
    parts = [
        np.asarray(_covered(params, crop, part, key, patch=patch, **how))
        for part in filled.reshape(-1, BATCH, 2)
    ]  # fmt: skip
    probabilities = np.concatenate(parts)[: len(asked)]  # (1 + R C, K)
    target = int(probabilities[0].argmax()) if target is None else target
    return Pixels(
        target=target,
        gradient=np.asarray(_gradient(params, crop, target, key, **how)),
        covered=probabilities[1:, target].reshape(len(starts), len(starts)),
        whole=float(probabilities[0, target]),
        patch=patch,
        starts=starts,
    )


def places(size: int) -> tuple[np.ndarray, int]:
    """The first pixels of the patches along a side of `size` pixels, and the side of a patch, about a fifth of it."""
    patch = max(1, round(size / 5))
    return np.unique(np.round(np.linspace(0, size - patch, min(PLACES, size - patch + 1))).astype(int)), patch


@functools.partial(jax.jit, static_argnames=("size", "mean_at"))
def _crop(image, mean_image, corner, shift, *, size, mean_at):
    of_image, of_crop = augment.means(mean_image, size, mean_at)
    return jax.lax.dynamic_slice(image - of_image, (*corner, 0), (size, size, 3)) - of_crop + shift


@functools.partial(jax.jit, static_argnames=("network", "train", "patch"))
def _covered(params, crop, corners, key, *, network, train, patch):
    """(B, 2) corners -> (B, K) probabilities."""
    places = jnp.arange(len(crop))

    def cover(corner):
        rows, columns = ((start <= places) & (places < start + patch) for start in corner)
        return jnp.where((rows[:, None] & columns[None])[..., None], 0, crop)

    return jax.nn.softmax(_logits(params, jax.vmap(cover)(corners), key, network, train))


@functools.partial(jax.jit, static_argnames=("network", "train"))
def _gradient(params, crop, target, key, *, network, train):
    logit = jax.grad(lambda crop: _logits(params, crop[None], key, network, train)[0, target])
    return jnp.abs(logit(crop)).max(-1)  # (H, W)


def _logits(params, crops, key, network, train):
    index = jnp.zeros(len(crops), jnp.int32)
    return network.apply({"params": params}, crops, train=train, index=index, rngs={"dropout": key} if train else None)
