"""The operations of the network, written for a CPU.

XLA makes fast programs from the direct forms in `layers` on accelerators, but slow ones on a CPU. On a CPU the
functions here are used instead; benchmarks/RESULTS.md has the speeds. Axes and letters are those of `layers`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

POINTS = (0, 1, -1, 1 / 2, -1 / 2)  # of Winograd's polynomials: exact, and small, so that rounding errors are small
SIDES = range(2, len(POINTS) + 1)
"""The values of r that have enough points. r is the side of a kernel in strides, rounded up: conv1's 11 / 4 gives 3."""

_TILE = 2  # side of a tile, in outputs; 4 would need points that cost accuracy


def few_at_once(f, few, *arrays):
    """Computes f(*arrays) for a few images at a time, so that its intermediate results stay in the cache.

    Args:
      f: takes arrays (n, ...) whose rows are images. Returns a pair: a tree of such arrays, and a tree of arrays
        that are added up over all images.
      few: how many images fit in the cache; n is the largest divisor of N up to this number.
      arrays: (N, ...).

    Returns:
      What f returns for all N images.
    """
    n = arrays[0].shape[0]
    if not isinstance(n, int):  # in an export N is a symbol for any number
        return f(*arrays)
    few = max(k for k in range(1, n + 1) if n % k == 0 and k <= max(few, 1))
    rows, sums = jax.eval_shape(f, *(jax.ShapeDtypeStruct((few, *a.shape[1:]), a.dtype) for a in arrays))
    # Filled with a number from the last array: XLA would reserve memory for constants at the start of the program,
    # for all calls at once.
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
    """A way to convolve: layers.convolution is of_images(x, prepared(kernel)), for a few images at a time.

    Attributes:
      few: how many images fit in the cache at a time.
      prepared: takes the kernel (h, w, C, O); returns what of_images needs of it, a tree of arrays.
      of_images: takes (n, H, W, C) and that tree; returns (n, H', W', O).
    """

    few: int
    prepared: Callable
    of_images: Callable

    def __call__(self, x, kernel):
        """(N, H, W, C) and (h, w, C, O) -> (N, H', W', O)."""
        kernel = self.prepared(kernel)
        return few_at_once(lambda x: (self.of_images(x, kernel), ()), self.few, x)[0]

    def gradients(self, x, kernel, g):
        """The gradients with respect to x and kernel; g (N, H', W', O) is the gradient with respect to the result."""
        kernel, pull = jax.vjp(self.prepared, kernel)
        # Intermediate results are computed again: keeping them would take many times the memory of the images.
        dx, dkernel = few_at_once(lambda x, g: jax.vjp(self.of_images, x, kernel)[1](g), self.few, x, g)
        return dx, *pull(dkernel)


def convolution_for(x, kernel, stride, padding):
    """The fastest Convolution for these arguments of layers.convolution; None if XLA's own way is the fastest.

    The limits come from timings of the networks in `networks`. Types narrower than float32 always use XLA's own way:
    they would lose too much to rounding.
    """
    if x.dtype.itemsize < 4:
        return None
    h, w, maps, outputs = kernel.shape
    high, wide = _sides(x, kernel, stride, padding)
    if h * x.shape[2] * maps * wide * outputs <= 100_000:  # size of the matrix in by_rows
        return by_rows(x, kernel, stride, padding)
    large = (stride > 1 or kernel.size > 150_000) and min(high, wide) > 3 * _TILE
    return by_tiles(x, kernel, stride, padding) if large and h == w and -(-h // stride) in SIDES else None


def _sides(x, kernel, stride, padding):
    """The height and width (H', W') of the result of layers.convolution."""
    return [(side + sum(padding) - k) // stride + 1 for side, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)]


def by_rows(x, kernel, stride, padding):
    """A Convolution, for arrays of these shapes, that computes a whole row of outputs with one matrix product.

    The matrix contains the kernel once for each output of the row, shifted by `stride` pixels each time. Most of its
    numbers are zero. This is still faster than working pixel by pixel where maps are few and small, as in LeNet-5.
    """
    h, w, maps, outputs = kernel.shape
    high, wide = _sides(x, kernel, stride, padding)
    down = stride * (high - 1) + 1
    places = np.zeros((w, stride * (wide - 1) + w, wide), x.dtype)  # [weight, pixel in the padded row, output]
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
    """A Convolution, for arrays of these shapes, with fewer multiplications (Winograd 1980; Lavin and Gray 2016).

    With r weights in a row, two neighbouring outputs take 2 r multiplications; by way of polynomials, they take r + 1.
    In two dimensions, a tile of 2 x 2 outputs takes (r + 1)^2 instead of 4 r^2: 16 instead of 36 for a 3 x 3 kernel.
    The product of two polynomials follows from their values at r points and at infinity. The transpose of this method
    gives a row of outputs, and for a tile:

        Y = A' [(G g G') * (B' d B)] A    tile d of (r + 1)^2 inputs, kernel g; * element by element, ' transposes

    With the sums over maps, each of the (r + 1)^2 elements is a matrix product over the tiles of many images. A
    strided convolution is computed as one of stride 1, whose maps are the pixels of a block of stride x stride.

    The order of the additions differs from the direct sum, and the numbers added are larger. In float32 the error is
    about 1e-6 of the largest number for r = 3, and 5e-6 (the gradient of the kernel: 1.6e-5) for r = 5.

    For kernels (h, h, C, O) with r = h / stride, rounded up, in SIDES.
    """
    h = len(kernel)
    r = -(-h // stride)
    sides = _sides(x, kernel, stride, padding)
    high, wide = (-(-side // _TILE) for side in sides)  # in tiles
    seen = [stride * (_TILE * tiles + r - 1) for tiles in (high, wide)]  # in pixels, by all tiles together
    edges = [(padding[0], after - padding[0] - side, 0) for after, side in zip(seen, x.shape[1:3], strict=True)]

    def prepared(kernel):
        kernel = jnp.pad(kernel, [(0, r * stride - h)] * 2 + [(0, 0)] * 2)
        return _kernel_at_points(_in_blocks(kernel[None], stride)[0])

    def of_images(x, g):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        return _tiles(_in_blocks(x, stride), g, high, wide)[:, : sides[0], : sides[1]]

    return Convolution(600 // (high * wide), prepared, of_images)


def _in_blocks(x, stride):
    """Turns the pixels of each block into maps: (N, H s, W s, C, ...) -> (N, H, W, s s C, ...)."""
    n, high, wide, maps, *rest = x.shape
    x = x.reshape(n, high // stride, stride, wide // stride, stride, maps, *rest).swapaxes(2, 3)
    return x.reshape(n, high // stride, wide // stride, stride**2 * maps, *rest)


def _kernel_at_points(kernel):
    """Computes G g G': (r, r, C, O) -> a list of r + 1 rows, each a list of r + 1 arrays (C, O)."""
    _, values, _ = _matrices(len(kernel))
    values = values.astype(kernel.dtype)  # a new array: JAX would go on with its float32 copy of the old one
    g = jnp.einsum("ia,jb,abco->ijco", values, values, kernel)
    return [list(row) for row in g]  # one array for each element, so that each adds up its own gradient


def _tiles(x, g, high, wide):
    """Convolves (N, 2 high + r - 1, 2 wide + r - 1, C) with the kernel at points -> (N, 2 high, 2 wide, O)."""
    values, _, outputs = _matrices(len(g) - 1)
    starts = range(len(g))
    rows = _combine(values, [x[:, i : i + _TILE * (high - 1) + 1 : _TILE] for i in starts])
    d = [_combine(values, [row[:, :, j : j + _TILE * (wide - 1) + 1 : _TILE] for j in starts]) for row in rows]

    def product(tile, kernel):
        return (tile.reshape(-1, tile.shape[-1]) @ kernel).reshape(*tile.shape[:-1], kernel.shape[-1])

    products = [[product(*pair) for pair in zip(*rows, strict=True)] for rows in zip(d, g, strict=True)]
    columns = zip(*(_combine(outputs, row) for row in products), strict=True)
    y = [_combine(outputs, column) for column in columns]  # [column in the tile][row in the tile]
    y = jnp.stack([jnp.stack(row, axis=3) for row in zip(*y, strict=True)], axis=2)
    return y.reshape(x.shape[0], _TILE * high, _TILE * wide, y.shape[-1])


def _combine(matrix, column):
    """Multiplies the matrix by a column of arrays; skips zeros, and does not multiply by ones."""
    return [sum(a if c == 1 else c * a for c, a in zip(row, column, strict=True) if c) for row in matrix.tolist()]


@functools.cache
def _matrices(r):
    """B' (r + 1, r + 1), G (r + 1, r) and A' (2, r + 1) in float64."""
    points = np.array(POINTS[:r])
    others = [np.delete(points, i) for i in range(r)]

    def powers(count):
        return np.vstack([points[:, None] ** np.arange(count), np.eye(count)[-1:]])  # the last row is for infinity

    lagrange = np.array([*([*np.poly(other)[::-1], 0] for other in others), np.poly(points)[::-1]])
    scale = np.array([*(np.prod(point - other) for point, other in zip(points, others, strict=True)), 1])
    return lagrange, powers(r) / scale[:, None], powers(_TILE).T


def numbers(size):
    """The smallest unsigned integer type for the pixel numbers of a size x size window, and for one more number."""
    return np.min_scalar_type(size * size)


def first_maxima(x, y, size, stride, padding):
    """The number, within its window, of the first pixel that is a maximum: (N, H', W', C) unsigned integers.

    XLA's own gradient of a max pool handles one window after another, and takes many times as long.

    Args:
      x: (N, H, W, C), the input of the pool. y: (N, H', W', C), its maxima.
      size, stride: as in layers.max_pool. padding: (before, after) for each axis, in pixels; these are never a maximum.
    """
    x = lax.pad(x, jnp.full((), -jnp.inf, x.dtype), [(*edges, 0) for edges in padding])
    down, right = (stride * (side - 1) + 1 for side in y.shape[1:3])  # from the first window's pixel to the last's
    first = jnp.zeros(y.shape)  # as float32, because selecting integers takes twice as long
    for k in reversed(range(size * size)):
        i, j = divmod(k, size)
        first = jnp.where(x[:, i : i + down : stride, j : j + right : stride] == y, k, first)
    return first.astype(numbers(size))


def to_the_maxima(first, g, shape, size, stride):
    """The gradient of a max pool with respect to its input, which has the given shape.

    The pixels are divided into grids: pixels (i, j) of a window whose i and j are the same modulo the stride belong to
    the same grid. In a grid, each pixel adds up what it gets from the windows around it.
    """
    n, high, wide, maps = g.shape
    around = (size - 1) // stride  # windows above, or to the left, that also reach a pixel
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
