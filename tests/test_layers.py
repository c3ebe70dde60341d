"""The operations and their gradients against loops in NumPy float64, and against TensorFlow's."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alexnet_jax import (
    average_pool,
    convolution,
    local_response_norm,
    locally_connected,
    max_pool,
    same_map_response_norm,
)
from alexnet_jax.network import cpu, layers


def conv_loops(x, kernel, stride, before, after, g):
    """Output, and the gradients of sum(g y) with respect to x and kernel, by loops."""
    (n, height, width, _), (h, w, _, maps) = x.shape, kernel.shape
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    out = [(side + before + after - k) // stride + 1 for side, k in ((height, h), (width, w))]
    y, dx, dk = np.zeros((n, *out, maps)), np.zeros_like(x), np.zeros_like(kernel)
    for i in range(out[0]):
        for j in range(out[1]):
            there = np.s_[:, stride * i : stride * i + h, stride * j : stride * j + w]
            y[:, i, j] = np.einsum("nabc,abco->no", x[there], kernel)
            if g is not None:
                dx[there] += np.einsum("no,abco->nabc", g[:, i, j], kernel)
                dk += np.einsum("no,nabc->abco", g[:, i, j], x[there])
    return y, dx[:, before : before + height, before : before + width], dk


def pool_loops(x, size, stride, g):
    n, height, width, maps = x.shape
    out = (height - size) // stride + 1, (width - size) // stride + 1
    y, dx = np.zeros((n, *out, maps)), np.zeros_like(x)
    for at in np.ndindex(n, *out, maps):
        i, j = stride * at[1], stride * at[2]
        window = x[at[0], i : i + size, j : j + size, at[3]]
        a, b = np.unravel_index(window.argmax(), window.shape)
        y[at] = window[a, b]
        dx[at[0], i + a, j + b, at[3]] += g[at]
    return y, dx


def lrn_loops(x, n, k, alpha, beta, g):
    maps = x.shape[-1]
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for i in range(maps):
        window = range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1)
        d = k + alpha * sum(x[..., j] ** 2 for j in window)
        y[..., i] = x[..., i] * d**-beta
        dx[..., i] += g[..., i] * d**-beta
        for j in window:
            dx[..., j] += g[..., i] * x[..., i] * -beta * d ** (-beta - 1) * 2 * alpha * x[..., j]
    return y, dx


def draw(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


def with_gradients(f, arguments, g, dtype):
    arguments = [jnp.asarray(a, dtype) for a in arguments]
    y, pull = jax.vjp(jax.jit(f), *arguments)
    return y, *pull(jnp.asarray(g, dtype))


def assert_agrees(f, arguments, g, wanted):
    """In float64 each element to 1e-6 relative; in float32 to 1e-6 of the largest."""
    with jax.enable_x64(True):
        for got, want in zip(with_gradients(f, arguments, g, jnp.float64), wanted, strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-12)
    for got, want in zip(with_gradients(f, arguments, g, jnp.float32), wanted, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


SEEDS = st.integers(0, 2**32 - 1)
CONVOLUTIONS = [(11, 4, (0, 3), 24), (5, 1, 2, 9), (3, 1, 1, 6), (3, 2, 0, 8)]


@pytest.mark.parametrize(("size", "stride", "padding", "pixels"), CONVOLUTIONS)
def test_convolution_and_gradients_equal_loops(size, stride, padding, pixels):
    x, kernel = draw(0, 2, pixels, pixels + 1, 3), draw(1, size, size, 3, 4)
    before, after = padding if isinstance(padding, tuple) else (padding, padding)
    g = draw(2, *conv_loops(x, kernel, stride, before, after, None)[0].shape)
    wanted = conv_loops(x, kernel, stride, before, after, g)
    assert_agrees(lambda x, k: convolution(x, k, stride=stride, padding=padding), (x, kernel), g, wanted)


def local_loops(x, kernel, stride, before, after, g):
    """(y, dx, dkernel) of a locally connected layer, place by place."""
    size, maps = kernel.shape[2], x.shape[-1]
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    y, dx, dk = np.zeros((len(x), *kernel.shape[:2], kernel.shape[-1])), np.zeros_like(padded), np.zeros_like(kernel)
    for i, j, c in itertools.product(*map(range, kernel.shape[:2]), range(maps)):
        for a, b in itertools.product(range(size), repeat=2):
            at = slice(None), i * stride + a, j * stride + b, c
            y[:, i, j] += padded[at][:, None] * kernel[i, j, a, b, c]
            if g is not None:
                dx[at] += g[:, i, j] @ kernel[i, j, a, b, c]
                dk[i, j, a, b, c] = padded[at] @ g[:, i, j]
    stop = padded.shape[1] - after, padded.shape[2] - after
    return y, dx[:, before : stop[0], before : stop[1]], dk


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (2, 1, (0, 1)), (5, 2, 2)])
def test_a_locally_connected_layer_and_gradients_equal_loops(size, stride, padding):
    x = draw(0, 2, 7, 6, 3)
    before, after = padding if isinstance(padding, tuple) else (padding, padding)
    rows, columns = ((side + before + after - size) // stride + 1 for side in (7, 6))
    kernel = draw(1, rows, columns, size, size, 3, 4)
    g = draw(2, *local_loops(x, kernel, stride, before, after, None)[0].shape)
    wanted = local_loops(x, kernel, stride, before, after, g)
    assert_agrees(lambda x, k: locally_connected(x, k, stride=stride, padding=padding), (x, kernel), g, wanted)


def test_with_the_same_kernel_everywhere_a_locally_connected_layer_is_a_convolution():
    x, kernel = jnp.float32(draw(0, 2, 6, 6, 3)), jnp.float32(draw(1, 3, 3, 3, 4))
    everywhere = jnp.broadcast_to(kernel, (6, 6, *kernel.shape))
    np.testing.assert_allclose(
        locally_connected(x, everywhere, padding=1), convolution(x, kernel, padding=1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"kernel has 6 x 6 places; accepted are \(4, 4\), the windows of x"):
        locally_connected(x, everywhere)


def naturally(x, kernel, stride, padding, g):
    y, pull = jax.vjp(lambda *inputs: layers._convolve(*inputs, stride, padding), x, kernel)
    return y, *pull(g)


def on_a_cpu(way, x, kernel, stride, padding, g):
    convolve = way(x, kernel, stride, padding)
    return convolve(x, kernel), *convolve.gradients(x, kernel, g)


@settings(max_examples=6)  # each compiles
@given(
    st.tuples(st.integers(1, 7), st.integers(8, 11), st.integers(8, 11)),
    st.integers(2, 8),
    st.integers(1, 4),
    st.tuples(*[st.integers(0, 4)] * 2),
    SEEDS,
)
def test_convolution_by_tiles_is_convolution(sides, h, stride, padding, seed):
    assume(-(-h // stride) in cpu.SIDES)
    x, kernel = draw(seed, *sides, 3), draw(seed + 1, h, h, 3, 4)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(x), jnp.asarray(kernel)
        g = draw(seed + 2, *jax.eval_shape(lambda: layers._convolve(x, kernel, stride, padding)).shape)
        wanted = naturally(x, kernel, stride, padding, g)
        for one, other in zip(on_a_cpu(cpu.by_tiles, x, kernel, stride, padding, g), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=6)
@given(
    st.tuples(st.integers(1, 7), st.integers(6, 9), st.integers(6, 9)),
    st.tuples(*[st.integers(1, 6)] * 2),
    st.integers(1, 3),
    st.tuples(*[st.integers(0, 3)] * 2),
    SEEDS,
)
def test_convolution_by_rows_is_convolution(sides, window, stride, padding, seed):
    x, kernel = draw(seed, *sides, 3), draw(seed + 1, *window, 3, 4)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(x), jnp.asarray(kernel)
        g = draw(seed + 2, *jax.eval_shape(lambda: layers._convolve(x, kernel, stride, padding)).shape)
        wanted = naturally(x, kernel, stride, padding, g)
        for one, other in zip(on_a_cpu(cpu.by_rows, x, kernel, stride, padding, g), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("h", "stride", "maps", "outputs"), [(11, 4, 3, 48), (5, 1, 48, 128), (3, 1, 256, 192)])
def test_what_tiles_lose_to_rounding_in_the_papers_layers(h, stride, maps, outputs):
    side = 40 if stride > 1 else 20
    x, kernel = draw(0, 2, side, side, maps), draw(1, h, h, maps, outputs)
    g = draw(2, 2, *[(side + 2 * (h // 2) - h) // stride + 1] * 2, outputs)
    with jax.enable_x64(True):
        wanted = naturally(jnp.asarray(x), jnp.asarray(kernel), stride, (h // 2, h // 2), g)
    x, kernel, g = jnp.float32(x), jnp.float32(kernel), jnp.float32(g)
    assert cpu.convolution_for(x, kernel, stride, (h // 2, h // 2)) is not None
    y, pull = jax.vjp(lambda *inputs: convolution(*inputs, stride=stride, padding=h // 2), x, kernel)
    for one, other in zip((y, *pull(g)), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


@settings(max_examples=8)
@given(st.tuples(*[st.integers(3, 9)] * 2), st.integers(1, 3), st.integers(1, 4), st.booleans(), SEEDS)
def test_the_gradient_of_a_max_pool_is_the_same_on_every_platform_even_of_equal_maxima(
    sides, size, stride, round_up, seed
):
    x = jnp.asarray(np.random.default_rng(seed).integers(0, 3, (2, *sides, 3)), jnp.float32)
    windows = layers._windows(x, size, stride, round_up)
    y, pull = jax.vjp(lambda x: layers._max_pool.fun(x, *windows), x)
    g = jnp.asarray(np.random.default_rng(seed + 1).integers(-9, 9, y.shape), jnp.float32)
    first = cpu.first_maxima(x, y, size, stride, windows[2])
    np.testing.assert_array_equal(cpu.to_the_maxima(first, g, x.shape, size, stride), pull(g)[0])


def test_each_pixel_of_a_large_window_of_bfloat16_can_be_its_maximum():
    x = np.zeros((400, 20, 20, 1))
    x.reshape(400, 400)[np.arange(400), np.arange(400)] = 1  # in the first image the first pixel, and so on
    dx = jax.grad(lambda x: max_pool(x, 20, 1).sum().astype(jnp.float32))(jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(dx, float), x)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_accelerators_keep_the_operations_that_are_natural_to_them(platform):
    def operations(f, *shape):
        gradient = jax.export.export(jax.jit(jax.value_and_grad(f)), platforms=[platform])
        return re.findall(r"stablehlo\.(\w+)", gradient(jax.ShapeDtypeStruct(shape, jnp.float32)).mlir_module())

    pool = operations(lambda x: max_pool(x).sum(), 3, 3, 3, 2)
    assert ("select_and_scatter" in pool) == (platform != "cpu")
    for h, stride, maps, outputs in ((11, 4, 3, 48), (5, 1, 48, 128), (5, 1, 1, 6)):
        x = jnp.ones((2, 40, 40, maps))
        conv = operations(lambda kernel, x=x, s=stride: convolution(x, kernel, stride=s).sum(), h, h, maps, outputs)
        assert ("while" in conv) == (platform == "cpu")
        assert conv.count("convolution") == (0 if platform == "cpu" else 2)


@pytest.mark.parametrize("operation", [local_response_norm, layers.relu])
def test_an_array_that_is_large_enough_for_loops_gives_what_its_halves_give(operation):
    x, g = (jnp.asarray(draw(seed, 42, 30, 30, 32, scale=20), jnp.float32) for seed in (0, 1))
    assert x.size >= 1_000_000 > x.size / 2  # where layers begins to take a few images at a time
    y, pull = jax.vjp(operation, x)
    for half in (slice(21), slice(21, 42)):
        y_half, pull_half = jax.vjp(operation, x[half])
        np.testing.assert_allclose(y[half], y_half, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(pull(g)[0][half], pull_half(g[half])[0], rtol=1e-6, atol=1e-6)


def test_a_relu_passes_no_gradient_where_it_gives_zero():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    y, pull = jax.vjp(layers.relu, x)
    np.testing.assert_array_equal(y, np.float32([0, 0, 0, 1e-30, 3]))
    np.testing.assert_array_equal(pull(jnp.full(5, 7.0))[0], [0, 0, 0, 7, 7])


@given(st.integers(1, 12), st.integers(0, 13))
@settings(max_examples=15)
def test_a_few_images_at_a_time_are_all_of_them_once(n, few):
    x = draw(0, n, 3)
    rows, sums = cpu.few_at_once(lambda x: (2 * x, {"sum": x.sum(0)}), few, jnp.asarray(x))
    np.testing.assert_allclose(rows, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(sums["sum"], x.sum(0), rtol=1e-5, atol=1e-6)


def test_the_papers_first_layer_takes_224_pixels_to_55_with_the_zeros_at_the_end():
    x = jnp.ones((1, 224, 224, 1))
    y = convolution(x, jnp.ones((11, 11, 1, 1)), stride=4, padding=(0, 3))[0, ..., 0]
    assert y.shape == (55, 55)
    assert y[0, 0] == 11 * 11  # no zeros at the top left
    assert y[54, 54] == 8 * 8  # three rows and columns of them at the bottom right


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (3, 1)])
def test_pooling_and_gradient_equal_loops(size, stride):
    x = draw(3, 2, 8, 9, 3)
    g = draw(4, 2, (8 - size) // stride + 1, (9 - size) // stride + 1, 3)
    assert_agrees(lambda x: max_pool(x, size, stride), (x,), g, pool_loops(x, size, stride, g))


def windows_rounded_up(x, size, stride):
    """The start and stop of each window along rows, and along columns; the last ones may be smaller."""
    for side in x.shape[1:3]:
        count = -(-(side - size) // stride) + 1
        yield [(stride * i, min(stride * i + size, side)) for i in range(count)]


@pytest.mark.parametrize(("size", "stride", "sides"), [(3, 2, (8, 9)), (3, 2, (7, 10)), (2, 2, (5, 4)), (4, 3, (6, 6))])
def test_pools_that_round_up_take_the_pixels_that_are_there(size, stride, sides):
    x = draw(18, 2, *sides, 3)
    rows, columns = windows_rounded_up(x, size, stride)
    for pool, reduced in ((max_pool, np.max), (average_pool, np.mean)):
        want = np.array([[reduced(x[:, a:b, c:d], (1, 2)) for c, d in columns] for a, b in rows]).transpose(2, 0, 1, 3)
        got = pool(jnp.asarray(x, jnp.float32), size, stride, round_up=True)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_32_pixels_pool_to_16_8_and_4_when_rounded_up():
    x = jnp.zeros((1, 32, 32, 1))
    sides = [(x := max_pool(x, 3, 2, round_up=True)).shape[1] for _ in range(3)]
    assert sides == [16, 8, 4]
    assert max_pool(jnp.zeros((1, 32, 32, 1)), 3, 2).shape[1] == 15


def test_an_average_pool_gives_each_pixel_its_share_of_the_gradient():
    x, g = draw(19, 2, 7, 7, 3), draw(20, 2, 3, 3, 3)
    y, dx = np.zeros((2, 3, 3, 3)), np.zeros_like(x)
    for i, j in np.ndindex(3, 3):
        there = np.s_[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        y[:, i, j] = x[there].mean((1, 2))
        dx[there] += g[:, i : i + 1, j : j + 1] / 9
    assert_agrees(average_pool, (x,), g, (y, dx))


@pytest.mark.parametrize("n", [3, 5])
def test_the_norm_within_a_map_equals_loops(n):
    x, g = draw(21, 2, 6, 7, 3, scale=20), draw(22, 2, 6, 7, 3)
    k, alpha, beta = 1.0, 1e-2, 0.75
    y, dx = np.zeros_like(x), np.zeros_like(x)
    for i, j in np.ndindex(6, 7):
        there = np.s_[:, max(0, i - n // 2) : i + n // 2 + 1, max(0, j - n // 2) : j + n // 2 + 1]
        d = k + alpha / n**2 * (x[there] ** 2).sum((1, 2))
        y[:, i, j] = x[:, i, j] * d**-beta
        dx[:, i, j] += g[:, i, j] * d**-beta
        back = g[:, i, j] * x[:, i, j] * -beta * d ** (-beta - 1) * 2 * alpha / n**2
        dx[there] += back[:, None, None] * x[there]
    assert_agrees(lambda x: same_map_response_norm(x, n, k, alpha, beta), (x,), g, (y, dx))


def test_the_norm_within_a_map_names_a_window_that_is_not_odd():
    with pytest.raises(ValueError, match=r"n is 4; .* odd"):
        same_map_response_norm(jnp.ones((1, 8, 8, 1)), n=4)


CONSTANTS = [(5, 2.0, 1e-4, 0.75), (3, 1.0, 0.3, 0.75), (5, 2.0, 0.1, 0.5), (1, 1.5, 1.0, 1.0), (9, 2.0, 0.2, 0.75)]


@pytest.mark.parametrize("maps", [1, 4, 7, 12])  # 9 maps of window are more than some towers have
@pytest.mark.parametrize(("n", "k", "alpha", "beta"), CONSTANTS)
@pytest.mark.parametrize("average", [False, True])
def test_lrn_and_gradient_equal_loops(maps, n, k, alpha, beta, average):
    x, g = draw(5, 2, 3, maps, scale=30 if alpha == 1e-4 else 2), draw(6, 2, 3, maps)
    wanted = lrn_loops(x, n, k, alpha / n if average else alpha, beta, g)
    assert_agrees(lambda x: local_response_norm(x, n, k, alpha, beta, average=average), (x,), g, wanted)


def test_lrn_by_hand():
    y = local_response_norm(jnp.array([1.0, 2.0, 3.0, 4.0]), n=3, k=1.0, alpha=1.0, beta=1.0)
    np.testing.assert_allclose(y, [1 / 6, 2 / 15, 3 / 30, 4 / 26], rtol=1e-6)
    y = local_response_norm(jnp.array([3.0, 3.0, 3.0]), n=3, k=1.0, alpha=1.0, beta=1.0, average=True)
    np.testing.assert_allclose(y, [3 / 7, 3 / 10, 3 / 7], rtol=1e-6)  # the mean is over n also at the edges


def test_lrn_under_vmap_equals_the_whole_batch():
    x = jnp.asarray(draw(7, 4, 5, 6, 8, scale=20), jnp.float32)
    np.testing.assert_allclose(jax.vmap(local_response_norm)(x), local_response_norm(x), rtol=1e-6)
    loss = lambda x: (local_response_norm(x) ** 2).sum()  # noqa: E731
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(x), jax.grad(loss)(x), rtol=1e-5, atol=1e-6)


def test_lrn_of_bfloat16_is_float32s_rounded_once():
    x = jnp.asarray(draw(8, 3, 4, 96, scale=50), jnp.bfloat16)
    g = jnp.asarray(draw(9, 3, 4, 96), jnp.bfloat16)
    y, pull = jax.vjp(local_response_norm, x)
    wide, pull_wide = jax.vjp(local_response_norm, x.astype(jnp.float32))
    assert y.dtype == pull(g)[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    (narrow,), (want,) = pull(g), pull_wide(g.astype(jnp.float32))
    np.testing.assert_array_equal(narrow, want.astype(jnp.bfloat16))


@given(hnp.arrays(np.float32, (2, 9), elements=st.floats(-100, 100, width=32)))
def test_lrn_is_odd_shrinks_and_does_not_know_left_from_right(x):
    y = np.asarray(local_response_norm(x, alpha=0.01))
    np.testing.assert_array_equal(local_response_norm(-x, alpha=0.01), -y)
    assert np.all(np.abs(y) <= np.abs(x))
    np.testing.assert_allclose(local_response_norm(x[:, ::-1], alpha=0.01)[:, ::-1], y, rtol=1e-5)


@pytest.mark.parametrize("n", [0, 4, -1])
def test_lrn_names_a_window_that_is_not_odd(n):
    with pytest.raises(ValueError, match=f"n is {n}; .* odd"):
        local_response_norm(jnp.ones((1, 8)), n=n)


def by_tensorflow(f, arguments, g):
    arguments = [tf.constant(a, tf.float32) for a in arguments]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        y = f(*arguments)
    return y.numpy(), *(d.numpy() for d in tape.gradient(y, arguments, tf.constant(g, tf.float32)))


def assert_equals_tensorflow(ours, theirs, arguments, g):
    for got, want in zip(
        with_gradients(ours, arguments, g, jnp.float32), by_tensorflow(theirs, arguments, g), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_lrn_equals_tensorflows_whose_alpha_multiplies_the_sum():
    x, g = draw(10, 2, 5, 5, 12, scale=20), draw(11, 2, 5, 5, 12)
    assert_equals_tensorflow(
        lambda x: local_response_norm(x, 5, 2.0, 1e-3, 0.75),
        lambda x: tf.nn.lrn(x, depth_radius=2, bias=2.0, alpha=1e-3, beta=0.75),
        (x,),
        g,
    )


def test_pooling_equals_tensorflows():
    x, g = draw(12, 2, 9, 9, 3), draw(13, 2, 4, 4, 3)
    assert_equals_tensorflow(max_pool, lambda x: tf.nn.max_pool2d(x, 3, 2, "VALID"), (x,), g)


@pytest.mark.parametrize(("size", "stride", "padding", "pixels"), CONVOLUTIONS)
def test_convolution_equals_tensorflows(size, stride, padding, pixels):
    before, after = padding if isinstance(padding, tuple) else (padding, padding)
    sides = (pixels + before + after - size) // stride + 1
    x, kernel, g = draw(14, 2, pixels, pixels, 3), draw(15, size, size, 3, 4), draw(16, 2, sides, sides, 4)
    pads = [[0, 0], [before, after], [before, after], [0, 0]]
    assert_equals_tensorflow(
        lambda x, k: convolution(x, k, stride=stride, padding=padding),
        lambda x, k: tf.nn.conv2d(tf.pad(x, pads), k, stride, "VALID"),
        (x, kernel),
        g,
    )


def test_no_window_of_lrn_crosses_from_one_tower_to_the_other():
    # Maps 1 2 | 3 4, a window of 3, k = alpha = beta = 1: a_i / (1 + the energy of the neighbours in the tower).
    by_tower = [local_response_norm(jnp.array(h), 3, 1.0, 1.0, 1.0) for h in ([1.0, 2.0], [3.0, 4.0])]
    np.testing.assert_allclose(by_tower, [[1 / 6, 2 / 6], [3 / 26, 4 / 26]], rtol=1e-6)
    joined = local_response_norm(jnp.array([1.0, 2.0, 3.0, 4.0]), 3, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(joined, [1 / 6, 2 / 15, 3 / 30, 4 / 26], rtol=1e-6)


def test_lrn_is_the_same_inside_another_jit():
    x = jnp.asarray(draw(17, 2, 3, 8, scale=20), jnp.float32)
    loss = lambda x: (local_response_norm(x) ** 2).sum()  # noqa: E731
    with jax.disable_jit():
        y, dx = local_response_norm(x), jax.grad(loss)(x)
    np.testing.assert_allclose(jax.jit(local_response_norm)(x), y, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operation", [max_pool, average_pool, same_map_response_norm])
def test_one_image_where_a_batch_is_meant_is_refused(operation):
    with pytest.raises(ValueError, match=r"\(8, 8, 3\); accepted is a batch of maps, \(N, H, W, C\).*x\[None\]"):
        operation(jnp.ones((8, 8, 3)))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\); accepted is a batch of maps"):
        convolution(jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 4)))


@pytest.mark.parametrize("operation", [max_pool, average_pool, same_map_response_norm, local_response_norm])
def test_integers_are_refused_and_not_cut_off(operation):
    with pytest.raises(ValueError, match=r"x is uint8; accepted are floating-point types"):
        operation(jnp.full((1, 8, 8, 3), 200, jnp.uint8))


@pytest.mark.parametrize("operation", [local_response_norm, same_map_response_norm])
@pytest.mark.parametrize("k", [0, -1.0, float("nan")])
def test_a_norm_that_would_divide_by_zero_is_refused(operation, k):
    with pytest.raises(ValueError, match=f"k is {k}; accepted is a number above 0"):
        operation(jnp.ones((1, 8, 8, 3)), k=k)


def test_a_convolution_in_float64_is_exact_after_a_trace_of_its_gradient_in_float32():
    def loss(kernel, x, **options):
        return (layers.convolution(x, kernel, padding=2, **options) ** 2).sum()

    single = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 5, 64, 128), (2, 12, 12, 64))]
    assert cpu.convolution_for(*reversed(single), 1, (2, 2)) is not None  # cpu.by_tiles computes it
    traced = jax.jit(jax.grad(loss))  # its traces last as long as the function
    jax.eval_shape(traced, *single)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arguments = [rng.normal(size=a.shape) for a in single]
        got = traced(*arguments)
        want = jax.jit(jax.grad(lambda *arguments: loss(*arguments, natural=True)))(*arguments)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
