"""The operations of the network (paper, sections 3.1 to 3.4) as pure functions.

Axes: N batch, H and W space, C maps. All arrays are channels-last.

Most operations have a gradient of their own, which is fast and needs little memory. JAX then differentiates them only
backward (`jax.grad`, `jax.vjp`, any number of times). With `natural=True` they are written in the direct form, which
JAX differentiates in every way (`jax.jvp`, `jax.jacfwd`, `jax.hessian`); gradients then cost more.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import cpu


def convolution(x, kernel, *, stride=1, padding=0, natural=False):
    """Cross-correlates a batch of maps with a set of kernels.

    y[n, i, j, o] = sum over a, b, c of x[n, s i + a - p, s j + b - p, c] kernel[a, b, c, o]

    Args:
      x: (N, H, W, C) floating-point array.
      kernel: (h, w, C, O) array of the same dtype.
      stride: distance s between neighbouring receptive fields, in pixels.
      padding: rows and columns of zeros around the image: one number p for all four
        sides, or a pair (before, after). With (0, 3), the paper's first layer turns
        224 pixels into 55 outputs.
      natural: whether JAX can differentiate it in every way, as above.

    Returns:
      (N, H', W', O) with H' = (H + before + after - h) // stride + 1. On a CPU, large kernels
      are computed by tiles (cpu.by_tiles), which costs some accuracy.

    Source: paper, section 3.5; the pair (0, 3) is what the 2012 program did.
    """
    _check_maps(x)
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    if natural or cpu.convolution_for(x, kernel, stride, padding) is None:
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


# JAX's own derivative would store what the gradient needs on both platforms.
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


def places(x, size, stride, padding):
    """The places of a convolution's window in maps (N, H, W, C): (H', W')."""
    around = sum(padding) if isinstance(padding, tuple) else 2 * padding
    return tuple((side + around - size) // stride + 1 for side in x.shape[1:3])


def locally_connected(x, kernel, *, stride=1, padding=0):
    """As convolution, but each place of the output has kernels of its own.

    y[n, i, j, o] = sum over a, b, c of x[n, s i + a - p, s j + b - p, c] kernel[i, j, a, b, c, o]

    JAX differentiates it in every way.

    Args:
      x: (N, H, W, C) floating-point array.
      kernel: (H', W', h, h, C, O) array of the same dtype; H' and W' as in convolution.
      stride, padding: as in convolution.

    Returns:
      (N, H', W', O).

    Raises:
      ValueError: if the kernel has another number of places than the windows of x.

    Source: the 2012 program's "local" layers; the paper refers to them in section 3.3, footnote 3.
    """
    _check_maps(x)
    rows, columns, size = kernel.shape[:3]
    if places(x, size, stride, padding) != (rows, columns):
        raise ValueError(
            f"kernel has {rows} x {columns} places; accepted are {places(x, size, stride, padding)}, the windows of x."
        )
    around = padding if isinstance(padding, tuple) else (padding, padding)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    seen = [
        x[:, a : a + stride * (rows - 1) + 1 : stride, b : b + stride * (columns - 1) + 1 : stride]
        for a in range(size)
        for b in range(size)
    ]
    patches = jnp.concatenate(seen, -1)  # (N, H', W', h w C)
    kernel = kernel.reshape(rows, columns, patches.shape[-1], -1)
    return jnp.einsum("nijk,ijko->nijo", patches, kernel)


def relu(x, *, natural=False):
    """max(0, x). Its gradient uses the result, which the next layer stores anyway, instead of x.

    Args:
      x: floating-point array.
      natural: whether JAX can differentiate it in every way, as above.

    Returns:
      Array of the shape and dtype of x.

    Source: paper, section 3.1.
    """
    return jax.nn.relu(x) if natural else _relu(x)


@jax.custom_vjp
def _relu(x):
    return _image_by_image(lambda x: jnp.maximum(x, 0), x)


_relu.defvjp(lambda x: (_relu(x),) * 2, lambda y, g: (jnp.where(y > 0, g, 0),))


def max_pool(x, size=3, stride=2, *, round_up=False, natural=False):
    """Takes the maximum over square windows; they overlap when stride < size.

    Args:
      x: (N, H, W, C) floating-point array.
      size: side of a window, the paper's z, in pixels.
      stride: distance between neighbouring windows, the paper's s, in pixels.
      round_up: what happens to the last rows and columns if they do not fill a window. True: they
        get a smaller window (the 2012 program). False: they are left out.
      natural: whether JAX can differentiate it in every way, as above.

    Returns:
      (N, H', W', C), dtype of x, with H' = (H - size) / stride + 1, rounded up or down.

    Source: paper, section 3.4.
    """
    _check_maps(x)
    return (_direct_max_pool if natural else _max_pool)(x, *_windows(x, size, stride, round_up))


def _direct_max_pool(x, size, strides, padding):
    # With a Python scalar, JAX recognises a maximum, for which it has a gradient.
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, size, strides, padding):
    return _direct_max_pool(x, size, strides, padding)


def _max_pool_forward(x, size, strides, padding):
    y = _max_pool(x, size, strides, padding)
    first = lax.platform_dependent(
        x,
        y,
        cpu=functools.partial(cpu.first_maxima, size=size[1], stride=strides[1], padding=padding),
        default=lambda x, y: jnp.zeros(y.shape, cpu.numbers(size[1])),
    )
    return y, (x, y, first)  # each platform stores only what its gradient reads


def _max_pool_backward(size, strides, padding, saved, g):
    natural = functools.partial(_direct_max_pool, size=size, strides=strides, padding=padding)
    return lax.platform_dependent(
        *saved,
        g,
        cpu=lambda x, y, first, g: (cpu.to_the_maxima(first, g, x.shape, size[1], strides[1]),),
        default=lambda x, y, first, g: jax.vjp(natural, x)[1](g),
    )


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_pool(x, size=3, stride=2, *, round_up=False):
    """Takes the mean over square windows, counting only pixels inside the image; arguments as in max_pool."""
    _check_maps(x)
    windows = _windows(x, size, stride, round_up)
    pixels = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add, *windows)
    return lax.reduce_window(x, 0.0, lax.add, *windows) / pixels


def _windows(x, size, stride, round_up):
    """The size, strides and padding of the windows of a pool."""
    beyond = [max(0, -(-(side - size) // stride) * stride + size - side) if round_up else 0 for side in x.shape[1:3]]
    return (1, size, size, 1), (1, stride, stride, 1), ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0))


@functools.partial(jax.jit, static_argnames=("n", "k", "alpha", "beta", "average", "natural"))
def local_response_norm(x, n=5, k=2.0, alpha=1e-4, beta=0.75, *, average=False, natural=False):
    """Divides each activation by a power of the sum of squares in its neighbouring maps.

    b_i = a_i / (k + alpha * sum of a_j^2 over j in window(i))^beta

    where window(i) = max(0, i - n//2) .. min(C-1, i + n//2) is clipped at the
    first and the last map of x. Each tower has its own array, so no window crosses
    from one tower to another.

    Args:
      x: (..., C) floating-point array; the last axis holds the maps. Types narrower
        than float32 are computed in float32 and rounded once.
      n: number of adjacent maps in a window; odd.
      k, alpha, beta: constants of the formula.
      average: whether alpha multiplies the mean over n (the 2012 program, Caffe,
        PyTorch) instead of the sum (the paper, TensorFlow).
      natural: whether JAX can differentiate it in every way, as above.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      ValueError: if n is not a positive odd number, k is not above 0, or x holds integers.

    Source: paper, section 3.3.
    """
    _check_floating(x)
    _check_k(k)
    if n < 1 or n % 2 == 0:
        raise ValueError(f"n is {n}; the window of maps must be a positive odd number, such as 5.")
    return (_direct_lrn if natural else _lrn)(x, (n,), k, alpha / n if average else alpha, beta)


@functools.partial(jax.jit, static_argnames=("n", "k", "alpha", "beta", "natural"))
def same_map_response_norm(x, n=5, k=1.0, alpha=1e-3, beta=0.75, *, natural=False):
    """Divides each activation by a power of the mean of squares around it in its own map.

    b = a / (k + alpha * mean of a^2 over the n x n window around it)^beta

    The mean counts pixels beyond the edge of the map as zeros.

    Args:
      x: (N, H, W, C) floating-point array; narrow types as in local_response_norm.
      n: side of the window in pixels; odd.
      k, alpha, beta: constants of the formula.
      natural: whether JAX can differentiate it in every way, as above.

    Returns:
      Array of the shape and dtype of x.

    Raises:
      ValueError: if n is not a positive odd number, k is not above 0, or x is not (N, H, W, C) floating-point.

    Source: the 2012 program's "rnorm", after conv2; the paper does not have it.
    """
    _check_maps(x)
    _check_k(k)
    if n < 1 or n % 2 == 0:
        raise ValueError(f"n is {n}; the side of the window must be a positive odd number, such as 5.")
    return (_direct_lrn if natural else _lrn)(x, (n, n, 1), k, alpha / n**2, beta)


def _direct_lrn(x, window, k, alpha, beta):
    """The normalization over a window of the last axes."""
    a = _at_least_float32(x)
    d = k + alpha * _window_sum(a * a, window)
    return (a * _power(d, -beta)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _lrn(x, window, k, alpha, beta):
    return _image_by_image(functools.partial(_direct_lrn, window=window, k=k, alpha=alpha, beta=beta), x)


def _lrn_forward(x, window, k, alpha, beta):
    return _lrn(x, window, k, alpha, beta), x  # computing d again costs less than storing it


def _lrn_backward(window, k, alpha, beta, x, g):
    # dL/da_i = g_i d_i^-beta - 2 alpha beta a_i * (sum of g_j a_j d_j^(-beta-1) over all j whose window contains i).
    # Windows are symmetric, so these j are the ones in window(i).
    def gradient(x, g):
        a, g = _at_least_float32(x), _at_least_float32(g)
        d = k + alpha * _window_sum(a * a, window)
        scale = _power(d, -beta)
        dx = g * scale - 2 * alpha * beta * a * _window_sum(g * a * scale / d, window)
        return dx.astype(x.dtype)

    x, g = lax.optimization_barrier((x, g))  # otherwise the compiler would store the d of the forward pass
    return (_image_by_image(gradient, x, g),)


_lrn.defvjp(_lrn_forward, _lrn_backward)


def _check_maps(x):
    if x.ndim != 4:
        raise ValueError(
            f"x has the shape {x.shape}; accepted is a batch of maps, (N, H, W, C). For one image (H, W, C): x[None]."
        )
    _check_floating(x)


def _check_floating(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}; accepted are floating-point types. Use x.astype(jnp.float32).")


def _check_k(k):
    if not k > 0:
        raise ValueError(f"k is {k}; accepted is a number above 0, because activations of 0 would be divided by 0.")


def _image_by_image(f, *arrays):
    """Computes f(*arrays) of (N, ..., C), where f treats each image by itself.

    On a CPU, f gets a few images of a large array at a time.
    """
    if not isinstance(arrays[0].shape[0], int) or arrays[0].size < 1_000_000:
        return f(*arrays)

    def on_cpu(*arrays):
        few = 600_000 // arrays[0][0].size
        return cpu.few_at_once(lambda *parts: (f(*parts), ()), few, *arrays)[0]

    return lax.platform_dependent(*arrays, cpu=on_cpu, default=f)


def _window_sum(x, window):
    """Sums the neighbours of each element along the last axes; windows are clipped at both ends."""
    window = (1,) * (x.ndim - len(window)) + window
    # 0.0 as a Python scalar, for the same reason as in max_pool.
    return lax.reduce_window(x, 0.0, lax.add, window, (1,) * x.ndim, [(n // 2, n // 2) for n in window])


def _power(d, exponent):
    if exponent == -0.75:  # the paper's beta: square roots instead of exp and log
        root = lax.rsqrt(d)
        return root * lax.sqrt(root)
    return d**exponent


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
