"""JPEGs with random damage: all readers refuse the same ones, in a sentence, and read the same pixels of the others."""

import collections
import io

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.evaluation import predict
from tests.faults.test_weights import CHANGES, cut

FILES, SIDE = 1000, 48


def jpeg(rng, **options):
    """A JPEG of 64 x 80 pixels, smooth and with noise."""
    smooth = np.linspace(0, 200, 64)[:, None, None] + np.linspace(0, 50, 80)[None, :, None]
    pixels = np.clip(smooth + rng.normal(0, 20, (64, 80, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


KINDS = (
    {},
    {"progressive": True},
    {"subsampling": 0, "quality": 95},
    {"restart_marker_blocks": 2},
    {"optimize": True, "exif": Image.Exif()},
)


def read(how, encoded, path):
    """The pixels or, as a text, why there are none."""
    if how == "predict":
        path.write_bytes(encoded)
        return predict._read(str(path), SIDE)
    size = 64 if how == "the whole side" else SIDE
    try:
        return decode_square(encoded, size, exact=how == "prepare")
    except ImageError as error:
        return str(error)


@pytest.mark.slow
def test_damaged_jpegs_are_refused_by_all_readers_or_by_none(faults, tmp_path):
    rng, seen = np.random.default_rng(0), collections.Counter()
    wholes = [jpeg(rng, **options) for options in KINDS]
    path = tmp_path / "x.jpg"
    for number in range(faults(FILES)):
        whole, change = wholes[number % len(wholes)], CHANGES[number // len(wholes) % len(CHANGES)]
        encoded = change(rng, whole)
        found = {how: read(how, encoded, path) for how in ("train", "prepare", "the whole side", "predict")}
        refused = {isinstance(value, str) for value in found.values()}
        assert len(refused) == 1, (number, change.__name__, found)
        if refused == {True}:
            assert all(found.values())
            seen["refused"] += 1
            continue
        assert change is not cut or encoded.endswith(b"\xff\xd9"), number  # an image that ends too early
        np.testing.assert_array_equal(found["train"], found["predict"])
        same = np.array_equal(found["train"], read("train", whole, path))
        seen["the same" if same else "other pixels, in a JPEG without errors"] += 1
    print(dict(seen))
    assert seen["refused"] > 0.3 * seen.total()
