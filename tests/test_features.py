"""The features of a split as a file, and the commands that make and search it."""

import argparse
import re

import cv2
import numpy as np
import pytest
from test_trained import Split, weights
from tiny import batch_of

from alexnet_jax import convert
from alexnet_jax.cli import retrieve as commands
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.inspection import features

NAMES = ("a", "b", "c", "d", "e")


class Described(Split):
    """Twenty-one examples that say where they are."""

    def describe(self, index):
        return f"/pictures/ü{index}.png"


def with_bias(layer, number):
    """The weights with another bias of a layer."""
    changed = weights()
    changed.params[layer]["bias"] = np.full_like(changed.params[layer]["bias"], number)
    return changed


def index_of(path, dtype="float32"):
    """The features of these examples, written and read."""
    features.write(path, Trained.of(weights(), batch_size=8), Described(), "relu4", NAMES, dtype)
    return features.read(path)


@pytest.mark.parametrize("dtype", features.DTYPES)
def test_the_file_holds_what_the_layer_makes_of_each_image_in_order(tmp_path, dtype):
    index, batch = index_of(tmp_path / "index.npz", dtype), batch_of(2, n=21)
    wanted = Trained.of(weights(), batch_size=8).features(batch["image"], "relu4")
    np.testing.assert_array_equal(index.vectors, wanted.astype(features.DTYPES[dtype]))
    np.testing.assert_array_equal(index.labels, batch["label"])
    assert [index.place_of(i) for i in (0, 20)] == ["/pictures/ü0.png", "/pictures/ü20.png"]
    assert index.class_of(3) == NAMES[batch["label"][3]]
    assert (index.layer, index.split, index.digest) == ("relu4", "tests", weights().digest)
    assert index.vectors.ctypes.data % 64 == 0


def test_numpy_reads_the_file_and_the_same_features_are_the_same_bytes(tmp_path):
    index = index_of(tmp_path / "index.npz")
    with np.load(index.path) as arrays:
        np.testing.assert_array_equal(arrays["features"], index.vectors)
        np.testing.assert_array_equal(arrays["labels"], index.labels)
    again = index_of(tmp_path / "again.npz")
    assert again.path.read_bytes() == index.path.read_bytes()
    assert again.fingerprint == index.fingerprint
    assert index_of(tmp_path / "short.npz", "bfloat16").fingerprint != index.fingerprint


def test_a_file_that_is_broken_off_or_another_is_refused(tmp_path):
    path = index_of(tmp_path / "index.npz").path
    whole, part = path.read_bytes(), tmp_path / "part.npz"
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=re.escape(f"{part} is not a complete file of features")):
            features.read(part)
    np.savez(part, features=np.zeros((2, 3)))
    with pytest.raises(UsageError, match=r"is not a complete file of features .*labels"):
        features.read(part)
    with np.load(path) as arrays:
        np.savez_compressed(part, **arrays)
    with pytest.raises(UsageError, match="its features are compressed"):
        features.read(part)
    with np.load(path) as arrays:
        np.savez(part, **{**arrays, "labels": arrays["labels"][1:]})
    with pytest.raises(UsageError, match="has 21 features, 20 labels and 21 names"):
        features.read(part)
    with pytest.raises(UsageError, match=r"nothing\.npz does not exist\. Make it with"):
        features.read(tmp_path / "nothing.npz")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    class Breaks(Described):
        def describe(self, index):
            if index == 20:
                raise UsageError("the last image is gone")
            return super().describe(index)

    path = index_of(tmp_path / "index.npz").path
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is gone"):
        features.write(path, Trained.of(weights(), batch_size=8), Breaks(), "relu4")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    damaged = with_bias("fc4", np.nan)
    with pytest.raises(UsageError, match=r"output of relu4 is not finite for /pictures/ü0.png"):
        features.write(tmp_path / "index.npz", Trained.of(damaged, batch_size=8), Described(), "relu4")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Weights, and a folder with 240 images of 16 x 16 in two classes."""
    root = tmp_path_factory.mktemp("world")
    convert.write(weights(), root / "w.safetensors")
    for i, image in enumerate(batch_of(7, n=240)["image"]):
        folder = root / "pictures" / "train" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i:03}.png"), image)
    return root


def call(text):
    """Runs a command."""
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers(required=True))
    options = parser.parse_args(text.split())
    options.run(options)


def test_an_image_finds_itself_first(world, capsys):
    network = f"--weights={world}/w.safetensors"
    call(f"features {network} --dataset=folder:{world}/pictures --output={world}/index.npz")
    assert "16 numbers of relu4 for 240 images" in capsys.readouterr().out
    image = next((world / "pictures" / "train" / "dog").iterdir())
    call(f"retrieve {image} {network} --index={world}/index.npz --top=3")
    exact = capsys.readouterr().out.splitlines()
    assert exact[0].startswith(f"{image}: nearest by relu4 among 240 images of folder:")
    distance, name, place = exact[1].split()
    assert (len(exact), name, place) == (4, "dog", str(image))
    assert float(distance) < 1e-5  # not 0: batches of other sizes are rounded otherwise


def test_codes_are_made_measured_and_searched(world, capsys, monkeypatch):
    monkeypatch.setattr("alexnet_jax.inspection.codes.train.__defaults__", (0, 20))
    network = f"--weights={world}/w.safetensors"
    call(f"features {network} --dataset=folder:{world}/pictures --output={world}/c.npz --dtype=bfloat16")
    call(f"codes --index={world}/c.npz --bits=32 --output={world}/codes.npz")
    told = capsys.readouterr().out
    assert "Bytes per image: 4 as a code, 32 as features" in told
    assert "Queries: 24 images that the auto-encoder did not learn from" in told
    image = world / "pictures" / "train" / "cat" / "000.png"
    call(f"retrieve {image} {network} --index={world}/c.npz --codes={world}/codes.npz")
    assert capsys.readouterr().out.splitlines()[1].endswith(f"cat  {image}")


def test_what_cannot_be_is_told(world, tmp_path):
    network, index = f"--weights={world}/w.safetensors", index_of(tmp_path / "index.npz").path
    (tmp_path / "no.jpg").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    convert.write(with_bias("fc5", 1), tmp_path / "other.safetensors")
    call(f"retrieve {tmp_path}/dot.png {network} --index={index}")  # a single pixel is an image, of one colour
    data = f"--dataset=folder:{world}/pictures"
    for text, words in {
        f"retrieve {tmp_path}/no.jpg {network} --index={index}": "no.jpg does not decode as an image",
        f"retrieve {tmp_path}/gone.jpg {network} --index={index}": "gone.jpg cannot be read",
        f"retrieve x --weights={tmp_path}/other.safetensors --index={index}": "holds features of another network",
        f"codes --index={index} --output={tmp_path}/c.npz --bits=5": "bits is 5; accepted are multiples of 32",
        f"codes --index={index} --output={tmp_path}/c.npy": "accepted is a name that ends in .npz",
        f"features {network} {data} --output={tmp_path}/no/f.npz": "no does not exist. Create it",
        f"features {network} {data} --output={tmp_path}/f.npz --layer=fc9": "layer is 'fc9'; this network has",
        f"features {network} {data} --output={tmp_path}/f.npz --split=x": "Set --split=NAME",
    }.items():
        with pytest.raises(UsageError, match=re.escape(words)):
            call(text)
