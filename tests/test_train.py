"""The step against its formula; runs that are killed, stopped, or go wrong; what a run leaves behind."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import LRN, AlexNet, Conv, Dense, Dropout, Flatten, Input, MaxPool, ReLU, cli, towers, train
from alexnet_jax.augment import ColorPCA
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import UsageError
from alexnet_jax.data.statistics import Statistics
from configs import quickstart

ROOT = Path(__file__).parent.parent
PICTURES, BATCH = 96, 16  # six steps an epoch


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Ten classes of coloured noise on a bright spot, 96 pictures to train on and 30 to test on."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", PICTURES), ("val", 30)):
        for i in range(count):
            label = i % 10
            image = rng.integers(0, 100, (32, 32, 3), np.uint8)
            image[3 * label : 3 * label + 4, 10:20] = 250
            path = root / split / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def config_for(folder, **changes):
    config = quickstart.get_config()
    config.update(dataset=f"folder:{folder}", batch_size=BATCH, eval_batch_size=10, num_steps=24)
    # An error must fall by nine tenths to count: the rate drops at the second, third and fourth evaluation.
    config.plateau.update(patience=1, threshold=0.9)
    config.update({"checkpoint_every_steps": 3, "log_every_steps": 2, **changes})
    return config


def arrays_of(workdir, step):
    """All arrays of a checkpoint, by name, as a run restores them."""
    config = train.config_lib.load(workdir / "config.json")
    run = train.set_up(config, workdir)
    with Checkpoints(workdir) as checkpoints:
        state, _ = run.restore(checkpoints, step)
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(state)}


@pytest.fixture(scope="session")
def uncut(folder, tmp_path_factory):
    """A run of 24 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("uncut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", functools.partial(_one_device, jax.devices))
        return workdir, train.train(config_for(folder), workdir)


def _one_device(devices, *arguments):
    return devices(*arguments)[:1]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs see one device, as the processes that they are compared with do."""
    monkeypatch.setattr(jax, "devices", functools.partial(_one_device, jax.devices))


CHILD = """
import os, signal, sys
from alexnet_jax import config, train
kill_at, workdir = int(sys.argv[1]), sys.argv[2]
add = train.Journal.add
def add_or_die(self, step, metrics):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, step, metrics)
train.Journal.add = add_or_die
train.train(config.load(train.Path(sys.argv[3])), workdir)
"""


@pytest.mark.parametrize("kill_at", [8, 16], ids=["in the middle of an epoch", "after a drop of the rate"])
def test_a_killed_run_ends_bit_identical_to_one_that_was_not(kill_at, folder, uncut, tmp_path):
    config, workdir = config_for(folder), tmp_path / "cut"
    train.config_lib.save(config, tmp_path / "config.json")
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    child = [sys.executable, "-c", CHILD, str(kill_at), str(workdir), str(tmp_path / "config.json")]
    killed = subprocess.run(child, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Checkpoints(workdir) as checkpoints:
        resumed_from = checkpoints.latest_step()
    assert 0 < resumed_from < kill_at

    train.train(config, workdir)

    want, got = arrays_of(uncut[0], 24), arrays_of(workdir, 24)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)
    assert got[".schedule.scale"] == pytest.approx(1e-3)  # the rate did drop, three times

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["step"] for line in lines if "train_loss" in line]
    assert losses == list(range(2, 25, 2))  # each step is told once


def test_a_run_leaves_all_outputs(uncut):
    workdir, result = uncut
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["steps"] == 24
    assert result["examples"] == result["one_view"]["examples"] == result["ten_views"]["examples"] == 30
    assert result["parameters"] == 286_922
    assert 0 <= result["one_view"]["top5_error"] <= result["one_view"]["top1_error"] <= 100
    assert json.loads((workdir / "config.json").read_text())["batch_size"] == BATCH
    assert list(workdir.glob("events.out.tfevents.*"))
    assert (workdir / "statistics.npz").exists()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_top1_error" in line] == [6, 12, 18, 24]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.01 * 0.1**2)
    assert "24" in {path.name for path in (workdir / "checkpoints").iterdir()}


def test_the_evaluate_command_repeats_the_results(uncut, capsys):
    workdir, result = uncut
    cli.main(["evaluate", f"--workdir={workdir}", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {name: result[name] for name in ("one_view", "ten_views")}


def test_a_finished_run_started_again_only_evaluates(folder, uncut):
    workdir, result = uncut
    again = train.train(config_for(folder), workdir)
    assert again["one_view"] == result["one_view"]
    assert again["steps"] == 24


@pytest.mark.parametrize("stop_at", [4, 6], ids=["within an epoch", "before an epoch is evaluated"])
def test_sigterm_saves_and_the_next_run_loses_nothing(stop_at, folder, uncut, tmp_path, monkeypatch, capsys):
    add = train.Journal.add

    def add_and_stop(self, step, metrics):
        add(self, step, metrics)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.Journal, "add", add_and_stop)
        assert train.train(config_for(folder, checkpoint_every_steps=100), tmp_path) == {}
    assert f"after step {stop_at}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not (tmp_path / "result.json").exists()
    train.train(config_for(folder), tmp_path)
    assert f"Resuming {tmp_path} after step {stop_at}" in capsys.readouterr().out
    want, got = arrays_of(uncut[0], 24), arrays_of(tmp_path, 24)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(folder, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+") as caught:
        train.train(config_for(folder, learning_rate=1e4, checkpoint_every_steps=1), tmp_path)
    step = int(str(caught.value).split("at step ")[1].split(".")[0])
    with Checkpoints(tmp_path) as checkpoints:
        good = checkpoints.latest_step()
    assert good == step - 1
    arrays = arrays_of(tmp_path, good)
    assert all(np.isfinite(a).all() for name, a in arrays.items() if "schedule" not in name)


def test_another_network_in_the_workdir_is_refused(folder, uncut, tmp_path):
    workdir = uncut[0]
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    with pytest.raises(UsageError, match=r"checkpoint 24 .* is of another network: it has float32\[2, 5\] for .*fc8"):
        train.train(config_for(folder, num_classes=12), tmp_path)


TINY = (
    Input(12, towers=2),
    Conv(8, 3, bias=0.1, std=0.1),
    ReLU(),
    LRN(alpha=1e-2),
    MaxPool(3, 2),
    Conv(8, 3, sees="all", std=0.1),
    ReLU(),
    Flatten(),
    Dense(16, std=0.1),
    ReLU(),
    Dropout(0.5),
    Dense(5, std=0.1),
)


def tiny_recipe(data=1, tower=1, architecture=TINY, form="decoupled", **changes):
    recipe = train.Recipe(
        network=AlexNet(architecture, devices=tower),
        mesh=towers.make_mesh(tower, jax.local_devices()[: data * tower]),
        seed=3,
        crop=True,
        flip=True,
        pca_std=0.1,
        pca_scale="eigenvalue",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        weight_decay_form=form,
        plateau=(("factor", 0.1), ("patience", 2), ("drops", 3), ("threshold", 1e-3)),
    )
    return dataclasses.replace(recipe, **changes)


def tiny_batch(step, n=8):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 5, n).astype(np.int32),
        "index": (step * n + np.arange(n)).astype(np.uint32),
    }


STATISTICS = Statistics(np.full((16, 16, 3), 127.5, np.float32), ColorPCA(np.eye(3), np.array([0.2, 0.02, 0.005])))


def run_tiny(recipe, steps=5):
    state, losses = train.init_state(recipe=recipe), []
    for step in range(steps):
        batch = train.put(tiny_batch(step), recipe.mesh)
        state, metrics = train.train_step(state, batch, STATISTICS, recipe=recipe)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.mark.parametrize("form", ["decoupled", "paper"])
def test_a_step_follows_the_formula_of_the_update(form):
    without_noise = tuple(layer for layer in TINY if not isinstance(layer, Dropout))
    recipe = tiny_recipe(architecture=without_noise, form=form, crop=False, flip=False, pca_std=0.0)
    state = jax.device_get(train.init_state(recipe=recipe))
    w = jax.tree.map(np.float64, state.params)
    v = jax.tree.map(np.zeros_like, w)
    inside, outside = (5e-4, 0.0) if form == "paper" else (0.0, 5e-4 / (1 - 0.9))
    for step in range(4):
        batch = tiny_batch(step)

        def loss(params, batch=batch):
            images = (batch["image"].astype(np.float32) - STATISTICS.mean_image)[:, 2:14, 2:14]
            log_p = jax.nn.log_softmax(AlexNet(without_noise).apply({"params": params}, images))
            return -log_p[jnp.arange(8), batch["label"]].mean()

        value, g = jax.value_and_grad(loss)(jax.tree.map(jnp.float32, w))
        state, metrics = train.train_step(state, train.put(batch, recipe.mesh), STATISTICS, recipe=recipe)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
        v = jax.tree.map(lambda v, w, g: 0.9 * v - inside * 0.01 * w - 0.01 * np.float64(g), v, w, g)
        w = jax.tree.map(lambda w, v: w + v - 0.01 * outside * w, w, v)
    for want, got in zip(jax.tree.leaves(w), jax.tree.leaves(jax.device_get(state.params)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("data", "tower"), [(1, 2), (2, 1), (2, 2), (4, 2)])
def test_every_mesh_trains_the_same_network(data, tower):
    want, want_losses = run_tiny(tiny_recipe())
    got, losses = run_tiny(tiny_recipe(data, tower))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-3))


def test_the_numbers_drawn_depend_on_the_seed_and_the_example_only():
    state = train.init_state(recipe=tiny_recipe())
    batch = tiny_batch(0)

    def loss_of(recipe, batch):
        copy = jax.tree.map(jnp.copy, state)
        return float(train.train_step(copy, train.put(batch, recipe.mesh), STATISTICS, recipe=recipe)[1]["loss"])

    order = np.random.default_rng(1).permutation(8)
    shuffled = {name: a[order] for name, a in batch.items()}
    assert loss_of(tiny_recipe(), shuffled) == pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-6)
    renamed = batch | {"index": batch["index"] + 1}
    assert loss_of(tiny_recipe(), renamed) != pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-4)
    assert loss_of(tiny_recipe(seed=4), batch) != pytest.approx(loss_of(tiny_recipe(), batch), rel=1e-4)


@pytest.mark.slow
def test_the_quickstart_learns_the_digits(tmp_path):
    command = [sys.executable, "main.py", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    subprocess.run([*command, f"--config.data_dir={tmp_path}"], cwd=ROOT, env=environment, check=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["examples"] == 1000
    assert result["one_view"]["top1_error"] <= 5
    assert result["ten_views"]["top1_error"] <= 5
