"""Training sets on the devices: the same batches, the same runs, and when they stay on the host."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.training import feed, loop, setup
from alexnet_jax.training.step import take
from tests.test_loop import BATCH, CHILD, IMAGES, ROOT, arrays_of, config_for, folder, one_device  # noqa: F401

MESHES = {"1x1": (1, 1), "1x2": (2, 2), "2x2": (4, 2)}  # devices, mesh.tower


@pytest.fixture
def devices(monkeypatch):
    """Sets the number of devices that a run sees."""

    def see(count):
        monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:count])

    return see


def run_for(folder, workdir, **changes):  # noqa: F811
    return setup.set_up(config_for(folder, **changes), workdir)


def numbers_of(workdir):
    """The lines of metrics.jsonl without those of time."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "waiting_percent")} for line in lines]


@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 40}, {"shuffle": False}, {"early_epochs": 2, "early_share": 0.5}],
    ids=["six steps an epoch", "batches across epochs", "stored order", "half of the images first"],
)
@pytest.mark.parametrize("start", [0, 5])
def test_the_batches_are_those_of_the_loader(folder, tmp_path, changes, start):  # noqa: F811
    run = run_for(folder, tmp_path, data_on_device="always", **changes)
    placement, size = run.recipe.network.placement, run.config.batch_size
    on_device = feed.feed(run, start)
    assert isinstance(on_device, feed.OnDevice)
    for (step, batch), (same, chosen) in zip(feed.FromHost(run, start), on_device, strict=True):
        assert step == same
        chosen = {name: placement.put_whole(array[0], placement.batch) for name, array in chosen.items()}
        got = take(on_device.examples, chosen, placement=placement)
        assert batch.keys() == got.keys()
        for name, array in batch.items():
            assert got[name].shape == (size, *array.shape[1:])
            np.testing.assert_array_equal(got[name], array, strict=True)


@pytest.mark.parametrize("mesh", ["1x1", pytest.param("1x2", marks=pytest.mark.slow), "2x2"])
def test_the_run_is_the_loader_s_to_the_bit(folder, tmp_path, devices, mesh):  # noqa: F811
    count, tower = MESHES[mesh]
    devices(count)
    for choice in ("never", "always"):
        config = config_for(folder, data_on_device=choice, num_steps=8)
        config.mesh.tower = tower
        loop.train(config, tmp_path / choice)
    want, got = (arrays_of(tmp_path / choice, 8) for choice in ("never", "always"))
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert numbers_of(tmp_path / "always") == numbers_of(tmp_path / "never")


def test_several_steps_at_once_are_the_same_steps(folder, tmp_path, devices, monkeypatch):  # noqa: F811
    """Evaluations after steps 6, 12 and 18; checkpoints after each fifth step."""
    devices(2)
    taken = []

    def counted(*arguments, **rest):
        taken.append(len(arguments[2]["row"]))
        return several(*arguments, **rest)

    several = feed.train_steps
    monkeypatch.setattr(feed, "train_steps", counted)
    for at_once, steps in ((1, 3), (3, 3), (3, 20)):
        monkeypatch.setitem(feed.AT_ONCE, "cpu", at_once)
        config = config_for(folder, num_steps=steps, checkpoint_every_steps=5, log_every_steps=1)
        config.data_on_device = "always"
        loop.train(config, tmp_path / f"{steps} by {at_once}")
    assert taken == [3] + [3] * 4  # steps 1 to 3; and then again, with 7 to 9, 13 to 15 and 16 to 18
    assert [line["step"] for line in numbers_of(tmp_path / "20 by 3") if "train_loss" in line] == [*range(1, 21)]
    want, got = (numbers_of(tmp_path / name) for name in ("3 by 1", "3 by 3"))
    for one, other in zip(want, got, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    want, got = (arrays_of(tmp_path / name, 3) for name in ("3 by 1", "3 by 3"))
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-4 * np.abs(want[name]).max(), err_msg=name)


def test_a_number_that_is_not_finite_is_told_with_its_own_step(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(feed.AT_ONCE, "cpu", 4)
    config = config_for(folder, learning_rate=1e20, num_steps=24, checkpoint_every_steps=100, data_on_device="always")
    with pytest.raises(FloatingPointError, match=r"is not finite at step [23]\."):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_a_killed_run_on_the_device_ends_as_the_loader_s_would(folder, tmp_path):  # noqa: F811
    config = config_for(folder, data_on_device="always", num_steps=12)
    config_lib.save(config, tmp_path / "config.json")
    child = [sys.executable, "-c", CHILD, "8", str(tmp_path / "cut"), str(tmp_path / "config.json")]
    killed = subprocess.run(child, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    loop.train(config, tmp_path / "cut")
    loop.train(config_for(folder, data_on_device="never", num_steps=12), tmp_path / "whole")
    want, got = (arrays_of(tmp_path / name, 12) for name in ("whole", "cut"))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


NEEDED = IMAGES * 32 * 32 * 3


@pytest.mark.parametrize(
    ("choice", "steps", "free", "stays"),
    [
        ("auto", 6, 4 * NEEDED, True),
        ("auto", 5, 4 * NEEDED, False),  # less than an epoch
        ("always", 5, NEEDED, True),
        ("never", 6, 4 * NEEDED, False),
    ],
)
def test_when_a_set_is_put_on_the_devices(folder, tmp_path, monkeypatch, choice, steps, free, stays):  # noqa: F811
    run = run_for(folder, tmp_path, data_on_device=choice, num_steps=24)
    monkeypatch.setattr(feed, "free_memory", lambda together: float(free))
    assert 24 * BATCH == 4 * IMAGES
    assert feed.choose(run, 24 - steps) == (stays, "")


def test_a_set_that_is_too_large_stays_on_the_host_with_a_word(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = run_for(folder, tmp_path)
    monkeypatch.setattr(feed, "free_memory", lambda together: 4.0 * NEEDED - 1)
    assert isinstance(feed.feed(run, 0), feed.FromHost)
    assert "training images take 0.0 GB, and 0.0 GB are free for them: they are read" in capsys.readouterr().out
    monkeypatch.setattr(feed, "free_memory", lambda together: NEEDED - 1.0)
    run = dataclasses.replace(run, config=config_for(folder, data_on_device="always"))
    with pytest.raises(UsageError, match=r"0\.0 GB are free for them\. Set --config\.data_on_device=auto or never"):
        feed.feed(run, 0)


def test_the_free_memory_of_devices(monkeypatch):
    class Device:
        platform = "gpu"

        def __init__(self, limit, used):
            self.memory_stats = lambda: limit and {"bytes_limit": limit, "bytes_in_use": used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(100, 30), Device(100, 50)])
    assert feed.free_memory() == 50
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None, 0)])
    monkeypatch.setattr(hosts, "free_memory", lambda: None)
    assert feed.free_memory() == float("inf")
    monkeypatch.setattr(hosts, "free_memory", lambda: 60)  # the host decodes the images first
    assert feed.free_memory(together=2) == 30
    monkeypatch.undo()
    monkeypatch.setattr(hosts, "free_memory", lambda: 800)
    assert feed.free_memory() == 800 / len(jax.local_devices())
