"""The searches by FAISS: to the bit those without it, however float32 rounds and whichever equal codes FAISS finds."""

import contextlib
import sys

import apart
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alexnet_jax.inspection import codes, retrieve

faiss = pytest.importorskip("faiss", reason="FAISS is not installed; the extra `retrieval` brings it")
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="JAX does not compute on a CPU")

KINDS = ("random", "copies", "one", "zero", "far", "bfloat16", "long", "mixed")
SCALES = (1e-40, 1e-30, 1e-20, 1.0, 1e6, 1e18, 3e19, 1e38)


@contextlib.contextmanager
def products(always):
    """FAISS takes distances from products if there are many numbers, from differences if there are few; or always."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 0 if always else before
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def compared_with_all(queries, vectors, k):
    """The exact result, in the arithmetic of retrieve.nearest: every vector is a candidate."""
    everything = np.tile(np.arange(len(vectors)), (len(queries), 1))
    squares, indices = retrieve.among(queries, vectors, everything, min(k, len(vectors)))
    return np.sqrt(squares), indices


def assert_same(found, wanted):
    for array, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array, other)


def without_faiss(monkeypatch, search, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(retrieve, "faiss_on_cpu", lambda: False)
        return search(*arguments)


def some_vectors(kind, scale, n, width, seed):
    """Queries (5, width) and vectors (n, width); some queries are equal to vectors."""
    rng = np.random.default_rng(seed)
    vectors = np.clip(rng.standard_normal((n, width)), -3, 3)
    if kind == "copies":
        vectors = vectors[rng.integers(0, min(n, 4), n)]
    elif kind == "one":
        vectors[:] = vectors[0]
    elif kind == "zero":
        vectors[rng.random(n) < 0.8] = 0
    elif kind == "far":
        vectors = 1 + 1e-6 * vectors
    elif kind == "long":  # one vector is far longer than the others
        vectors[rng.integers(n)] *= 1e10 if scale < 1e20 else 1
    elif kind == "mixed":
        vectors *= 10.0 ** rng.integers(-8, 1, (n, 1))
    vectors = (scale * vectors).astype(jax.numpy.bfloat16 if kind == "bfloat16" else np.float32)
    queries = vectors[rng.integers(0, n, 5)].astype(np.float32)
    queries[3:] += np.float32(scale / 100) * rng.standard_normal((2, width), np.float32)
    return queries, vectors


@settings(max_examples=300)
@given(
    always=st.booleans(),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from(SCALES),
    n=st.integers(1, 300),
    width=st.integers(1, 40),
    k=st.integers(1, 320),
    seed=st.integers(0, 2**32),
)
@example(always=True, kind="random", scale=1.0, n=1, width=3, k=5, seed=0)
@example(always=True, kind="one", scale=1.0, n=300, width=8, k=20, seed=0)
def test_exact_search_is_to_the_bit_that_among_all_vectors(always, kind, scale, n, width, k, seed):
    queries, vectors = some_vectors(kind, scale, n, width, seed)
    with products(always), pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieve, "FAISS_BLOCK", 64)
        assert_same(retrieve.nearest(queries, vectors, k), compared_with_all(queries, vectors, k))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_search_is_to_the_bit_that_of_the_devices(monkeypatch, kind):
    queries, vectors = some_vectors(kind, 1.0, 700, 24, seed=1)
    wanted = without_faiss(monkeypatch, retrieve.nearest, queries, vectors, 9)
    assert_same(retrieve.nearest(queries, vectors, 9), wanted)


@pytest.mark.parametrize(("queries", "n"), [(1, 11_000), (32, 1000)])  # for FAISS few, and many
def test_wide_vectors_as_of_a_network(queries, n):
    rng = np.random.default_rng(2)
    vectors = np.maximum(rng.standard_normal((n, 4096), np.float32) - 1, 0)  # many zeros, as after relu7
    asked = vectors[:queries] + np.float32(0.1)
    assert_same(retrieve.nearest(asked, vectors, 10), compared_with_all(asked, vectors, 10))


def rounded_badly(queries, vectors, k):
    """As faiss.knn, but half of the distances are too large, by almost as much as rounding may make them."""
    queries, vectors = (rows.astype(np.float64) for rows in (queries, vectors))
    exact = np.square(queries[:, None] - vectors).sum(-1)
    lengths = np.sqrt(np.square(queries).sum(1))[:, None] + np.sqrt(np.square(vectors).sum(1))
    most = vectors.shape[1] * 2.0**-24 * np.square(lengths)
    rng = np.random.default_rng(len(vectors))
    wrong = (exact + most * rng.choice([0, 1], exact.shape)).astype(np.float32)
    places = np.argsort(wrong, axis=1)[:, :k]
    return np.take_along_axis(wrong, places, 1), places


def test_wrong_candidates_are_noticed_and_corrected(monkeypatch):
    rng = np.random.default_rng(3)
    vectors = np.float32(30) + 0.2 * rng.standard_normal((2000, 64)).astype(np.float32)
    queries = vectors[:20] + np.float32(0.01)
    wanted = compared_with_all(queries, vectors, 5)
    with products(always=True):
        assert (faiss.knn(queries, vectors, 5)[1] != wanted[1]).any()  # FAISS alone has other neighbours
    monkeypatch.setattr(faiss, "knn", rounded_badly)
    monkeypatch.setattr(retrieve, "FAISS_BLOCK", 300)
    bounds, found = retrieve.by_faiss(queries, vectors, 21)
    missed = [not set(row) <= set(own) for row, own in zip(wanted[1], found, strict=True)]
    assert any(missed)
    assert (np.square(wanted[0])[missed, -1] >= bounds[missed, -1]).all()
    assert_same(retrieve.nearest(queries, vectors, 5), wanted)
    monkeypatch.setattr(retrieve, "_rounding", lambda width: 0.0)  # nobody would notice without the bounds
    assert (retrieve.nearest(queries, vectors, 5)[1] != wanted[1]).any()


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("center", [None, 1])
def test_a_bound_is_never_above_the_distances_of_all_that_follow(center, always):
    queries, vectors = some_vectors("far", 1.0, 500, 300, seed=4)
    center = None if center is None else vectors[0]
    with products(always):
        bounds, found = retrieve.by_faiss(queries, vectors, 100, center)
    squares, order = compared_with_all(queries, vectors, 500)
    exact = np.take_along_axis(np.square(squares), np.argsort(order, 1), 1)  # by index
    for own, row, to_all in zip(bounds, found, exact, strict=True):
        left_out = np.delete(to_all, row).min()
        following = np.minimum.accumulate(np.append(to_all[row], left_out)[::-1])[::-1][:-1]
        assert (own <= following).all()


def brute_force(queries, stored, k):
    """Bits that differ, one by one, and indices; equal ones by index."""
    distances = np.bitwise_count(queries[:, None] ^ stored).sum(-1, dtype=np.int32)
    indices = np.argsort(distances, axis=1, stable=True)[:, :k].astype(np.int32)
    return np.take_along_axis(distances, indices, 1), indices


def some_codes(kinds, n, words, seed):
    """Three queries and n codes; of so many kinds that most are equal, or all by chance if kinds is 0."""
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (n, 4 * words), np.uint8)
    stored = stored[rng.integers(0, min(n, kinds), n)] if kinds else stored
    return np.concatenate([stored[:1], rng.integers(0, 256, (2, 4 * words), np.uint8)]), stored


@settings(max_examples=200)
@given(
    kinds=st.sampled_from([0, 0, 0, 30]),
    n=st.integers(1, 200),
    words=st.integers(1, 5),
    k=st.integers(1, 220),
    seed=st.integers(0, 2**32),
)
def test_codes_are_those_of_brute_force(kinds, n, words, k, seed):
    queries, stored = some_codes(kinds, n, words, seed)
    assert_same(codes.nearest(queries, stored, k), brute_force(queries, stored, k))


def last_of_equal_ones(queries, stored, k, variant):
    """As faiss.knn_hamming, but of equal codes the last ones are found, and come first."""
    distances, indices = brute_force(queries, stored[::-1], k)
    return distances, len(stored) - 1 - indices.astype(np.int64)


@pytest.mark.parametrize("kinds", [0, 1, 12, 200])
def test_whichever_equal_codes_faiss_finds_the_first_ones_are_returned(monkeypatch, kinds):
    queries, stored = some_codes(kinds, 3000, 1, seed=5)
    wanted = brute_force(queries, stored, 50)
    assert_same(without_faiss(monkeypatch, codes.nearest, queries, stored, 50), wanted)
    assert_same(codes.nearest(queries, stored, 50), wanted)
    monkeypatch.setattr(faiss, "knn_hamming", last_of_equal_ones)
    assert (faiss.knn_hamming(queries, stored, 50, "")[1] != wanted[1]).any()
    assert_same(codes.nearest(queries, stored, 50), wanted)


def test_many_queries_and_neighbours_are_searched_in_parts(monkeypatch):
    queries, stored = some_codes(0, 500, 2, seed=6)
    monkeypatch.setattr(codes, "_COUNTED", 1)
    assert_same(codes.nearest(queries, stored, 100), brute_force(queries, stored, 100))


def test_faiss_searches_where_it_is_installed_and_jax_computes_on_a_cpu(monkeypatch):
    assert retrieve.faiss_on_cpu()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert not retrieve.faiss_on_cpu()
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert not retrieve.faiss_on_cpu()


def test_faiss_is_imported_by_a_search_and_its_threads_and_those_of_jax_do_not_wait_for_each_other():
    """Searches and JAX's products in turn, in four threads at once; waiting for each other would never end."""
    apart.run(PROGRAM, 300)


PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import jax
import jax.numpy as jnp
import numpy as np
from alexnet_jax.inspection import codes, retrieve

assert "faiss" not in sys.modules
rng = np.random.default_rng(0)
vectors = rng.standard_normal((12_000, 200), np.float32)
stored = rng.integers(0, 256, (12_000, 16), np.uint8)
product = jax.jit(lambda x: jnp.sum(x @ x.T))

def work(_):
    found = [retrieve.nearest(vectors[:n], vectors, 3)[1][:, 0] for n in (1, 700)]
    total = float(product(vectors[:500]))
    return found, codes.nearest(stored[:100], stored, 9)[1][:, 0], total

with ThreadPoolExecutor(4) as pool:
    for found, of_codes, total in pool.map(work, range(12)):
        assert all((row == np.arange(len(row))).all() for row in found)
        assert (of_codes == np.arange(100)).all()
assert "faiss" in sys.modules
"""
