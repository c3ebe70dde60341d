"""The update rules against their formulas, and the schedule against sequences worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.training.optimizer import RULES, update_rule

MOMENTUM, DECAY = 0.9, 5e-4


def formula(form, w, gradients, rates, decay=DECAY):
    v = np.zeros_like(w)
    for g, rate in zip(gradients, rates, strict=True):
        if form == "paper":
            v = MOMENTUM * v - decay * rate * w - rate * g
            w = w + v
        else:
            v = MOMENTUM * v - rate * g
            w = w + v - rate * decay / (1 - MOMENTUM) * w
    return w


def chain(rule, w, gradients, rates):
    w = jnp.asarray(w, jnp.float32)
    state = rule(rates[0]).init(w)

    @jax.jit
    def step(w, state, g, rate):
        updates, state = rule(rate).update(g, state, w)
        return optax.apply_updates(w, updates), state

    for g, rate in zip(gradients, rates, strict=True):
        w, state = step(w, state, jnp.asarray(g, jnp.float32), jnp.float32(rate))
    return np.asarray(w)


def rule_of(form, decay=DECAY):
    return lambda rate: update_rule(form, rate, momentum=MOMENTUM, weight_decay=decay)


@pytest.mark.parametrize("decay", [DECAY, 0.5])  # the second makes every term of the formula count
@pytest.mark.parametrize("form", ["decoupled", "paper"])
def test_twenty_steps_with_a_change_of_rate_follow_the_formula(form, decay):
    rng = np.random.default_rng(0)
    w, gradients, rates = rng.normal(size=50), rng.normal(size=(20, 50)), [0.01] * 10 + [0.001] * 10
    got = chain(rule_of(form, decay), w, gradients, rates)
    np.testing.assert_allclose(got, formula(form, w, gradients, rates, decay), rtol=1e-5, atol=1e-6)
    other = formula({"paper": "decoupled", "decoupled": "paper"}[form], w, gradients, rates, decay)
    if decay == 0.5:
        assert np.abs(got - other).max() > 1e-3  # the two are told apart


def test_optax_sgd_is_not_the_papers_rule_across_a_change_of_rate():
    w, gradients, rates = np.ones(3), np.ones((20, 3)), [0.01] * 10 + [0.001] * 10
    sgd = chain(lambda rate: optax.sgd(rate, MOMENTUM), w, gradients, rates)
    assert np.abs(sgd - formula("paper", w, gradients, rates, decay=0.0)).max() > 0.02


def test_both_forms_shrink_a_weight_alike_where_only_decay_acts():
    steps = 5000
    w, gradients, rates = np.linspace(-1, 1, 8), np.zeros((steps, 8)), [0.01] * steps
    norms = [np.linalg.norm(chain(rule_of(form), w, gradients, rates)) for form in ("decoupled", "paper")]
    assert norms[0] < 0.8 * np.linalg.norm(w)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'adamw'; accepted are 'decoupled', 'paper', 'source2012', 'caffe', 'lars'"):
        update_rule("adamw", 0.1, momentum=0.9, weight_decay=0.0)


def test_lars_moves_each_kernel_by_a_share_of_its_norm():
    rng = np.random.default_rng(1)
    shapes = {"conv1": {"kernel": (2, 3, 3, 4, 5), "bias": (2, 5)}, "fc2": {"kernel": (2, 7, 3), "bias": (2, 3)}}
    draw = lambda scale: jax.tree.map(lambda s: rng.normal(0, scale, s), shapes, is_leaf=lambda s: isinstance(s, tuple))  # noqa: E731
    w, gradients, rates = draw(0.1), [draw(0.3) for _ in range(6)], [10.0] * 3 + [1.0] * 3
    got = jax.tree.map(jnp.float32, w)
    state = update_rule("lars", 1.0, momentum=MOMENTUM, weight_decay=0.05).init(got)
    v = jax.tree.map(np.zeros_like, w)
    for g, rate in zip(gradients, rates, strict=True):
        rule = update_rule("lars", jnp.float32(rate), momentum=MOMENTUM, weight_decay=0.05)
        updates, state = rule.update(jax.tree.map(jnp.float32, g), state, got)
        got = optax.apply_updates(got, updates)
        for layer in shapes:
            decayed = g[layer]["kernel"] + 0.05 * w[layer]["kernel"]
            ratio = 0.001 * np.linalg.norm(w[layer]["kernel"]) / np.linalg.norm(decayed)  # over both towers
            v[layer]["kernel"] = MOMENTUM * v[layer]["kernel"] - rate * ratio * decayed
            v[layer]["bias"] = MOMENTUM * v[layer]["bias"] - rate * 0.001 * g[layer]["bias"]
        w = jax.tree.map(np.add, w, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def layers_of(rng, scale):
    shapes = {"conv1": {"kernel": (2, 3, 5), "bias": (2, 5)}, "fc2": {"kernel": (2, 7, 3), "bias": (2, 3)}}
    return jax.tree.map(lambda s: rng.normal(0, scale, s), shapes, is_leaf=lambda s: isinstance(s, tuple))


@pytest.mark.parametrize(("form", "bias_rate"), [("source2012", None), ("source2012", 0.02), ("caffe", None)])
def test_the_2012_program_s_rule_follows_its_formula(form, bias_rate):
    rng = np.random.default_rng(2)
    w, gradients, rates = layers_of(rng, 0.1), [layers_of(rng, 0.3) for _ in range(6)], [0.01] * 3 + [0.001] * 3
    got, v = jax.tree.map(jnp.float32, w), jax.tree.map(np.zeros_like, w)
    state = update_rule(form, 1.0, momentum=MOMENTUM, weight_decay=0.5).init(got)
    for g, rate in zip(gradients, rates, strict=True):
        rule = update_rule(form, rate, bias_rate=bias_rate, momentum=MOMENTUM, weight_decay=0.5)
        updates, state = rule.update(jax.tree.map(jnp.float32, g), state, got)
        got = optax.apply_updates(got, updates)
        for layer in w:
            of = v[layer]
            of["kernel"] = MOMENTUM * of["kernel"] - 0.5 * rate * w[layer]["kernel"] - rate * g[layer]["kernel"]
            of["bias"] = MOMENTUM * of["bias"] - (bias_rate or 2 * rate) * g[layer]["bias"]  # and no decay
        w = jax.tree.map(np.add, w, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_each_layer_may_have_a_decay_of_its_own(rule):
    rng = np.random.default_rng(4)
    w, gradients = layers_of(rng, 0.1), [layers_of(rng, 0.3) for _ in range(4)]

    def run(decay):
        got, form = jax.tree.map(jnp.float32, w), update_rule(rule, 0.1, momentum=MOMENTUM, weight_decay=decay)
        state = form.init(got)
        for g in gradients:
            updates, state = form.update(jax.tree.map(jnp.float32, g), state, got)
            got = optax.apply_updates(got, updates)
        return got

    weak, strong = run(0.0), run(0.5)
    both = run({"conv1": 0.0, "fc2": 0.5})
    jax.tree.map(np.testing.assert_array_equal, both, {"conv1": weak["conv1"], "fc2": strong["fc2"]})
    assert np.abs(weak["fc2"]["kernel"] - strong["fc2"]["kernel"]).max() > 1e-6
    decays = rule in ("paper", "decoupled")  # the others leave biases alone
    assert (np.abs(weak["fc2"]["bias"] - strong["fc2"]["bias"]).max() > 1e-6) == decays


@pytest.mark.parametrize("rule", RULES)
def test_each_layer_may_have_a_rate_of_its_own_and_at_0_it_stands_still(rule):
    rng = np.random.default_rng(3)
    w, gradients = layers_of(rng, 0.1), [layers_of(rng, 0.3) for _ in range(4)]
    fixed = {"momentum": MOMENTUM, "weight_decay": 0.5}

    def run(rates):
        got = jax.tree.map(jnp.float32, w)
        state = update_rule(rule, 1.0, **fixed).init(got)
        for g, rate in zip(gradients, rates, strict=True):
            updates, state = update_rule(rule, rate, **fixed).update(jax.tree.map(jnp.float32, g), state, got)
            got = optax.apply_updates(got, updates)
        return got

    fast, slow = run([0.1] * 4), run([0.01] * 4)
    both = run([{"conv1": 0.1, "fc2": 0.01}] * 4)
    jax.tree.map(np.testing.assert_array_equal, both, {"conv1": fast["conv1"], "fc2": slow["fc2"]})
    # conv1 has a velocity when it is frozen, which would carry it on.
    frozen, two_steps = run([0.1, 0.1, *2 * [{"conv1": 0.0, "fc2": 0.1}]]), run([0.1, 0.1, 0.0, 0.0])
    jax.tree.map(np.testing.assert_array_equal, frozen, {"conv1": two_steps["conv1"], "fc2": fast["fc2"]})
    assert not np.array_equal(fast["conv1"]["kernel"], frozen["conv1"]["kernel"])
