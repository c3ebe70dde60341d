"""The operations of the network (paper, sections 3.1 to 3.4) as pure functions.

Axes: N batch, H and W space, C maps. All arrays are channels-last.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import cpu


def convolution(x, kernel, *, stride=1, padding=0):
    """Cross-correlates a batch of maps with a bank of kernels.

    y[n, i, j, o] = sum over a, b, c of x[n, s i + a - p, s j + b - p, c] kernel[a, b, c, o]

    Args:
      x: (N, H, W, C) floating-point array.
      kernel: (h, w, C, O) array of the same dtype.
      stride: distance s between neighbouring receptive fields, in pixels.
      padding: rows and columns of zeros around the image. One number p for all
        four sides, or a pair (before, after): the paper's first layer takes
        224 pixels to 55 outputs with (0, 3).

    Returns:
      (N, H', W', O) with H' = (H + before + after - h) // stride + 1. On a CPU large kernels
      go by tiles, at the cost of some digits (cpu.by_tiles).

    Source: paper, section 3.5; the pair (0, 3) is what the 2012 program did.
    """
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    if cpu.convolution_for(x, kernel, stride, padding) is None:
        return _convolve(x, kernel, stride, padding)
    return _convolve_by_platform(x, kernel, stride, padding)


def _convolve(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[padding] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# JAX's own derivative would keep what either platform needs for it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_by_platform(x, kernel, stride, padding):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=cpu.convolution_for(x, kernel, stride, padding),
        default=functools.partial(_convolve, stride=stride, padding=padding),
    )


def _convolve_forward(x, kernel, stride, padding):
    return _convolve_by_platform(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(stride, padding, saved, g):
    natural = functools.partial(_convolve, stride=stride, padding=padding)
    return lax.platform_dependent(
        *saved,
        g,
        cpu=cpu.convolution_for(*saved, stride, padding).gradients,
        default=lambda x, kernel, g: jax.vjp(natural, x, kernel)[1](g),
    )


_convolve_by_platform.defvjp(_convolve_forward, _convolve_backward)


@jax.custom_vjp
def relu(x):
    """max(0, x); its gradient reads the result, which the next layer keeps anyway, and not x.

    Args:
      x: floating-point array.

    Returns:
      Array of the shape and dtype of x.

    Source: paper, section 3.1.
    """
    return _image_by_image(lambda x: jnp.maximum(x, 0), x)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, g: (jnp.where(y > 0, g, 0),))


def max_pool(x, size=3, stride=2, *, round_up=False):
    """Takes the maximum over square windows; they overlap when stride < size.

    Args:
      x: (N, H, W, C) floating-point array.
      size: side of a window, the paper's z, in pixels.
      stride: distance between neighbouring windows, the paper's s, in pixels.
      round_up: whether rows and columns that fill no whole window get a window of
        their own, of the pixels that are there (the 2012 program), or are left out.

    Returns:
      (N, H', W', C), dtype of x, with H' = (H - size) / stride + 1, rounded.

    Source: paper, section 3.4.
    """
    return _max_pool(x, *_windows(x, size, stride, round_up))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, size, strides, padding):
    # A Python scalar keeps JAX's recognition of a maximum, which has a gradient.
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, padding)


def _max_pool_forward(x, size, strides, padding):
    y = _max_pool(x, size, strides, padding)
    first = lax.platform_dependent(
        x,
        y,
        cpu=functools.partial(cpu.first_maxima, size=size[1], stride=strides[1], padding=padding),
        default=lambda x, y: jnp.zeros(y.shape, cpu.numbers(size[1])),
    )
    return y, (x, y, first)  # a platform keeps only what its gradient reads


def _max_pool_backward(size, strides, padding, saved, g):
    natural = functools.partial(_max_pool.fun, size=size, strides=strides, padding=padding)
    return lax.platform_dependent(
        *saved,
        g,
        cpu=lambda x, y, first, g: (cpu.to_the_maxima(first, g, x.shape, size[1], strides[1]),),
        default=lambda x, y, first, g: jax.vjp(natural, x)[1](g),
    )


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x, size=3, stride=2, *, round_up=False):
    """Takes the mean over square windows, of those pixels that are there; arguments as in max_pool."""
    windows = _windows(x, size, stride, round_up)
    pixels = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, *windows)
    return lax.reduce_window(x, 0.0, lax.add, *windows) / pixels


def _windows(x, size, stride, round_up):
    """Size, strides and padding of the windows of a pool."""
    beyond = [max(0, -(-(side - size) // stride) * stride + size - side) if round_up else 0 for side in x.shape[1:3]]
    return (1, size, size, 1), (1, stride, stride, 1), ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0))


@functools.partial(jax.jit, static_argnames=("n", "k", "alpha", "beta", "average"))
def local_response_norm(x, n=5, k=2.0, alpha=1e-4, beta=0.75, *, average=False):
    """Divides each activity by a power of the energy of its neighbouring maps.

    b_i = a_i / (k + alpha * sum of a_j^2 over j in window(i))^beta

    where window(i) = max(0, i - n//2) .. min(C-1, i + n//2) is clipped at the
    first and the last map of x: with one array a tower, no window crosses from
    one tower to the other.

    Args:
      x: (..., C) floating-point array; the last axis holds the maps. Narrower
        types than float32 are computed in float32 and rounded once.
      n: number of adjacent maps in a window; odd.
      k, alpha, beta: constants of the formula.
      average: whether alpha multiplies the mean over n (the 2012 program, Caffe,
        PyTorch) instead of the sum (the paper, TensorFlow).

    Returns:
      Array of the shape and dtype of x.

    Raises:
      ValueError: if n is not a positive odd number.

    Source: paper, section 3.3.
    """
    if n < 1 or n % 2 == 0:
        raise ValueError(f"n is {n}; the window of maps must be a positive odd number, such as 5.")
    return _lrn(x, (n,), k, alpha / n if average else alpha, beta)


@functools.partial(jax.jit, static_argnames=("n", "k", "alpha", "beta"))
def same_map_response_norm(x, n=5, k=1.0, alpha=1e-3, beta=0.75):
    """Divides each activity by a power of the energy around it in its own map.

    b = a / (k + alpha * mean of a^2 over the n x n window around it)^beta

    The mean counts pixels beyond the edge of the map as zeros.

    Args:
      x: (N, H, W, C) floating-point array, computed as in local_response_norm.
      n: side of the window in pixels; odd.
      k, alpha, beta: constants of the formula.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      ValueError: if n is not a positive odd number.

    Source: the 2012 program's "rnorm", after conv2; the paper does not have it.
    """
    if n < 1 or n % 2 == 0:
        raise ValueError(f"n is {n}; the side of the window must be a positive odd number, such as 5.")
    return _lrn(x, (n, n, 1), k, alpha / n**2, beta)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn(x, window, k, alpha, beta):
    """The norm over a window of the last axes."""

    def normalized(x):
        a = _at_least_float32(x)
        d = k + alpha * _window_sum(a * a, window)
        return (a * _power(d, -beta)).astype(x.dtype)

    return _image_by_image(normalized, x)


def _lrn_forward(x, window, k, alpha, beta):
    return _lrn(x, window, k, alpha, beta), x  # to compute d again costs less than to store it


def _lrn_backward(window, k, alpha, beta, x, g):
    # dL/da_i = g_i d_i^-beta - 2 alpha beta a_i * sum over windows that hold i of g_j a_j d_j^(-beta-1);
    # the windows are symmetric, so those that hold i are centred in window(i).
    def gradient(x, g):
        a, g = _at_least_float32(x), _at_least_float32(g)
        d = k + alpha * _window_sum(a * a, window)
        scale = _power(d, -beta)
        dx = g * scale - 2 * alpha * beta * a * _window_sum(g * a * scale / d, window)
        return dx.astype(x.dtype)

    x, g = lax.optimization_barrier((x, g))  # else the compiler would find the forward pass's d, and store it
    return (_image_by_image(gradient, x, g),)


_lrn.defvjp(_lrn_forward, _lrn_backward)


def _image_by_image(f, *arrays):
    """f(*arrays), of arrays (N, ..., C) of which f takes each image by itself; on a CPU, of many a few at a time."""
    if not isinstance(arrays[0].shape[0], int) or arrays[0].size < 1_000_000:
        return f(*arrays)

    def on_cpu(*arrays):
        few = 600_000 // arrays[0][0].size
        return cpu.few_at_once(lambda *parts: (f(*parts), ()), few, *arrays)[0]

    return lax.platform_dependent(*arrays, cpu=on_cpu, default=f)


def _window_sum(x, window):
    """Sums the neighbours along the last axes, clipped at their ends."""
    window = (1,) * (x.ndim - len(window)) + window
    # 0.0 as a Python scalar, for the same reason as in max_pool.
    return lax.reduce_window(x, 0.0, lax.add, window, (1,) * x.ndim, [(n // 2, n // 2) for n in window])


def _power(d, exponent):
    if exponent == -0.75:  # the paper's beta, with square roots instead of exp and log
        root = lax.rsqrt(d)
        return root * lax.sqrt(root)
    return d**exponent


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
