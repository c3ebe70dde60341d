"""One step: against the formula of its update, on every mesh, and by what its random numbers are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, batch_of, place, put, recipe_of, statistics_of

from alexnet_jax import AlexNet, Dropout, train


@pytest.mark.parametrize("rule", ["decoupled", "paper"])
def test_a_step_follows_the_formula_of_the_update(rule):
    without_noise = tuple(layer for layer in TINY if not isinstance(layer, Dropout))
    recipe = recipe_of(place(), without_noise, update_rule=rule, crop=False, flip=False, pca_std=0.0)
    state = jax.device_get(train.init_state(recipe=recipe))
    w = jax.tree.map(np.float64, state.params)
    v = jax.tree.map(np.zeros_like, w)
    inside, outside = (5e-4, 0.0) if rule == "paper" else (0.0, 5e-4 / (1 - 0.9))
    for step in range(4):
        batch = batch_of(step)

        def loss(params, batch=batch):
            images = (batch["image"].astype(np.float32) - statistics_of().mean_image)[:, 2:14, 2:14]
            log_p = jax.nn.log_softmax(AlexNet(without_noise).apply({"params": params}, images))
            return -log_p[jnp.arange(8), batch["label"]].mean()

        value, g = jax.value_and_grad(loss)(jax.tree.map(jnp.float32, w))
        state, metrics = train.train_step(state, put(batch, recipe), statistics_of(), recipe=recipe)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
        v = jax.tree.map(lambda v, w, g: 0.9 * v - inside * 0.01 * w - 0.01 * np.float64(g), v, w, g)
        w = jax.tree.map(lambda w, v: w + v - 0.01 * outside * w, w, v)
    for want, got in zip(jax.tree.leaves(w), jax.tree.leaves(jax.device_get(state.params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)


def test_the_numbers_drawn_depend_on_the_seed_and_the_example_only():
    state = train.init_state(recipe=recipe_of(place()))
    batch = batch_of(0)

    def loss_of(recipe, batch):
        copy = jax.tree.map(jnp.copy, state)
        return float(train.train_step(copy, put(batch, recipe), statistics_of(), recipe=recipe)[1]["loss"])

    order = np.random.default_rng(1).permutation(8)
    shuffled = {name: a[order] for name, a in batch.items()}
    assert loss_of(recipe_of(place()), shuffled) == pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-6)
    renamed = batch | {"index": batch["index"] + 1}
    assert loss_of(recipe_of(place()), renamed) != pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-4)
    assert loss_of(recipe_of(place(), seed=4), batch) != pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-4)
