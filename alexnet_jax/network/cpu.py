"""The operations of the network, written for a CPU.

What XLA makes of the natural ways of `layers` is quick on accelerators, and slow on a CPU where these are used instead;
benchmarks/RESULTS.md has how much. Axes and letters are those of `layers`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

POINTS = (0, 1, -1, 1 / 2, -1 / 2)  # of Winograd's polynomials: small, which keeps rounding small, and exact
SIDES = range(2, len(POINTS) + 1)
"""The r that have enough points. A strided kernel counts in strides, rounded up: conv1's 11 / 4 is 3."""

_TILE = 2  # outputs on a side of a tile; 4 would take points that cost digits


def few_at_once(f, few, *arrays):
    """f(*arrays), of so many images at a time, or fewer, that what it makes on its way stays in the cache.

    Args:
      f: takes arrays (n, ...) whose rows are images; returns a tree of the same kind, and a tree of arrays to be
        added up over all images.
      few: an n that fits the cache.
      arrays: (N, ...).

    Returns:
      What f returns, of all N images.
    """
    n = arrays[0].shape[0]
    if not isinstance(n, int):  # the N of an export, which stands for any
        return f(*arrays)
    few = max(k for k in range(1, n + 1) if n % k == 0 and k <= max(few, 1))
    rows, sums = jax.eval_shape(f, *(jax.ShapeDtypeStruct((few, *a.shape[1:]), a.dtype) for a in arrays))
    # Filled with a number of what came last, as XLA would make room for constants early, for all that is to come.
    any_number = arrays[-1].reshape(-1)[0]
    rows = jax.tree.map(lambda a: jnp.full((n, *a.shape[1:]), any_number, a.dtype), rows)
    sums = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sums)

    def step(k, so_far):
        part = f(*(lax.dynamic_slice_in_dim(a, k * few, few) for a in arrays))
        rows = jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, k * few, 0), so_far[0], part[0])
        return rows, jax.tree.map(jnp.add, so_far[1], part[1])

    return lax.fori_loop(0, n // few, step, (rows, sums))


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A way to convolve: layers.convolution is of_images(x, prepared(kernel)), of a few images at a time.

    Attributes:
      few: how many images at a time fit the cache.
      prepared: takes the kernel (h, w, C, O) to what of_images needs of it, a tree of arrays.
      of_images: takes (n, H, W, C) and that to (n, H', W', O).
    """

    few: int
    prepared: Callable
    of_images: Callable

    def __call__(self, x, kernel):
        """(N, H, W, C) and (h, w, C, O) -> (N, H', W', O)."""
        kernel = self.prepared(kernel)
        return few_at_once(lambda x: (self.of_images(x, kernel), ()), self.few, x)[0]

    def gradients(self, x, kernel, g):
        """With respect to x and kernel, for g (N, H', W', O)."""
        kernel, pull = jax.vjp(self.prepared, kernel)
        # What f makes on its way is made once more: to keep it would take many times the memory of the images.
        dx, dkernel = few_at_once(lambda x, g: jax.vjp(self.of_images, x, kernel)[1](g), self.few, x, g)
        return dx, *pull(dkernel)


def convolution_for(x, kernel, stride, padding):
    """The quickest Convolution for arguments as layers.convolution's, or None, by XLA's own way.

    The limits are where each became the quickest in the networks of `networks`. Narrow types are left alone: they
    would lose too much to rounding.
    """
    if x.dtype.itemsize < 4:
        return None
    h, w, maps, outputs = kernel.shape
    high, wide = _sides(x, kernel, stride, padding)
    if h * x.shape[2] * maps * wide * outputs <= 100_000:  # numbers in the matrix
        return by_rows(x, kernel, stride, padding)
    large = (stride > 1 or kernel.size > 100_000) and min(high, wide) > 3 * _TILE
    return by_tiles(x, kernel, stride, padding) if large and h == w and -(-h // stride) in SIDES else None


def _sides(x, kernel, stride, padding):
    """Of what layers.convolution returns: (H', W')."""
    return [(side + sum(padding) - k) // stride + 1 for side, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)]


def by_rows(x, kernel, stride, padding):
    """A whole row of outputs at a time, by one matrix product: a Convolution for arrays of these shapes.

    The matrix is the kernel's, once for each output of the row, each time `stride` pixels further on; most of it is
    zeros. That is still quicker than to go from pixel to pixel where the maps are few and small, as LeNet's.
    """
    h, w, maps, outputs = kernel.shape
    high, wide = _sides(x, kernel, stride, padding)
    down = stride * (high - 1) + 1
    places = np.zeros((w, stride * (wide - 1) + w, wide), x.dtype)  # of a weight, in the padded row, for an output
    for j in range(w):
        places[j, j + stride * np.arange(wide), np.arange(wide)] = 1
    places = places[:, padding[0] :][:, : x.shape[2]]

    def prepared(kernel):
        return jnp.einsum("hwco,wij->hicjo", kernel, places).reshape(-1, wide * outputs)

    def of_images(x, matrix):
        rows = jnp.pad(x.reshape(*x.shape[:2], -1), [(0, 0), padding, (0, 0)])
        seen = jnp.concatenate([rows[:, i : i + down : stride, : places.shape[1] * maps] for i in range(h)], -1)
        return (seen @ matrix).reshape(-1, high, wide, outputs)

    return Convolution(2**22 // (high * h * x.shape[2] * maps), prepared, of_images)


def by_tiles(x, kernel, stride, padding):
    """With fewer multiplications (Winograd 1980; Lavin and Gray 2016): a Convolution for arrays of these shapes.

    Two neighbouring outputs of a row of r weights take 2 r multiplications; by way of polynomials r + 1 are enough, and
    in the plane (r + 1)^2 instead of 4 r^2 for a tile of 2 x 2 outputs: 16 instead of 36 if the kernel is 3 x 3. The
    product of two polynomials follows from their values at r points and at infinity; transposed, that is a row of
    outputs, and

        Y = A' [(G g G') * (B' d B)] A    tile d of (r + 1)^2 inputs, kernel g; * element by element, ' transposes

    With the sums over maps, each of the (r + 1)^2 elements is a matrix product over the tiles of many images. A
    strided convolution is one of stride 1, whose maps are the pixels of a block of stride x stride.

    It adds in another order than the sum as written, and what it adds is larger: in float32 it is off by some 1e-6 of
    the largest number for r = 3, and 5e-6 (the gradient of the kernel: 1.6e-5) for r = 5.

    For kernels (h, h, C, O) with r = h / stride, rounded up, in SIDES.
    """
    h = len(kernel)
    r = -(-h // stride)
    sides = _sides(x, kernel, stride, padding)
    high, wide = (-(-side // _TILE) for side in sides)  # in tiles
    seen = [stride * (_TILE * tiles + r - 1) for tiles in (high, wide)]  # by all tiles, in pixels
    edges = [(padding[0], after - padding[0] - side, 0) for after, side in zip(seen, x.shape[1:3], strict=True)]

    def prepared(kernel):
        kernel = jnp.pad(kernel, [(0, r * stride - h)] * 2 + [(0, 0)] * 2)
        return _kernel_at_points(_in_blocks(kernel[None], stride)[0])

    def of_images(x, g):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        return _tiles(_in_blocks(x, stride), g, high, wide)[:, : sides[0], : sides[1]]

    return Convolution(600 // (high * wide), prepared, of_images)


def _in_blocks(x, stride):
    """Makes maps of the pixels of each block: (N, H s, W s, C, ...) -> (N, H, W, s s C, ...)."""
    n, high, wide, maps, *rest = x.shape
    x = x.reshape(n, high // stride, stride, wide // stride, stride, maps, *rest).swapaxes(2, 3)
    return x.reshape(n, high // stride, wide // stride, stride**2 * maps, *rest)


def _kernel_at_points(kernel):
    """G g G': (r, r, C, O) -> rows of columns of (C, O)."""
    _, values, _ = _matrices(len(kernel))
    g = jnp.einsum("ia,jb,abco->ijco", values, values, kernel).astype(kernel.dtype)
    return [list(row) for row in g]  # one array each, whose gradients add up without the others


def _tiles(x, g, high, wide):
    """(N, 2 high + r - 1, 2 wide + r - 1, C) and the kernel at points -> (N, 2 high, 2 wide, O)."""
    values, _, outputs = _matrices(len(g) - 1)
    starts = range(len(g))
    rows = _combine(values, [x[:, i : i + _TILE * (high - 1) + 1 : _TILE] for i in starts])
    d = [_combine(values, [row[:, :, j : j + _TILE * (wide - 1) + 1 : _TILE] for j in starts]) for row in rows]

    def product(tile, kernel):
        return (tile.reshape(-1, tile.shape[-1]) @ kernel).reshape(*tile.shape[:-1], kernel.shape[-1])

    products = [[product(*pair) for pair in zip(*rows, strict=True)] for rows in zip(d, g, strict=True)]
    columns = zip(*(_combine(outputs, row) for row in products), strict=True)
    y = [_combine(outputs, column) for column in columns]  # [right in the tile][down in the tile]
    y = jnp.stack([jnp.stack(row, axis=3) for row in zip(*y, strict=True)], axis=2)
    return y.reshape(x.shape[0], _TILE * high, _TILE * wide, y.shape[-1])


def _combine(matrix, column):
    """The matrix times a column of arrays, without its zeros and ones."""
    return [sum(a if c == 1 else c * a for c, a in zip(row, column, strict=True) if c) for row in matrix.tolist()]


@functools.cache
def _matrices(r):
    """B' (r + 1, r + 1), G (r + 1, r) and A' (2, r + 1) in float64."""
    points = np.array(POINTS[:r])
    others = [np.delete(points, i) for i in range(r)]

    def powers(count):
        return np.vstack([points[:, None] ** np.arange(count), np.eye(count)[-1:]])  # infinity is the last

    lagrange = np.array([*([*np.poly(other)[::-1], 0] for other in others), np.poly(points)[::-1]])
    scale = np.array([*(np.prod(point - other) for point, other in zip(points, others, strict=True)), 1])
    return lagrange, powers(r) / scale[:, None], powers(_TILE).T


def numbers(size):
    """The type of the number of a pixel in a window of size x size, and of one more."""
    return np.min_scalar_type(size * size)


def first_maxima(x, y, size, stride, padding):
    """The number in its window of the first pixel that is a maximum: (N, H', W', C) unsigned integers.

    XLA's own gradient of a max pool goes from window to window, and takes many times as long.

    Args:
      x: (N, H, W, C), what is pooled. y: (N, H', W', C), its maxima.
      size, stride: as in layers.max_pool. padding: of each axis, (before, after), in pixels that are no maximum.
    """
    x = lax.pad(x, jnp.full((), -jnp.inf, x.dtype), [(*edges, 0) for edges in padding])
    down, right = (stride * (side - 1) + 1 for side in y.shape[1:3])  # from one window's pixel to the last one's
    first = jnp.zeros(y.shape)  # as float32: to select integers takes twice as long
    for k in reversed(range(size * size)):
        i, j = divmod(k, size)
        first = jnp.where(x[:, i : i + down : stride, j : j + right : stride] == y, k, first)
    return first.astype(numbers(size))


def to_the_maxima(first, g, shape, size, stride):
    """The gradient of a max pool with respect to its input of that shape.

    The pixels (i, j) of all windows whose i and j are the same modulo the stride are a grid of their own: each pixel
    of it adds up what it gets from the windows around.
    """
    n, high, wide, maps = g.shape
    around = (size - 1) // stride  # windows that begin above or left of a pixel's own and reach it
    edges = [(0, 0, 0), (around, around, 0), (around, around, 0), (0, 0, 0)]
    first, g = lax.pad(first, first.dtype.type(size * size), edges), lax.pad(g, jnp.zeros((), g.dtype), edges)

    def grid(u, v):
        dx = jnp.zeros((n, high + around, wide + around, maps), g.dtype)
        for i in range(u, size, stride):
            for j in range(v, size, stride):
                down, right = around - i // stride, around - j // stride
                window = slice(None), slice(down, down + high + around), slice(right, right + wide + around)
                dx += jnp.where(first[window] == i * size + j, g[window], 0)
        return dx

    dx = jnp.stack([jnp.stack([grid(u, v) for v in range(stride)], axis=3) for u in range(stride)], axis=2)
    dx = dx.reshape(n, stride * (high + around), stride * (wide + around), maps)
    edges = [(0, side - found, 0) for side, found in zip(shape[1:3], dx.shape[1:3], strict=True)]
    return lax.pad(dx, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
