"""Speed of nearest-neighbour search: this project, with FAISS and without, compared with FAISS alone, on equal cores.

    pip install ".[train,retrieval]"
    python benchmarks/retrieval.py                   # 1,000 random queries, 100,000 random vectors of 4096 numbers
    python benchmarks/retrieval.py --index=FILE      # then codes for the features of real images as well
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/retrieval.py --cpu_time      # where other programs run as well

First the results are compared with float64 (exact search) or with each other (codes). Then all search in turn, for
several rounds: 10 neighbours by Euclidean distance, ours among vectors in a memory-mapped file, FAISS's
(IndexFlatL2) in memory; and 100 codes of 128 bits by Hamming distance (IndexBinaryFlat). Prints medians of queries/s
and the medians of the rounds' ratios. Takes 5 GB of memory, and 1.6 GB in the folder for temporary files.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import unittest.mock
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(Path(__file__).parent.parent))

import faiss
import numpy as np

from alexnet_jax.inspection import codes, features, retrieve

COUNT, WIDTH, QUERIES, BITS = 100_000, 4096, 1000, 128
CHECKED = 100  # number of queries that are also searched in float64
ROUNDS = 7
clock = time.perf_counter


def random_vectors(folder):
    """(COUNT, WIDTH) float32 in a file, memory-mapped like an index."""
    path, rng = Path(folder) / "vectors.npy", np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (COUNT, WIDTH))
    for start in range(0, COUNT, 10_000):
        array[start : start + 10_000] = rng.standard_normal((10_000, WIDTH), np.float32)
    array.flush()
    return np.load(path, mmap_mode="r")


def by_float64(queries, vectors, k):
    """Indices (Q, k) of the nearest by |x|^2 - 2 q.x in float64."""
    scores = []
    for start in range(0, len(vectors), 10_000):
        block = vectors[start : start + 10_000].astype(np.float64)
        scores.append(np.square(block).sum(1) - 2 * queries.astype(np.float64) @ block.T)
    return np.argsort(np.concatenate(scores, 1), axis=1, stable=True)[:, :k]


def without_faiss(search):
    """A search as where FAISS is not installed."""

    def search_without():
        with unittest.mock.patch.object(retrieve, "faiss_on_cpu", return_value=False):
            return search()

    return search_without


def in_turn(ours, theirs):
    """Medians of queries/s of ours, ours without FAISS and FAISS alone, and of the ratios of ours to FAISS alone."""
    searches, rates = (ours, without_faiss(ours), theirs), []
    searches[1]()  # compiles
    for _ in range(ROUNDS):
        rates.append([QUERIES / seconds(search) for search in searches])
    ratios = [(ours / theirs, without / theirs) for ours, without, theirs in rates]
    return *map(statistics.median, zip(*rates, strict=True)), *map(statistics.median, zip(*ratios, strict=True))


def seconds(search):
    """How long a search takes."""
    began = clock()
    search()
    return clock() - began


def exact_search():
    """Compares and times exact search."""
    with tempfile.TemporaryDirectory() as folder:
        vectors = random_vectors(folder)
        queries = np.random.default_rng(1).standard_normal((QUERIES, WIDTH), np.float32)
        flat = faiss.IndexFlatL2(WIDTH)
        flat.add(vectors)
        wanted = by_float64(queries[:CHECKED], vectors, 10)
        _, ours = retrieve.nearest(queries, vectors, 10)
        _, theirs = flat.search(queries, 10)
        assert (ours[:CHECKED] == wanted).all(), "not the neighbours that float64 finds"
        print(f"Places as in float64, of {CHECKED} x 10: all; FAISS {np.sum(theirs[:CHECKED] == wanted)}", flush=True)
        return in_turn(lambda: retrieve.nearest(queries, vectors, 10), lambda: flat.search(queries, 10))


def code_search():
    """Compares and times Hamming search."""
    rng = np.random.default_rng(2)
    stored, queries = (rng.integers(0, 256, (n, BITS // 8), np.uint8) for n in (COUNT, QUERIES))
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(stored)

    def ours():
        return codes.nearest(queries, stored, codes.SHORTLIST)

    def theirs():
        return flat.search(queries, codes.SHORTLIST)

    distances, indices = ours()
    assert (distances == theirs()[0]).all(), "not the distances that FAISS finds"
    assert (indices == without_faiss(ours)()[1]).all(), "not the codes that are found without FAISS"
    return in_turn(ours, theirs)


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", help="a file that `python -m alexnet_jax features` wrote")
    parser.add_argument("--cpu_time", action="store_true", help="compare CPU time, on one core; default elapsed time")
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
    searches = {
        f"10 nearest, float32 x {WIDTH}": exact_search,
        f"{codes.SHORTLIST} nearest codes, {BITS} bits": code_search,
    }
    sizes = WIDTH * 4, BITS // 8
    print(f"{QUERIES:,} queries, {COUNT:,} random vectors or codes; FAISS {faiss.__version__}\n")
    rows = [(name, size, *search()) for (name, search), size in zip(searches.items(), sizes, strict=True)]
    print("\n| search | bytes an image | queries/s | without FAISS | FAISS alone | ours / FAISS | without / FAISS |")
    print("|---|---|---|---|---|---|---|")
    for name, size, *speeds, ratio, ratio_without in rows:
        speeds = " | ".join(f"{speed:,.0f}" for speed in speeds)
        print(f"| {name} | {size:,} | {speeds} | {ratio:.2f} | {ratio_without:.2f} |")
    if options.index:
        index = features.read(options.index)
        _, stored, measured = codes.make(index.vectors, BITS)
        print(f"\n{len(index):,} images of {index.split}, {index.vectors.shape[1]} numbers of {index.layer}")
        print("\n| search | bytes an image | queries/s | recall@10 |\n|---|---|---|---|")
        print(f"| exact | {index.vectors[0].nbytes:,} | {measured.exact:,.0f} | 1 |")
        name = f"{BITS} bits, then the first {codes.SHORTLIST} by distance"
        print(f"| {name} | {stored.shape[1]} | {measured.by_codes:,.0f} | {measured.recall:.3f} |")


if __name__ == "__main__":
    main()
