"""Nearest neighbours, by eight devices and by FAISS: to the index those of float64 brute force, for any vectors."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.inspection import retrieve


def brute_force(queries, vectors, k):
    """Distances and indices by float64, ties by the lower index."""
    squares = np.stack([np.square(vectors.astype(np.float64) - query).sum(1) for query in queries.astype(np.float64)])
    indices = np.argsort(squares, axis=1, stable=True)[:, :k]
    return np.sqrt(np.take_along_axis(squares, indices, 1)), indices


def check(queries, vectors, k):
    distances, indices = retrieve.nearest(queries, vectors, k)
    wanted, places = brute_force(queries, vectors, k)
    np.testing.assert_array_equal(indices, places)
    np.testing.assert_allclose(distances, wanted, rtol=1e-12)


@pytest.fixture(params=["devices", "faiss"], scope="module")
def first_pass(request):
    """Searches by the devices, and by FAISS where that is what a search does."""
    if request.param == "faiss" and not retrieve.faiss_on_cpu():
        pytest.skip("FAISS is not installed (the extra `retrieval` brings it), or JAX does not compute on a CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieve, "faiss_on_cpu", lambda: request.param == "faiss")
        yield


@pytest.fixture
def small_blocks(first_pass, monkeypatch):
    """Many blocks of few vectors, and few queries at a time."""
    monkeypatch.setattr(retrieve, "BLOCK", 512)
    monkeypatch.setattr(retrieve, "FAISS_BLOCK", 512)
    monkeypatch.setattr(retrieve, "QUERIES", 7)


@pytest.mark.devices
@pytest.mark.parametrize("n", [1, 9, 512, 2000])
@pytest.mark.parametrize("k", [1, 10])
def test_random_vectors(small_blocks, n, k):
    rng = np.random.default_rng(n)
    check(rng.standard_normal((17, 40), np.float32), rng.standard_normal((n, 40), np.float32), k)


@pytest.mark.devices
def test_neighbours_that_float32_cannot_tell_apart_are_told_apart(small_blocks):
    """A thousand vectors a millionth of their length apart: |x|^2 - 2 q.x in float32 has nothing left to say."""
    rng = np.random.default_rng(0)
    vectors = np.float32(100) + 1e-4 * rng.standard_normal((1000, 64)).astype(np.float32)
    queries = vectors[:5]
    naive = np.square(vectors).sum(1) - 2 * queries @ vectors.T
    assert (np.argsort(naive, 1)[:, :10] != brute_force(queries, vectors, 10)[1]).any()
    check(queries, vectors, 10)


@pytest.mark.devices
def test_equal_vectors_come_by_index_even_if_they_are_more_than_the_candidates(small_blocks):
    vectors = np.random.default_rng(1).integers(0, 2, (1500, 3)).astype(np.float32)  # eight kinds
    check(vectors[:9], vectors, 20)


@pytest.mark.devices
def test_bfloat16_vectors_are_compared_as_they_are_stored(small_blocks):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((1100, 32)).astype(jax.numpy.bfloat16)
    check(rng.standard_normal((4, 32), np.float32), vectors, 6)


@pytest.mark.usefixtures("first_pass")
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 60),
    scale=st.sampled_from([1e-30, 1e-20, 1e-3, 1.0, 1e6, 1e15]),
    copies=st.booleans(),
)
def test_vectors_of_any_scale(seed, n, scale, copies):
    rng = np.random.default_rng(seed)
    vectors = (scale * rng.standard_normal((64, 8))).astype(np.float32)
    vectors[n:] = vectors[rng.integers(0, n, 64 - n)] if copies else vectors[n:]
    check(vectors[:3] + np.float32(scale / 100), vectors, 5)


@pytest.mark.parametrize("center", [None, 100])
def test_a_bound_is_never_above_what_it_bounds_and_close_to_it(center):
    rng = np.random.default_rng(3)
    queries, vectors = (rng.standard_normal((n, 500), np.float32) + np.float32(center or 0) for n in (30, 200))
    center = None if center is None else np.full(500, center, np.float32)
    q, x = (rows.astype(np.float64) - (0 if center is None else center) for rows in (queries, vectors))
    exact = np.square(x).sum(1) - 2 * q @ x.T
    bounds = np.asarray(jax.jit(retrieve.lower_bounds)(queries, vectors, center), np.float64)
    assert (bounds <= exact).all()
    np.testing.assert_allclose(bounds, exact, atol=1e-4 * 1500)  # (500 + 16) / 2^24 of three times |q| |x|


@pytest.mark.devices
def test_the_least_scores_come_in_order_and_ties_by_index(small_blocks):
    """Few different scores, so that most are ties, across groups, devices and blocks."""
    rng = np.random.default_rng(4)
    queries, rows = rng.integers(0, 3, (10, 2)).astype(np.float32), rng.integers(0, 3, (1700, 2)).astype(np.float32)
    scores, indices = retrieve.least(jax.tree_util.Partial(_taxicab), queries, rows, 200, retrieve.BLOCK)
    everything = np.abs(queries[:, None] - rows).sum(-1)
    wanted = np.argsort(everything, axis=1, stable=True)[:, :200]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(scores, np.take_along_axis(everything, wanted, 1))


def _taxicab(queries, rows):
    return abs(queries[:, None] - rows).sum(-1)


def test_vectors_come_in_blocks_and_are_never_read_all_at_once(small_blocks):
    class Vectors:
        """As a memory-mapped file is used."""

        shape, dtype = (1300, 16), np.dtype(np.float32)
        array = np.random.default_rng(5).standard_normal(shape, np.float32)
        most = 0

        def __len__(self):
            return 1300

        def __getitem__(self, rows):
            part = self.array[rows]
            Vectors.most = max(Vectors.most, len(part))
            return part

    vectors = Vectors()
    queries = np.zeros((2, 16), np.float32)
    np.testing.assert_array_equal(retrieve.nearest(queries, vectors, 5)[1], brute_force(queries, Vectors.array, 5)[1])
    assert Vectors.most == 512
