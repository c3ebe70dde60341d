"""Damage to the small files of a workdir: a sentence, or the file is made again and it says so."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import convert
from alexnet_jax.errors import UsageError
from alexnet_jax.files import read_metrics
from alexnet_jax.inspection.report import curves
from alexnet_jax.training import outputs, setup
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.step import init_state
from configs import quickstart


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that has just begun, on six images, and its config."""
    root, workdir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for k in range(6):
            path = root / split / f"class{k % 2}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    config = quickstart.get_config()
    config.update(dataset=f"folder:{root}", batch_size=8, eval_batch_size=8)
    run = setup.set_up(config, workdir)
    with Checkpoints(workdir) as checkpoints:
        notes = {"seconds": 0.0, "validation_due": False, "begun": (), "num_classes": 2}
        checkpoints.save(init_state(recipe=run.recipe), error=50.0, notes=notes)
    writer = outputs.JsonLinesWriter(workdir / "metrics.jsonl", 0)
    for step in range(1, 9):
        writer.write_scalars(step, {"train_loss": 1.0, "train_error": 50.0, "learning_rate": 0.01})
    writer.close()
    outputs.write_result(workdir, {"steps": 0})
    return workdir, config


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def statistics(**changes):
    arrays = {"mean_image": np.zeros((32, 32, 3)), "eigenvectors": np.eye(3), "eigenvalues": np.ones(3)}
    return npz(**{**arrays, **changes})


ANY = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "no text": lambda content: b"\xff" + content,
    "another type": lambda content: b"5",
    "null": lambda content: b"null",
    "brackets": lambda content: b"[" * 100_000,
    "a list": lambda content: b'["x", 3]',
    "an object": lambda content: b'{"a": 1}',
}
OF = {
    "config.json": {
        "an unknown value": lambda content: content.replace(b'"crop"', b'"c(op"', 1),
        "another kind of value": lambda content: content.replace(b'"mean_at": "crop"', b'"mean_at": []'),
        "a field less": lambda content: content.replace(b'"architecture"', b'"architektur"'),
    },
    "statistics.npz": {
        "objects": lambda content: npz(mean_image=np.array([None])),
        "shapes": lambda content: statistics(mean_image=np.zeros((32, 31, 3))),
        "shapes of the PCA": lambda content: statistics(eigenvectors=np.eye(2)),
        "not finite": lambda content: statistics(eigenvalues=np.array([1, np.nan, 1])),
        "texts": lambda content: statistics(mean_image=np.full((32, 32, 3), "x")),
        "other numbers": lambda content: content[:900] + bytes([content[900] ^ 1]) + content[901:],
    },
    "classes.json": {},
    "contents.json": {"a split": lambda content: content.replace(b'"examples"', b'"exemples"')},
    "result.json": {},
}
CASES = [(name, how) for name in OF for how in {**ANY, **OF[name]}]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_damaged_file_is_a_sentence_or_is_made_again(name, how, whole, tmp_path):
    workdir, config = tmp_path / "w", whole[1]
    shutil.copytree(whole[0], workdir)
    path = workdir / name
    before = path.read_bytes()
    path.write_bytes({**ANY, **OF[name]}[how](before))
    for read in (
        lambda: convert.read(workdir),
        lambda: setup.config_of(workdir),
        lambda: setup.set_up(config, workdir, training=False),
        lambda: setup.set_up(config, workdir),
    ):
        try:
            read()
        except UsageError as error:
            assert str(workdir) in str(error)  # noqa: PT017
    if name in ("statistics.npz", "classes.json"):  # the last of these was a run that is started again
        assert path.read_bytes() == before


def test_statistics_that_cannot_be_made_again_stop_the_run(whole, tmp_path):
    workdir, config = tmp_path / "w", whole[1].copy_and_resolve_references()
    shutil.copytree(whole[0], workdir)
    shutil.copytree(config.dataset.removeprefix("folder:"), tmp_path / "images")
    config.dataset = f"folder:{tmp_path}/images"
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images/train/class0/0.png")  # the same name, another image
    setup.set_up(config, workdir)  # the statistics are there
    (workdir / "statistics.npz").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be made again: the images are not those that the run began with"):
        setup.set_up(config, workdir)


LINES = [
    b"null",
    b"5",
    b'{"step": "x"}',
    b'{"step": 3, "train_loss": "x"}',
    b"\xff\xfe",
    b"[" * 5000,
    b"{",
    b'{"a": 1}',
]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_damaged_lines_of_metrics_are_left_out_and_it_says_so(line, whole, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    good = (whole[0] / "metrics.jsonl").read_bytes().splitlines()
    path.write_bytes(b"\n".join([*good[:3], line, *good[3:]]) + b"\n")
    assert [value["step"] for _, value in read_metrics(path)] == list(range(1, 9))
    assert f"{path} has 1 damaged lines, which are left out; the first is line 4." in capsys.readouterr().out
    assert len(curves.read(path)) == 8
    outputs.JsonLinesWriter(path, 5).close()
    assert [json.loads(kept)["step"] for kept in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
