"""Short codes: Hamming search to the index of brute force, an encoder that keeps neighbours, files that are checked."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_features import index_of

from alexnet_jax.errors import UsageError
from alexnet_jax.inspection import codes, retrieve


def brute_force(queries, stored, k):
    """Bits that differ, one by one, and indices, ties by the lower index."""
    bits = np.unpackbits(queries, axis=1)[:, None] != np.unpackbits(stored, axis=1)
    distances = bits.sum(-1)
    indices = np.argsort(distances, axis=1, stable=True)[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


@pytest.mark.devices
@pytest.mark.parametrize("by_devices", [False, True])  # or FAISS, where it is installed
@pytest.mark.parametrize(("n", "words"), [(1, 1), (40, 4), (1300, 1), (1300, 4), (700, 8)])
def test_codes_come_in_the_order_of_differing_bits_and_ties_by_index(monkeypatch, n, words, by_devices):
    monkeypatch.setattr(codes, "_BLOCK", 512)
    if by_devices:
        monkeypatch.setattr(retrieve, "faiss_on_cpu", lambda: False)
    rng = np.random.default_rng(n)
    stored, queries = (rng.integers(0, 256, (count, 4 * words), np.uint8) for count in (n, 11))
    stored[n // 2 :] = stored[: n - n // 2]  # every code twice
    distances, indices = codes.nearest(queries, stored, 100)
    wanted, places = brute_force(queries, stored, 100)
    np.testing.assert_array_equal(distances, wanted)
    np.testing.assert_array_equal(indices, places)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2))
def test_hamming_distance_is_the_number_of_ones_of_the_exclusive_or(words):
    a, b = (np.array([[word]], np.uint32) for word in words)
    assert codes.hamming(a, b) == (words[0] ^ words[1]).bit_count()


def test_recall_by_hand():
    found, wanted = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[2, 9], [6, 4]])
    assert codes.recall(found, wanted) == 0.75


@pytest.fixture(scope="module")
def clustered():
    """Features around fifty centres, of which 20 numbers differ."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 20), np.float32) @ rng.standard_normal((20, 60), np.float32)
    return centres[rng.integers(0, 50, 2000)] + 0.5 * rng.standard_normal((2000, 60), np.float32)


def test_codes_that_were_learned_keep_neighbours_and_are_the_same_each_time(clustered):
    _, stored, measured = codes.make(clustered, bits=64, steps=150)
    assert (measured.queries, stored.shape, stored.dtype) == (200, (2000, 8), np.uint8)
    assert measured.recall > 0.6  # of codes by chance, 100 of 2,000 would hold 0.05
    again = codes.train(clustered, np.random.default_rng(0).permutation(2000)[200:], 64, steps=150)
    np.testing.assert_array_equal(again.encode(clustered), stored)
    other = codes.train(clustered, np.arange(2000), 64, seed=1, steps=2)
    assert (other.encode(clustered) != stored).any()


def test_a_code_is_the_signs_of_the_code_layer(clustered):
    encoder = codes.train(clustered, np.arange(2000), 32, steps=2)
    a = {name: array.astype(np.float64) for name, array in encoder.arrays.items()}
    hidden = np.maximum((clustered - a["mean"]) / a["scale"] @ a["hidden_kernel"] + a["hidden_bias"], 0)
    units = hidden @ a["code_kernel"] + a["code_bias"]
    bits = np.unpackbits(encoder.encode(clustered), axis=1).astype(bool)
    clear = abs(units) > 1e-3
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(bits[clear], (units > 0)[clear])


def test_bits_have_the_gradient_of_tanh():
    network = codes.AutoEncoder(width=5, bits=32)
    features = np.random.default_rng(1).standard_normal((7, 5), np.float32)
    variables = network.init(jax.random.key(0), features)
    gradients = jax.grad(lambda v: network.apply(v, features).sum())(variables)["params"]
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_the_file_gives_back_what_was_written_and_others_are_refused(tmp_path, clustered):
    index = index_of(tmp_path / "index.npz")
    encoder = codes.train(clustered, np.arange(2000), 32, steps=1)
    stored, path = encoder.encode(clustered[: len(index)]), tmp_path / "codes.npz"
    codes.write(path, stored, encoder, index)
    again, same = codes.read(path, index)
    np.testing.assert_array_equal(again, stored)
    np.testing.assert_array_equal(same.encode(clustered), encoder.encode(clustered))
    with pytest.raises(UsageError, match="holds codes of other features"):
        codes.read(path, index_of(tmp_path / "other.npz", dtype="bfloat16"))
    with pytest.raises(UsageError, match=r"nothing\.npz does not exist\. Make it with"):
        codes.read(tmp_path / "nothing.npz", index)
    with pytest.raises(UsageError, match=r"is not a complete file of codes \(.*code.*\)"):
        codes.read(index.path, index)
    for length in (0, 10, 1000, path.stat().st_size - 1):
        part = tmp_path / "part.npz"
        part.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UsageError, match=re.escape(f"{part} is not a complete file of codes")):
            codes.read(part, index)


def test_what_does_not_fit_is_told_before_anything_runs(clustered):
    with pytest.raises(UsageError, match="bits is 100; accepted are multiples of 32"):
        codes.train(clustered, np.arange(2000), 100)
    with pytest.raises(UsageError, match="there are 199 feature vectors; accepted are 200 or more"):
        codes.make(clustered[:199], 32)
