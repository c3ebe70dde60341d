"""One step: against the formula of its update, on every mesh, and by what its random numbers are drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import LRN, AlexNet, Conv, Dense, Dropout, Flatten, Input, MaxPool, ReLU, towers, train
from alexnet_jax.augment import ColorPCA
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.evaluate import put

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
    Dense(5, std=0.1),
)


def tiny_recipe(data=1, tower=1, architecture=TINY, form="decoupled", **changes):
    recipe = train.Recipe(
        network=AlexNet(architecture, devices=tower),
        mesh=towers.make_mesh(tower, jax.local_devices()[: data * tower]),
        seed=3,
        crop=True,
        flip=True,
        pca_std=0.1,
        pca_scale="eigenvalue",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        weight_decay_form=form,
        plateau=(("factor", 0.1), ("patience", 2), ("drops", 3), ("threshold", 1e-3)),
    )
    return dataclasses.replace(recipe, **changes)


def tiny_batch(step, n=8):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 5, n).astype(np.int32),
        "index": (step * n + np.arange(n)).astype(np.uint32),
    }


STATISTICS = Statistics(np.full((16, 16, 3), 127.5, np.float32), ColorPCA(np.eye(3), np.array([0.2, 0.02, 0.005])))


def run_tiny(recipe, steps=5):
    state, losses = train.init_state(recipe=recipe), []
    for step in range(steps):
        batch = put(tiny_batch(step), recipe.mesh)
        state, metrics = train.train_step(state, batch, STATISTICS, recipe=recipe)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.mark.parametrize("form", ["decoupled", "paper"])
def test_a_step_follows_the_formula_of_the_update(form):
    without_noise = tuple(layer for layer in TINY if not isinstance(layer, Dropout))
    recipe = tiny_recipe(architecture=without_noise, form=form, crop=False, flip=False, pca_std=0.0)
    state = jax.device_get(train.init_state(recipe=recipe))
    w = jax.tree.map(np.float64, state.params)
    v = jax.tree.map(np.zeros_like, w)
    inside, outside = (5e-4, 0.0) if form == "paper" else (0.0, 5e-4 / (1 - 0.9))
    for step in range(4):
        batch = tiny_batch(step)

        def loss(params, batch=batch):
            images = (batch["image"].astype(np.float32) - STATISTICS.mean_image)[:, 2:14, 2:14]
            log_p = jax.nn.log_softmax(AlexNet(without_noise).apply({"params": params}, images))
            return -log_p[jnp.arange(8), batch["label"]].mean()

        value, g = jax.value_and_grad(loss)(jax.tree.map(jnp.float32, w))
        state, metrics = train.train_step(state, put(batch, recipe.mesh), STATISTICS, recipe=recipe)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
        v = jax.tree.map(lambda v, w, g: 0.9 * v - inside * 0.01 * w - 0.01 * np.float64(g), v, w, g)
        w = jax.tree.map(lambda w, v: w + v - 0.01 * outside * w, w, v)
    for want, got in zip(jax.tree.leaves(w), jax.tree.leaves(jax.device_get(state.params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("data", "tower"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_every_mesh_trains_the_same_network(data, tower):
    want, want_losses = run_tiny(tiny_recipe())
    got, losses = run_tiny(tiny_recipe(data, tower))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-3))


def test_the_numbers_drawn_depend_on_the_seed_and_the_example_only():
    state = train.init_state(recipe=tiny_recipe())
    batch = tiny_batch(0)

    def loss_of(recipe, batch):
        copy = jax.tree.map(jnp.copy, state)
        return float(train.train_step(copy, put(batch, recipe.mesh), STATISTICS, recipe=recipe)[1]["loss"])

    order = np.random.default_rng(1).permutation(8)
    shuffled = {name: a[order] for name, a in batch.items()}
    assert loss_of(tiny_recipe(), shuffled) == pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-6)
    renamed = batch | {"index": batch["index"] + 1}
    assert loss_of(tiny_recipe(), renamed) != pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-4)
    assert loss_of(tiny_recipe(seed=4), batch) != pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-4)
