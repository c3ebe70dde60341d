"""Short binary codes from an auto-encoder, and the search for the most similar codes (paper, section 6.1).

The paper proposes such codes and gives no numbers. The auto-encoder has the form of Krizhevsky and Hinton, Using Very
Deep Autoencoders for Content-Based Image Retrieval (2011), but only one hidden layer on each side, because its
inputs are already features of a deep network.
"""

import dataclasses
import functools
import io
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.tree_util import Partial
from tqdm import tqdm

from alexnet_jax import files
from alexnet_jax.errors import UsageError
from alexnet_jax.files import local
from alexnet_jax.inspection import retrieve
from alexnet_jax.inspection.features import Index

HIDDEN = 512
STEPS, BATCH, RATE = 3000, 256, 1e-3  # for Adam; the learning rate falls to 0 along a cosine
SHORTLIST = 100  # number of images with the nearest codes; the nearest features are searched among them

_BLOCK = 2**14  # codes that are sent to the devices at a time
_COUNTED = 2**21  # places for indices that FAISS gets at a time, 16 MB, which stay in a CPU's cache
_SPARE = 32  # codes that FAISS finds besides twice the number of those wanted
_SAMPLE = 2**12  # features from which mean and scale are computed
_ENCODER = ("mean", "scale", "hidden_kernel", "hidden_bias", "code_kernel", "code_bias")


class AutoEncoder(nn.Module):
    """Features -> hidden layer -> bits -> hidden layer -> features; the bits are the signs of tanh units.

    The gradient is that of tanh, as if the signs were not taken.

    Attributes:
      width: number of values of a feature vector.
      bits: number of bits of a code.
    """

    width: int
    bits: int

    def setup(self):
        self.hidden, self.code = nn.Dense(HIDDEN), nn.Dense(self.bits)
        self.back, self.out = nn.Dense(HIDDEN), nn.Dense(self.width)

    def __call__(self, features):
        soft = jnp.tanh(self.code(nn.relu(self.hidden(features))))  # (N, bits)
        hard = soft + lax.stop_gradient(jnp.sign(soft) - soft)
        return self.out(nn.relu(self.back(hard)))


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """The half of the auto-encoder that makes codes.

    Attributes:
      arrays: by the names in _ENCODER, float32; mean (D,) is subtracted from features, which are then divided by
        scale (a number).
    """

    arrays: dict[str, np.ndarray]

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return len(self.arrays["code_bias"])

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) features, sliceable like a NumPy array -> (N, bits / 8) uint8; the first bit is the highest."""
        parts = [vectors[start : start + retrieve.BLOCK] for start in range(0, len(vectors), retrieve.BLOCK)]
        return np.concatenate([np.packbits(np.asarray(_bits(self.arrays, part)), axis=1) for part in parts])


def train(vectors: np.ndarray, chosen: np.ndarray, bits: int, seed: int = 0, steps: int = STEPS) -> Encoder:
    """Trains the auto-encoder; the same arguments give the same encoder.

    Args:
      vectors: (N, D) float32 or bfloat16, which can be sliced like a NumPy array; one batch is read at a time.
      chosen: indices of the vectors to learn from.
      bits: number of bits of a code, a multiple of 32.
      seed: seed for the initial weights and for the batches.
      steps: number of steps of Adam.

    Raises:
      UsageError: if bits is not a multiple of 32.
    """
    check_bits(bits)
    rng = np.random.default_rng(seed)
    sample = _rows(vectors, rng.choice(chosen, min(_SAMPLE, len(chosen)), replace=False))
    mean = sample.mean(0)
    scale = np.float32(sample.std(0).mean() or 1)
    network = AutoEncoder(sample.shape[1], bits)
    params = network.init(jax.random.key(seed), sample[:1])["params"]
    state = params, _adam(steps).init(params)
    for _ in tqdm(range(steps), desc="Training the auto-encoder", unit=" steps", mininterval=1):
        batch = _rows(vectors, rng.choice(chosen, min(BATCH, len(chosen)), replace=False))
        state = _step(state, (batch - mean) / scale, network=network, steps=steps)
    layers = jax.device_get(state[0])
    names = [(layer, part) for layer in ("hidden", "code") for part in ("kernel", "bias")]
    return Encoder({"mean": mean, "scale": scale} | {f"{layer}_{part}": layers[layer][part] for layer, part in names})


def nearest(queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k codes that differ from each query in the fewest bits; of equal ones, the lower index is first.

    Args:
      queries: (Q, bits / 8) uint8.
      codes: (N, bits / 8) uint8.
      k: number of codes; if N is smaller, N.

    Returns:
      Numbers of different bits (Q, k) int32, in rising order, and indices (Q, k) int32.
    """
    k = min(k, len(codes))
    if not retrieve.faiss_on_cpu():
        return _by_devices(queries, codes, k)
    distances, indices, sure = _by_faiss(queries, codes, k)
    if not sure.all():
        distances[~sure], indices[~sure] = _by_devices(queries[~sure], codes, k)
    return distances, indices


def _by_faiss(queries, codes, k):
    """As nearest, and for each query whether that is sure.

    FAISS does not promise an order of equal codes, nor which of them it finds. So it is asked for more than k. If the
    last one differs in more bits than the k-th, all that are equal to the k-th have been found.
    """
    import faiss

    candidates = min(2 * k + _SPARE, len(codes))
    queries, codes = (np.ascontiguousarray(rows) for rows in (queries, codes))
    step = max(1, _COUNTED // ((8 * codes.shape[1] + 1) * candidates))
    parts = [
        faiss.knn_hamming(queries[start : start + step], codes, candidates, variant="mc")
        for start in range(0, len(queries), step)
    ]
    distances, indices = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    keys = np.sort(distances.astype(np.int64) << 32 | indices, axis=1)  # one sort for both
    distances = (keys >> 32).astype(np.int32)
    sure = (distances[:, -1] > distances[:, k - 1]) | (candidates == len(codes))
    return distances[:, :k], (keys[:, :k] & (2**32 - 1)).astype(np.int32), sure


def _by_devices(queries, codes, k):
    queries, codes = (np.ascontiguousarray(rows).view(np.uint32) for rows in (queries, codes))
    distances, indices = retrieve.least(_HAMMING, queries, codes, k, _BLOCK)
    return distances.astype(np.int32), indices


def hamming(queries, codes):
    """The number of different bits: (Q, W) and (B, W) uint32 -> (Q, B) float32, exact for such numbers."""
    # Word by word, so that each sum is over whole (Q, B) arrays.
    words = zip(queries.T, codes.T, strict=True)
    return sum(lax.population_count(q[:, None] ^ c) for q, c in words).astype(jnp.float32)


_HAMMING = Partial(hamming)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Search by codes, compared with exact search.

    Attributes:
      queries: number of images whose neighbours were searched.
      recall: the share of their 10 nearest neighbours that are among the SHORTLIST images of the nearest codes.
      by_codes: queries/s of two searches, one after the other: among codes, then among features of the shortlist.
      exact: queries/s of the search among all features.
    """

    queries: int
    recall: float
    by_codes: float
    exact: float


def make(vectors: np.ndarray, bits: int, seed: int = 0, steps: int = STEPS) -> tuple[Encoder, np.ndarray, Measured]:
    """Trains an encoder on nine tenths of the vectors, encodes all, and measures it on up to 1,000 of the others.

    Args: as in train.

    Returns:
      The encoder, the codes (N, bits / 8) uint8, and the measurement.

    Raises:
      UsageError: if bits is not a multiple of 32, or there are too few vectors.
    """
    if len(vectors) < 2 * SHORTLIST:
        raise UsageError(
            f"there are {len(vectors)} feature vectors; accepted are {2 * SHORTLIST} or more. Give more images."
        )
    order = np.random.default_rng(seed).permutation(len(vectors))
    others, chosen = np.split(order, [len(order) // 10])
    encoder = train(vectors, chosen, bits, seed, steps)
    codes = encoder.encode(vectors)
    return encoder, codes, _measure(encoder, codes, vectors, np.sort(others[:1000]))


def _measure(encoder, codes, vectors, own):
    queries = _rows(vectors, own)

    def by_codes():
        shortlist = _without(own, nearest(encoder.encode(queries), codes, SHORTLIST + 1)[1])
        retrieve.among(queries, vectors, shortlist, 10)
        return shortlist

    def exact():
        return _without(own, retrieve.nearest(queries, vectors, 11)[1])

    (shortlist, seconds), (wanted, exact_seconds) = _timed(by_codes), _timed(exact)
    return Measured(len(own), recall(shortlist, wanted), len(own) / seconds, len(own) / exact_seconds)


def _timed(search):
    search()  # compiles
    began = time.perf_counter()
    return search(), time.perf_counter() - began


def _without(own, found):
    """The neighbours of each query without the query itself; each row becomes one shorter."""
    return np.stack([row[row != i][: len(row) - 1] for i, row in zip(own, found, strict=True)])


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """(Q, F) found and (Q, k) wanted indices -> the share of the wanted ones that were found, over all queries."""
    return float(np.mean([np.isin(row, among).mean() for row, among in zip(wanted, found, strict=True)]))


def write(path: Path, codes: np.ndarray, encoder: Encoder, index: Index) -> None:
    """Writes the codes of an index's images with their encoder as an .npz file, completely or not at all."""
    file = io.BytesIO()
    np.savez(file, codes=codes, index=np.array(index.fingerprint), **encoder.arrays)
    files.write_whole(path, file.getvalue())


def read(path: str | Path, index: Index) -> tuple[np.ndarray, Encoder]:
    """Reads the codes (N, bits / 8) uint8 of an index's images, and their encoder.

    Raises:
      UsageError: if the file does not exist, is not a complete file of codes, or holds codes of other features.
    """
    path = local(path, "the file of codes")
    how = f"`python -m alexnet_jax codes --index={index.path} --output={path}`"
    if not path.is_file():
        raise UsageError(f"{path} does not exist. Make it with {how}.")
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {
                name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in ("codes", "index", *_ENCODER)
            }
    except (OSError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise UsageError(f"{path} is not a complete file of codes ({error}). Make it again with {how}.") from error
    if stored.pop("index").item() != index.fingerprint:
        raise UsageError(f"{path} holds codes of other features, not of {index.path}. Make new codes with {how}.")
    return stored.pop("codes"), Encoder(stored)


def check_bits(bits: int) -> None:
    """Raises UsageError unless bits is a multiple of 32, so that a code fills whole words."""
    if bits < 32 or bits % 32:
        raise UsageError(f"bits is {bits}; accepted are multiples of 32, such as 128. Give one of them.")


def _rows(vectors, indices):
    return vectors[np.sort(indices)].astype(np.float32)  # sorted, because the order of the file is faster to read


def _adam(steps):
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


@functools.partial(jax.jit, static_argnames=("network", "steps"), donate_argnums=0)
def _step(state, batch, *, network, steps):
    params, moments = state

    def loss(params):
        return jnp.square(network.apply({"params": params}, batch) - batch).mean()

    updates, moments = _adam(steps).update(jax.grad(loss)(params), moments)
    return optax.apply_updates(params, updates), moments


@jax.jit
def _bits(arrays, vectors):
    hidden = (vectors.astype(jnp.float32) - arrays["mean"]) / arrays["scale"] @ arrays["hidden_kernel"]
    hidden = nn.relu(hidden + arrays["hidden_bias"])
    return hidden @ arrays["code_kernel"] + arrays["code_bias"] > 0  # (N, bits)
