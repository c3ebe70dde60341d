"""A network that trains in milliseconds, its recipe and its batches."""

import dataclasses

import jax
import numpy as np
import pytest

from alexnet_jax import LRN, AlexNet, Conv, Dense, Dropout, Flatten, Input, MaxPool, ReLU
from alexnet_jax.network import towers
from alexnet_jax.training.augment import ColorPCA
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import init_state, train_step

TINY = (
    Input(12, towers=2),
    Conv(8, 3, bias=0.1, std=0.1),
    ReLU(),
    LRN(alpha=1e-2),
    MaxPool(3, 2),
    Conv(8, 3, sees="all", std=0.1),
    ReLU(),
    Flatten(),
    Dense(16, std=0.1),
    ReLU(),
    Dropout(0.5),
    Dense(16, bias=0.1, std=0.1),
    ReLU(),
    Dropout(0.5, rescale=True),
    Dense(5, std=0.1),
)


def place(devices=1, tower=1, kind="towers", architecture=TINY):
    """A placement on the first devices; skips the test where there are too few."""
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices; here are {len(jax.devices())}")
    return towers.place(architecture, kind, tower, jax.devices()[:devices])


def recipe_of(placement, architecture=TINY, dtype=np.float32, **changes):
    """The paper's recipe for a network."""
    recipe = Recipe(
        network=AlexNet(architecture, dtype=dtype, placement=placement),
        seed=3,
        mean_at="crop",
        crop=True,
        flip=True,
        min_area=1.0,
        group=1,
        pca_std=0.1,
        pca_scale="eigenvalue",
        pca_rescale=False,
        pca_steps=0,
        accumulate=1,
        learning_rate=0.01,
        warmup_steps=0,
        end=1,
        cooldown_steps=0,
        schedule=(),
        momentum=0.9,
        weight_decay=5e-4,
        weight_decays=(),
        update_rule="decoupled",
        plateau=(("factor", 0.1), ("patience", 2), ("patience_steps", 1), ("drops", 3), ("threshold", 1e-3)),
    )
    return dataclasses.replace(recipe, **changes)


def batch_of(step, size=16, classes=5, n=8):
    """Random images and labels."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "label": rng.integers(0, classes, n).astype(np.int32),
        "index": (step * n + np.arange(n)).astype(np.uint32),
    }


def put(batch, recipe):
    """A batch on the devices of a recipe."""
    return recipe.network.placement.put(batch, len(batch["label"]))


def statistics_of(size=16):
    """Made-up statistics of images of a size."""
    pca = ColorPCA(np.eye(3, dtype=np.float32), np.array([0.2, 0.02, 0.005], np.float32))
    return Statistics(np.full((size, size, 3), 127.5, np.float32), pca)


def run(recipe, start=0, stop=5, state=None):
    """The state and the losses after some steps."""
    architecture = recipe.network.architecture
    size, classes = architecture[0].size + 4, architecture[-1].units
    state, losses = init_state(recipe=recipe) if state is None else state, []
    for step in range(start, stop):
        batch = put(batch_of(step, size, classes), recipe)
        state, metrics = train_step(state, batch, statistics_of(size), recipe=recipe)
        losses.append(float(metrics["loss"]))
    return state, losses
