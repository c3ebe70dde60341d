"""One step: against the formula of its update, on every mesh, and by what its random numbers are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, batch_of, place, put, recipe_of, statistics_of

from alexnet_jax import LENET5, QUICKSTART, AlexNet, Dense, Dropout, Flatten, Input
from alexnet_jax.evaluation.errors import predict
from alexnet_jax.network import networks
from alexnet_jax.training import augment, schedule
from alexnet_jax.training.setup import recipe_from_config
from alexnet_jax.training.step import (
    TrainState,
    augmented,
    cross_entropy,
    gradient_norm,
    init_state,
    train_step,
)
from configs import alexnet

TORCHVISION_SMALL = (Input(8, scale=(0.1, 0.2, 0.3)), Flatten(), Dense(5, std=0.1))


@pytest.mark.parametrize("rule", ["decoupled", "paper"])
def test_a_step_follows_the_formula_of_the_update(rule):
    without_noise = tuple(layer for layer in TINY if not isinstance(layer, Dropout))
    recipe = recipe_of(place(), without_noise, update_rule=rule, crop=False, flip=False, pca_std=0.0)
    state = jax.device_get(init_state(recipe=recipe))
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
        state, metrics = train_step(state, put(batch, recipe), statistics_of(), recipe=recipe)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
        v = jax.tree.map(lambda v, w, g: 0.9 * v - inside * 0.01 * w - 0.01 * np.float64(g), v, w, g)
        w = jax.tree.map(lambda w, v: w + v - 0.01 * outside * w, w, v)
    for want, got in zip(jax.tree.leaves(w), jax.tree.leaves(jax.device_get(state.params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)


def test_the_numbers_drawn_depend_on_the_seed_and_the_example_only():
    state = init_state(recipe=recipe_of(place()))
    batch = batch_of(0)

    def loss_of(recipe, batch):
        copy = jax.tree.map(jnp.copy, state)
        return float(train_step(copy, put(batch, recipe), statistics_of(), recipe=recipe)[1]["loss"])

    order = np.random.default_rng(1).permutation(8)
    shuffled = {name: a[order] for name, a in batch.items()}
    assert loss_of(recipe_of(place()), shuffled) == pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-6)
    renamed = batch | {"index": batch["index"] + 1}
    assert loss_of(recipe_of(place()), renamed) != pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-4)
    assert loss_of(recipe_of(place(), seed=4), batch) != pytest.approx(loss_of(recipe_of(place()), batch), rel=1e-4)


def test_the_rate_grows_with_the_batch_warms_up_and_follows_the_schedule():
    config = alexnet.get_config()
    config.update(architecture="QUICKSTART", batch_size=64, rate_batch_size=16, learning_rate=0.01, warmup_epochs=0.5)
    recipe = recipe_from_config(config, 10, 640, place(architecture=QUICKSTART))
    assert recipe.warmup_steps == 5
    state = init_state(recipe=recipe)
    rates = [float(recipe.rate(state.replace(step=jnp.int32(step)))) for step in (0, 1, 4, 5, 100)]
    assert rates == pytest.approx([0.008, 0.016, 0.04, 0.04, 0.04])
    dropped = state.replace(step=jnp.int32(100), schedule=state.schedule.replace(scale=jnp.float32(0.1)))
    assert float(recipe.rate(dropped)) == pytest.approx(0.004)


def test_a_schedule_sets_the_rates_of_layers_and_lets_one_stand_still():
    recipe = recipe_of(place(), schedule=((1, "*", 1e-3), (1, "conv1", 1e-4), (2, "conv1", 0.0), (3, "*", 1e-5)))
    state = init_state(recipe=recipe)
    rates, moved = [], []
    for step in range(4):
        before = jax.device_get(state.params)
        rates.append([float(recipe.rate(state, layer)) for layer in ("*", "conv1", "fc5")])
        state, metrics = train_step(state, put(batch_of(step), recipe), statistics_of(), recipe=recipe)
        assert float(metrics["learning_rate"]) == pytest.approx(rates[-1][0])
        after = jax.device_get(state.params)
        moved.append(
            [not np.array_equal(before[layer]["kernel"], after[layer]["kernel"]) for layer in ("conv1", "fc5")]
        )
        moved[-1].append(not np.array_equal(before["conv1"]["bias"], after["conv1"]["bias"]))
    np.testing.assert_allclose(rates, [[0.01] * 3, [1e-3, 1e-4, 1e-3], [1e-3, 0, 1e-3], [1e-5, 0, 1e-5]], rtol=1e-6)
    assert moved == [[True] * 3, [True] * 3, [False, True, False], [False, True, False]]


@pytest.mark.parametrize(
    ("variant", "layer", "rates"),
    [  # after 1, 6, 8, 10, 23, 40, 45 and 80 epochs
        ("six_conv_pretrain", "*", [1e-2, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]),
        ("six_conv_finetune", "*", [1e-3, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]),
        ("six_conv_finetune", "conv1", [1e-4, 1e-5, 0, 0, 0, 0, 0, 0]),
        ("six_conv_finetune", "fc9", [1e-2, 1e-2, 1e-2, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]),
        ("source2012", "fc8", [1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-5]),
    ],
)
def test_the_2012_program_s_rates_by_hand(variant, layer, rates):
    config = alexnet.get_config(variant)
    recipe = recipe_from_config(config, 10, 1280, place(architecture=networks.NAMED[config.architecture]))
    plan = schedule.initial(10)
    for epoch, wanted in zip((1, 6, 8, 10, 23, 40, 45, 80), rates, strict=True):
        state = TrainState(step=jnp.int32(10 * epoch), params={}, opt_state=(), schedule=plan)
        assert float(recipe.rate(state, layer)) == pytest.approx(wanted)


def test_a_schedule_is_told_in_epochs_and_its_rates_grow_with_the_batch():
    config = alexnet.get_config("source2012")
    config.update(architecture="QUICKSTART", batch_size=64, rate_batch_size=16)
    recipe = recipe_from_config(config, 10, 640, place(architecture=QUICKSTART))
    assert recipe.schedule[0] == (250, "*", 0.004)
    assert recipe.schedule[3] == (720, "conv1", 0.0)
    assert recipe.pca_steps == 670


def test_the_rubbish_class_joins_in_the_loss_and_nowhere_else():
    logits, labels = jnp.array([[-1.0, -2.0], [-9.0, -3.0]]), jnp.array([0, 0])
    want = [1 + np.log(np.exp(-1) + np.exp(-2) + np.exp(-0.5)), 9 + np.log(np.exp(-9) + np.exp(-3) + np.exp(-0.5))]
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.5), want, rtol=1e-6)
    coded = (Input(12), Flatten(), Dense(84), LENET5[-1])
    recipe, batch = recipe_of(place(architecture=coded), coded, crop=False, flip=False, pca_std=0.0), batch_of(0)
    state = init_state(recipe=recipe)
    images = (batch["image"].astype(np.float32) - 127.5)[:, 2:14, 2:14]
    logits = AlexNet(coded).apply({"params": state.params}, images)
    _, metrics = train_step(state, put(batch, recipe), statistics_of(), recipe=recipe)
    assert float(metrics["loss"]) == pytest.approx(float(cross_entropy(logits, batch["label"], 1.0).mean()), rel=1e-5)
    assert float(metrics["loss"]) != pytest.approx(float(cross_entropy(logits, batch["label"]).mean()), rel=1e-3)


def test_the_paper_s_rate_is_the_same_for_every_batch_unless_told_otherwise():
    config = alexnet.get_config()
    config.update(architecture="QUICKSTART", batch_size=64)
    recipe = recipe_from_config(config, 10, 640, place(architecture=QUICKSTART))
    assert (recipe.learning_rate, recipe.warmup_steps) == (0.01, 0)


def test_the_rate_warms_up_and_falls_to_zero_over_shares_of_the_run():
    config = alexnet.get_config()
    config.update(architecture="QUICKSTART", batch_size=64, num_steps=20, cooldown=0.25, warmup_epochs=0.2)
    recipe = recipe_from_config(config, 10, 640, place(architecture=QUICKSTART))
    assert [float(recipe.ramp(step)) for step in (0, 1, 2, 15, 16, 19)] == pytest.approx([0.5, 1, 1, 1, 0.8, 0.2])
    config.update(num_steps=0, num_epochs=3)
    assert float(recipe_from_config(config, 10, 640, place(architecture=QUICKSTART)).ramp(29)) == pytest.approx(1 / 8)


def test_a_step_sees_crops_of_random_size_if_the_area_varies():
    recipe = recipe_of(place(), min_area=0.3, pca_std=0.0, flip=False)
    batch, size = batch_of(0), recipe.network.architecture[0].size
    seen = augmented(recipe, batch, statistics_of(), 0)
    assert seen.shape == (8, size, size, 3)
    key = jax.random.split(jax.random.fold_in(recipe.key("augment"), batch["index"][3]), 3)[0]
    image = batch["image"][3].astype(np.float32) - statistics_of().mean_image
    expected = augment.random_resized_crop(key, image, size, 0.3)
    np.testing.assert_allclose(seen[3], expected, rtol=1e-4, atol=1e-4)


def test_the_reported_rate_and_gradient_are_those_of_the_step():
    recipe = recipe_of(place(), warmup_steps=4)
    state = init_state(recipe=recipe)
    before = jax.device_get(state.params)
    state, metrics = train_step(state, put(batch_of(0), recipe), statistics_of(), recipe=recipe)
    assert float(metrics["learning_rate"]) == pytest.approx(0.0025)
    # The first velocity is the rate times the gradient, and the weights decay beside it.
    gradients = jax.tree.map(
        lambda after, w: (w * (1 - 0.0025 * 5e-4 / 0.1) - after) / 0.0025, jax.device_get(state.params), before
    )
    squares = sum(np.square(g, dtype=np.float64).sum(tuple(range(1, g.ndim))) for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics["gradient_squares"], squares, rtol=1e-2)
    norm = float(gradient_norm(metrics["gradient_squares"]))
    assert norm == pytest.approx(np.sqrt(np.sum(metrics["gradient_squares"])), rel=1e-6)


@pytest.mark.parametrize("architecture", [TINY, LENET5, TORCHVISION_SMALL], ids=["TINY", "LENET5", "scaled colours"])
def test_parameters_are_float32_and_ranks_are_explicit_whatever_jax_is_told(architecture):
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        recipe = recipe_of(place(architecture=architecture), architecture, pca_steps=5)
        state, size = init_state(recipe=recipe), architecture[0].size + 4
        batch = batch_of(0) | {"image": np.full((8, size, size, 3), 7, np.uint8)}
        state, metrics = train_step(state, put(batch, recipe), statistics_of(size), recipe=recipe)
        mean = np.zeros((size, size, 3), np.float32)
        for views in (1, 10):
            predict(state.params, batch["image"], mean, network=AlexNet(architecture), views=views)
            predict(state.params, batch["image"], mean, network=AlexNet(architecture), views=views, mean_at="center")
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert np.isfinite(float(metrics["loss"]))
