"""Exact nearest neighbours (paper, section 6.1) on all devices of this machine; vectors may be larger than memory."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from alexnet_jax import hosts

# Vectors that are sent to the devices at a time. They are so few that a CPU can use the memory of their scores again.
BLOCK = 2**12
QUERIES = 2**11  # queries at a time: their scores for a block are 34 MB
# Vectors that FAISS gets at a time. From 10,000 on, it uses all cores for their lengths, and for a single query.
FAISS_BLOCK = 2**14

_GROUP = 32  # neighbouring scores; the smallest of each group is examined first
_SPARE = 16  # number of candidates minus number of neighbours
_PART = 2**8  # vectors that are compared in float64 at a time


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest vectors by Euclidean distance, exactly, in float64; of equal ones, the lower index is first.

    A first pass in float32, by FAISS or by the devices, finds candidates and a lower bound for each distance: what
    float32 gives, minus the largest possible rounding error. The distances of the candidates are then computed from
    differences in float64. All other vectors are farther away than the last candidate's bound. If the k-th neighbour of
    a query is not nearer than that bound, because many vectors are equally near, the query is repeated with four times
    as many candidates. The mean of the repeated queries is then subtracted from q and x, which makes the rounding
    errors smaller if all vectors are alike.

    This is exact if float32 products are added in float32, in any order, and nothing overflows.

    Args:
      queries: (Q, D) float32, finite.
      vectors: (N, D) float32 or bfloat16, finite: anything that can be sliced like a NumPy array, such as a
        memory-mapped file. They are read in blocks; while the devices compare one block, the next one is sent.
      k: number of neighbours; if N is smaller, N.

    Returns:
      Distances (Q, k) float64, in rising order, and indices (Q, k) int64.
    """
    count, k = len(vectors), min(k, len(vectors))
    squares, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    unsure, candidates, center = np.arange(len(queries)), min(k + _SPARE, count), None
    first_pass = by_faiss if faiss_on_cpu() else by_devices
    while len(unsure):
        asked = queries[unsure]
        bounds, found = first_pass(asked, vectors, candidates, center)
        squares[unsure], indices[unsure] = among(asked, vectors, found, k, bounds)
        unsure = unsure[(squares[unsure, -1] >= bounds[:, -1]) & (candidates < count)]
        candidates = min(4 * candidates, count)
        if len(unsure):
            center = queries[unsure].mean(0, dtype=np.float64).astype(np.float32)
    return np.sqrt(squares), indices


def faiss_on_cpu() -> bool:
    """Returns whether FAISS searches: it is installed, and JAX computes on a CPU, where FAISS is faster than JAX."""
    if jax.default_backend() != "cpu":
        return False
    try:
        import faiss  # noqa: F401 - only here, because few need it
    except ModuleNotFoundError:
        return False
    return True


def by_faiss(
    queries: np.ndarray, vectors: np.ndarray, k: int, center: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k vectors with the smallest distances that FAISS computes in float32, and bounds for the true ones.

    FAISS takes |q - x|^2 from differences, or from |q|^2 + |x|^2 - 2 q.x, which cancel. Either way its error is at most
    _rounding(D) (|q| + |x|)^2. The length of a vector that was left out is not known. But let T be FAISS's value for a
    candidate, and x a vector for which FAISS found T or more. Then |q - x|^2 is T or more, which needs no bound, or
    |x| < |q| + sqrt(T), and its error is at most _rounding(D) (2 |q| + sqrt(T))^2.

    Args:
      queries, vectors: as in nearest.
      k: number of candidates, at most N.
      center: (D,) float32, which is first subtracted from q and x, or None.

    Returns:
      Lower bounds (Q, k) float64, the j-th for the squared distances of the j-th candidate and of all that follow it or
      were left out; and the indices of the candidates (Q, k) int64.
    """
    import faiss

    def moved(rows):
        with np.errstate(over="ignore"):
            return rows if center is None else rows - center

    best, asked = faiss.ResultHeap(len(queries), k), moved(queries)
    for start in range(0, len(vectors), FAISS_BLOCK):
        block = np.asarray(vectors[start : start + FAISS_BLOCK]).astype(np.float32, copy=False)
        squares, places = faiss.knn(asked, moved(block), min(k, len(block)))
        best.add_result(squares, places + start)
    best.finalize()
    squares, found = best.D.astype(np.float64), best.I
    lengths = np.sqrt(np.square(moved(queries.astype(np.float64))).sum(1, keepdims=True))
    spans = np.square(2 * lengths + np.sqrt(squares))
    width, largest, tiny = queries.shape[1], np.finfo(np.float32).max, np.finfo(np.float32).tiny
    bounds = squares - _rounding(width) * spans - 8 * width * tiny  # the last term as in lower_bounds
    # Nothing is known of values that overflow; FAISS leaves them out. So all vectors become candidates in the end.
    missing = (found < 0).any(1, keepdims=True)
    bounds[missing | ~(spans < largest / 2)] = -np.inf
    return bounds, np.where(missing, np.arange(k), found)


def by_devices(
    queries: np.ndarray, vectors: np.ndarray, k: int, center: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As by_faiss, but candidates are the k vectors with the smallest bounds, which the devices compute."""
    score = Partial(lower_bounds) if center is None else Partial(lower_bounds, center=jnp.asarray(center))
    bounds, found = least(score, queries, vectors, k, BLOCK)
    center = np.float64(0) if center is None else center.astype(np.float64)
    return bounds + np.square(queries - center).sum(1, keepdims=True), found  # of |q - x|^2


def among(
    queries: np.ndarray, vectors: np.ndarray, candidates: np.ndarray, k: int, bounds: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest of some candidates, by differences in float64; of equal ones, the lower index is first.

    Args:
      queries, vectors: as in nearest.
      candidates: (Q, C) integers, the indices of each query's candidates; C is k or more.
      k: number of neighbours.
      bounds: (Q, C) lower bounds of the candidates' squared distances, or None. With bounds, a candidate after the
        first k is only read if its bound is not above the largest distance of the first k.

    Returns:
      Squared distances (Q, k) float64 and indices (Q, k) int64.
    """

    def of_query(query, own, bounds):
        query, own = query.astype(np.float64), own.astype(np.int64)
        squares = _squared_distances(query, vectors, own[:k])
        more = own[k:] if bounds is None else own[k:][bounds[k:] <= squares.max()]
        own, squares = np.append(own[:k], more), np.append(squares, _squared_distances(query, vectors, more))
        order = np.lexsort((own, squares))[:k]
        return squares[order], own[order]

    with ThreadPoolExecutor(hosts.cores()) as pool:
        bounds = [None] * len(queries) if bounds is None else bounds
        squares, indices = zip(*pool.map(of_query, queries, candidates, bounds), strict=True)
    return np.stack(squares), np.stack(indices)


def _squared_distances(query, vectors, indices):
    """Squared distances from a float64 query to some vectors; only a few vectors are in memory at a time."""
    squares = np.empty(len(indices))
    for start in range(0, len(indices), _PART):
        differences = vectors[indices[start : start + _PART]] - query
        # In one operation, because a sum of squares would first write all squares to memory.
        squares[start : start + _PART] = np.einsum("ij,ij->i", differences, differences)
    return squares


def lower_bounds(queries, vectors, center=None):
    """Lower bounds of |x|^2 - 2 q.x, in float32; a center, if given, is first subtracted from q and x.

    The sum of the absolute values of the products is at most |q| |x|; see _rounding. The last term is for products that
    are too small for float32.

    Args:
      queries: (Q, D) float32.
      vectors: (B, D) float32 or bfloat16.
      center: (D,) float32, or None for 0.

    Returns:
      (Q, B) float32.
    """
    width = queries.shape[1]
    vectors = vectors.astype(jnp.float32)
    if center is not None:
        queries, vectors = queries - center, vectors - center
    products = jnp.einsum("qd,bd->qb", queries, vectors, precision=lax.Precision.HIGHEST)
    of_queries, of_vectors = (jnp.square(rows).sum(1) for rows in (queries, vectors))
    lengths = jnp.sqrt(of_queries)[:, None] * jnp.sqrt(of_vectors)  # (Q, B)
    slack = _rounding(width) * (of_vectors + 2 * lengths) + 8 * width * jnp.finfo(jnp.float32).tiny
    return of_vectors - 2 * products - slack


def _rounding(width):
    """How much float32 changes a sum of `width` products at most, relative to the sum of their absolute values.

    Rounding changes a sum of D products, added in any order, by at most D u / (1 - D u) times the sum of their absolute
    values, with u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Sixteen more roundings
    are allowed, for the steps around the sum; subtracting a center takes up to four of them.
    """
    relative = (width + 16) * 2.0**-24
    return relative / (1 - 2 * relative)


def least(score: Partial, queries: np.ndarray, rows: np.ndarray, k: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows with the smallest scores for each query; of equal ones, the lower index is first.

    The rows are read in blocks, and all devices share each block.

    Args:
      score: a jax.tree_util.Partial that takes queries (Q, D) and rows (B, D); it returns (Q, B) float32, finite.
      queries: (Q, D).
      rows: (N, D), anything that can be sliced like a NumPy array.
      k: number of rows, at most N.
      block: number of rows at a time.

    Returns:
      Scores (Q, k) float32, in rising order, and indices (Q, k) int32.
    """
    mesh = Mesh(np.array(jax.devices()), "data")
    parts = [queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES)]
    scores, indices = zip(*(_through_blocks(score, part, rows, k, block, mesh) for part in parts), strict=True)
    return np.concatenate(scores), np.concatenate(indices)


def _through_blocks(score, queries, rows, k, block, mesh):
    step = mesh.size * _GROUP
    size = -(-len(rows) // -(-len(rows) // block))  # blocks of equal size, so that the last one has little padding
    size += -size % step
    best = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int32)
    best, queries = jax.device_put((best, queries), NamedSharding(mesh, P()))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        here = len(part)
        if here < size:
            part = np.concatenate([part, np.zeros((size - here, part.shape[1]), part.dtype)])
        part = jax.device_put(part, NamedSharding(mesh, P("data")))
        before, found = best, _least_of_block(queries, part, here, score=score, k=k, mesh=mesh)
        best = _merge(before, found, start)
        jax.block_until_ready(before)  # while the devices work on one block, the next one is sent
    return jax.device_get(best)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _least_of_block(queries, block, here, *, score, k, mesh):
    """The k smallest scores of a block's first `here` rows, in rising order, and their places; fewer if k is larger."""

    def on_device(queries, rows, here):
        place = lax.axis_index("data") * len(rows) + jnp.arange(len(rows))
        scores = jnp.where(place < here, score(queries, rows), jnp.inf)  # (Q, B)
        scores, places = _least_of_rows(scores, min(k, len(rows)))
        return lax.all_gather((scores, place[places]), "data", axis=1, tiled=True)

    specs = {"in_specs": (P(), P("data"), P()), "out_specs": P()}
    scores, places = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)(queries, block, here)
    return _take_least(scores, places, min(k, len(block)))


def _least_of_rows(scores, k):
    """The k smallest values in each row, and their places; of equal values, the lower place is first.

    They are in the k groups with the smallest minima (of equal minima, the first groups). Finding these groups first
    saves most of the sorting.
    """
    groups = scores.reshape(len(scores), -1, _GROUP)  # (Q, B / 32, 32)
    if k >= groups.shape[1]:
        return _take_least(scores, jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape), k)
    _, chosen = lax.top_k(-groups.min(-1), k)
    chosen = jnp.sort(chosen)  # (Q, k)
    members = jnp.take_along_axis(groups, chosen[..., None], 1)  # (Q, k, 32)
    places = chosen[..., None] * _GROUP + jnp.arange(_GROUP)
    return _take_least(members.reshape(len(scores), -1), places.reshape(len(scores), -1), k)


@jax.jit
def _merge(best, found, start):
    scores, places = found
    k = best[0].shape[1]
    return _take_least(jnp.concatenate([best[0], scores], 1), jnp.concatenate([best[1], places + start], 1), k)


def _take_least(scores, places, k):
    negated, chosen = lax.top_k(-scores, k)  # top_k takes the first of equal values
    return -negated, jnp.take_along_axis(places, chosen, 1)
