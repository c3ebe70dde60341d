"""A subject for the explorer's tests; as a program, its page: `python tests/explorer.py` prints the address."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny import TINY

from alexnet_jax import AlexNet, ColorPCA, convert
from alexnet_jax.inspection.explore import subject

SIDE = 16
NAMES = ("ant", "bee", "cat", "dog", "emu")
PCA = ColorPCA(np.eye(3, dtype=np.float32), np.array([0.2, 0.02, 0.005], np.float32))


@functools.cache
def params_of(architecture):
    first = architecture[0]
    init = jax.jit(AlexNet(architecture).init)
    return jax.device_get(init(jax.random.key(1), jnp.zeros((1, first.size, first.size, 3)))["params"])


def weights_of(architecture=TINY, side=SIDE, **changes):
    """Random weights, with a mean image that differs from pixel to pixel."""
    mean = np.random.default_rng(3).uniform(100, 150, (side, side, 3)).astype(np.float32)
    facts = {"pca": PCA, "mean_at": "crop", "views": 10, "classes": "classes of tests", "source": "tests"}
    return convert.Weights(architecture, jax.tree.map(np.array, params_of(architecture)), mean, **{**facts, **changes})


def image_of(side=SIDE, seed=0):
    """A random image."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def subject_of():
    """TINY with three test images."""
    made = subject.prepare(weights_of(class_names=NAMES))
    return dataclasses.replace(made, tests=np.stack([image_of(seed=k) for k in range(3)]), labels=(0, 1, 2))


if __name__ == "__main__":
    from alexnet_jax.inspection.explore import page

    explored = subject_of()
    page.warm_up(explored)
    page.serve(explored)
