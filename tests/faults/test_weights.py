"""Files of weights with random damage: the same weights, or a sentence; never other numbers where a checksum exists."""

import collections
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import TINY

from alexnet_jax import convert
from alexnet_jax.errors import UsageError
from tests.test_convert import GOLDEN, random_weights

FILES = 300

# What happens to a file, as functions of a random generator and its bytes.


def flip(rng, content):
    at = int(rng.integers(8 * len(content)))
    return content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]


def overwrite(rng, content):
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 200))
    return (content[:start] + rng.bytes(length) + content[start + length :])[: len(content)]


def zero(rng, content):
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 5000))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def cut(rng, content):
    return content[: int(rng.integers(len(content)))]


def remove(rng, content):
    start = int(rng.integers(len(content)))
    return content[:start] + content[start + int(rng.integers(1, 5000)) :]


def insert(rng, content):
    start = int(rng.integers(len(content)))
    return content[:start] + rng.bytes(int(rng.integers(1, 100))) + content[start:]


def damage_the_start(rng, content):
    """The first kilobyte, where the formats keep names, shapes and types."""
    return overwrite(rng, content[:1000]) + content[1000:]


CHANGES = (flip, overwrite, zero, cut, remove, insert, damage_the_start)


def outcomes(path: Path, folder: Path, count: int):
    """How often a damaged file gave the same weights, other weights, or a sentence; other errors fail."""
    rng, whole, seen = np.random.default_rng(0), path.read_bytes(), collections.Counter()
    wanted = jax.tree.leaves(convert.read(path).params)
    damaged = folder / path.name
    for number in range(count):
        damaged.write_bytes(CHANGES[number % len(CHANGES)](rng, whole))
        try:
            found = jax.tree.leaves(convert.read(damaged).params)
        except UsageError as error:
            assert str(damaged) in str(error)  # noqa: PT017
            seen["a sentence"] += 1
        else:
            same = len(found) == len(wanted) and all(map(np.array_equal, found, wanted))
            seen["the same" if same else "others"] += 1
    print(f"{path.name}: {dict(seen)}")
    return seen


@pytest.mark.slow
def test_our_own_files_are_never_believed_when_damaged(faults, tmp_path):
    convert.write(random_weights(TINY), tmp_path / "x.safetensors")
    (tmp_path / "damaged").mkdir()
    seen = outcomes(tmp_path / "x.safetensors", tmp_path / "damaged", faults(FILES))
    assert seen["others"] == 0
    assert seen["a sentence"] > 0.9 * seen.total()


@pytest.mark.slow
@pytest.mark.torch
def test_files_of_pytorch_are_never_believed_when_damaged(faults, tmp_path):
    assert outcomes(GOLDEN / "torchvision.pth", tmp_path, faults(FILES // 10))["others"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision.safetensors", "alexnet.caffemodel"])
def test_files_without_checksums_give_a_sentence_or_weights(name, faults, tmp_path):
    """These formats have no checksum: a flipped bit of a number cannot be seen. But nothing fails with a traceback."""
    assert outcomes(GOLDEN / name, tmp_path, faults(FILES // 10))["a sentence"]
