"""Derivatives in every direction: forward, backward, and of second order, against differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from alexnet_jax import (
    AlexNet,
    average_pool,
    convolution,
    local_response_norm,
    locally_connected,
    max_pool,
    same_map_response_norm,
)
from alexnet_jax.network import layers

OPERATIONS = {
    "relu": layers.relu,
    "max_pool": max_pool,
    "local_response_norm": lambda x, natural: local_response_norm(x, alpha=0.1, natural=natural),
    "same_map_response_norm": lambda x, natural: same_map_response_norm(x, alpha=0.1, natural=natural),
    "convolution": lambda x, natural: convolution(x, _kernel(), padding=1, natural=natural),
    "locally_connected": lambda x, natural: locally_connected(x, _kernels(x), padding=1),
    "average_pool": lambda x, natural: average_pool(x),
}


def _kernels(x):
    return jnp.asarray(np.random.default_rng(8).normal(size=(*x.shape[1:3], 3, 3, x.shape[3], 5)))


def _kernel():
    return jnp.asarray(np.random.default_rng(9).normal(size=(3, 3, 4, 5)))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_natural_form_has_both_modes_and_the_same_values_and_gradients(name, x64):
    x, v = draw(0, 2, 7, 7, 4), draw(1, 2, 7, 7, 4)
    fast, natural = (lambda x, n=n: OPERATIONS[name](x, natural=n) for n in (False, True))
    np.testing.assert_allclose(natural(x), fast(x), rtol=1e-9, atol=1e-12)
    y, forward = jax.jvp(natural, (x,), (v,))
    g = draw(2, *y.shape)
    (backward,) = jax.vjp(fast, x)[1](g)
    np.testing.assert_allclose(jnp.vdot(g, forward), jnp.vdot(backward, v), rtol=1e-9)
    step = 1e-6
    np.testing.assert_allclose(forward, (natural(x + step * v) - natural(x - step * v)) / (2 * step), atol=1e-7)


def loss_of(natural):
    network = AlexNet(TINY, dtype=jnp.float64, natural=natural)
    images, labels = draw(3, 3, 12, 12, 3) * 10, jnp.array([0, 3, 4])
    variables = network.init(jax.random.key(0), images)

    def loss(params):
        logits = network.apply({"params": params}, images)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables["params"])
    leaves, tree = jax.tree.flatten(params)
    vector = jax.tree.unflatten(tree, [draw(i, *a.shape) for i, a in enumerate(leaves)])
    return loss, params, vector


def close(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1e-3))


def test_the_product_of_a_network_s_hessian_and_a_vector(x64):
    loss, params, vector = loss_of(natural=True)
    _, product = jax.jit(lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,)))(params, vector)
    gradient, step = jax.jit(jax.grad(loss)), 1e-6
    ahead, behind = (jax.tree.map(lambda p, v, s=s: p + s * v, params, vector) for s in (step, -step))
    close(product, jax.tree.map(lambda a, b: (a - b) / (2 * step), gradient(ahead), gradient(behind)), 1e-5)
    # Backward twice, which the fast form has too.
    loss, _, _ = loss_of(natural=False)

    def along(p):
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (jax.grad(loss)(p), vector)), strict=True))

    close(jax.jit(jax.grad(along))(params), product, 1e-7)


def test_the_fast_form_is_refused_forward_by_jax_which_the_docs_answer(x64):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(layers.relu, (jnp.ones(3),), (jnp.ones(3),))
