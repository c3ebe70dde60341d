"""Disks that are full or gone: one sentence, and nothing that was saved is lost."""

import collections
import errno
import fcntl
import json
import os
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.doctor import machine
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, stores
from alexnet_jax.network.towers import ONE_DEVICE
from alexnet_jax.training import checkpoint, loop, setup
from alexnet_jax.training.checkpoint import Checkpoints, SaveError
from tests.faults.test_checkpoints import like, state_at
from tests.faults.test_kills import curve
from tests.test_loop import arrays_of, config_for, folder, one_device  # noqa: F401

# Orbax leaves coroutines behind when it cannot write.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOMS = 20  # sizes of the disk, from nothing to enough; a few hundred with --faults=20


def test_too_little_space_is_told_before_the_first_step(tmp_path, monkeypatch, folder):  # noqa: F811
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(UsageError, match=r"has 1.0 MB free, but two checkpoints need [\d.]+ MB. Free some space"):
        setup.set_up(config_for(folder, eval_batch_size=8), tmp_path / "w")
    assert not (tmp_path / "w/config.json").exists()


def test_for_a_workdir_in_a_store_the_disk_is_that_of_the_local_copy(tmp_path, monkeypatch, folder):  # noqa: F811
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path))
    copy = copies.Copy("gs://bucket/run", tmp_path / "w", "read", None)
    monkeypatch.setattr(copies, "copy_of", lambda folder: copy)
    place = rf"^{tmp_path} \(the local copy of gs://bucket/run\) has 1.0 MB free, .* ALEXNET_CACHE_DIR to a folder"
    with pytest.raises(UsageError, match=place):
        setup.set_up(config_for(folder, eval_batch_size=8), tmp_path / "w")
    config = config_for(folder)
    *_, found = machine.disk(config, tmp_path / "w", setup.recipe_for(config, setup.open_data(config), ONE_DEVICE))
    assert found.text.startswith(f"1.0 MB free at {tmp_path} (the local copy of gs://bucket/run); 3 checkpoints of ")
    assert found.text.endswith("set ALEXNET_CACHE_DIR to a folder on another disk.")


def test_the_disk_of_data_in_a_store_is_that_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path / "link"))
    assert copies.cache() == tmp_path / "there"  # as a resolved path, which a copy is found by
    config = config_for("none", dataset="imagenet2012", data_dir="gs://bucket/data")
    found, *_ = machine.disk(config, tmp_path, None)
    assert f"free at {tmp_path}/there" in found.text


def test_a_copy_is_removed_only_if_it_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path))
    old = tmp_path / "copies/old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
        with copies._own_folder():
            assert old.exists()
    os.utime(old, (0, 0))
    with copies._own_folder():
        assert not old.exists()


def test_what_cannot_be_put_is_kept_whatever_the_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "run").mkdir()
    copy = copies.Copy("gs://bucket/run", tmp_path / "run", "add", None)

    def unreachable():
        raise stores.StoreError("gs://bucket/run cannot be reached.")

    monkeypatch.setattr(copy, "put", unreachable)
    (tmp_path / "run/metrics.jsonl").write_text("a line")
    with pytest.raises(FloatingPointError), copies._put_at_end(copy):
        raise FloatingPointError("the loss is not finite")
    (kept,) = (tmp_path / "cache").glob("kept-*/run")
    assert capsys.readouterr().err == f"What is not in the store is kept in {kept}.\n"
    assert (kept / "metrics.jsonl").read_text() == "a line"


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Error writing x\nmore"), r"\(the disk is full\)"),
        (OSError(28, "No space left on device"), r"\(the disk is full\)"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_a_sentence_and_the_one_before_stays(
    raised, wanted, tmp_path, monkeypatch
):
    def fails(self, *arguments, **options):
        raise raised

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), error=1.0, notes={"seconds": 1.5})
    with monkeypatch.context() as patched, Checkpoints(tmp_path) as checkpoints:
        patched.setattr(checkpoint._Manager, "save", fails)
        with pytest.raises(SaveError, match=f"cannot be written to .*{wanted}.* Earlier checkpoints are kept"):
            checkpoints.save(state_at(4), error=1.0, notes={"seconds": 1.5})
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore_newest(like())[0].step) == 3


def test_an_error_of_the_background_is_a_sentence_too(tmp_path, monkeypatch):
    def fails(self):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing x")

    checkpoints = Checkpoints(tmp_path).__enter__()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint._Manager, "close", fails)
        with pytest.raises(SaveError, match="the disk is full"):
            checkpoints.__exit__(None, None, None)
        checkpoints.__exit__(ValueError, ValueError("the first error"), None)  # which is not replaced
    checkpoints.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["moved", "removed"])
def test_a_workdir_that_goes_during_the_run_stops_it(what, folder, tmp_path, monkeypatch):  # noqa: F811
    add, workdir = loop.Journal.add, tmp_path / "w"

    def then_it_goes(self, step, metrics):
        if step == 8:
            jnp.zeros(1).block_until_ready()
            workdir.rename(tmp_path / "elsewhere")
            if what == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
        add(self, step, metrics)

    monkeypatch.setattr(loop.Journal, "add", then_it_goes)
    with pytest.raises(UsageError, match=r"is gone: the workdir was moved or removed|cannot be written"):
        loop.train(config_for(folder, eval_batch_size=8), workdir)
    if what == "moved":
        monkeypatch.undo()
        shutil.rmtree(workdir, ignore_errors=True)
        (tmp_path / "elsewhere").rename(workdir)
        assert loop.train(config_for(folder, eval_batch_size=8), workdir)["steps"] == 24


def test_a_file_where_a_write_fails_is_named(folder, tmp_path, monkeypatch):  # noqa: F811
    def fails(config, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(config_lib, "save", fails)
    with pytest.raises(UsageError, match=r"w/config.json: No space left on device. Correct that. What was saved"):
        loop.train(config_for(folder, eval_batch_size=8), tmp_path / "w")


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system with room for a number of bytes, or changes its room; skips without root."""
    place, mounted = tmp_path / "disk", []

    def make(room):
        place.mkdir(exist_ok=True)
        again = "remount," if mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={room}", "tmpfs", place]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a small file system")
        mounted.append(room)
        return place

    yield make
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_is_a_sentence_and_the_run_resumes(
    faults,
    folder,  # noqa: F811
    small_disk,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(setup, "_check_space", lambda run: None)  # others fill the disk during the run
    config = config_for(folder)
    uncut, seen = tmp_path / "uncut", collections.Counter()
    loop.train(config, uncut)
    wanted, whole = arrays_of(uncut, 24), 64 * 2**20
    needed = 2 * sum(path.stat().st_size for path in uncut.rglob("*"))
    for room in np.linspace(4096, needed, faults(ROOMS)).astype(int) // 4096 * 4096:
        workdir = small_disk(room) / "w"
        try:
            loop.train(config, workdir)
        except UsageError as error:
            seen["a sentence"] += 1
            assert str(workdir) in str(error)  # noqa: PT017
            small_disk(whole)
            loop.train(config, workdir)
        else:
            seen["enough"] += 1
        got = arrays_of(workdir, 24)
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
        assert curve(workdir) == curve(uncut)
        assert json.loads((workdir / "result.json").read_text())["steps"] == 24
        shutil.rmtree(workdir)
    print(dict(seen))
    assert seen["a sentence"]
    assert seen["enough"]
