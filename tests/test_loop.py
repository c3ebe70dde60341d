"""Runs that are killed, stopped, or go wrong; what a run leaves behind."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax.errors import UsageError
from alexnet_jax.inspection import report
from alexnet_jax.training import chance, loop, schedule, setup
from alexnet_jax.training.checkpoint import Checkpoints
from configs import quickstart

ROOT = Path(__file__).parent.parent
IMAGES, BATCH = 96, 16  # six steps an epoch


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Ten classes of coloured noise on a bright spot, 96 images to train on and 30 to test on."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 30)):
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
    config.update(dataset=f"folder:{folder}", batch_size=BATCH, eval_batch_size=10, num_steps=24, report=False)
    # An error must fall by nine tenths to count: the rate drops at the second, third and fourth evaluation.
    config.plateau.update(patience=1, patience_steps=1, threshold=0.9)
    config.update({"checkpoint_every_steps": 3, "log_every_steps": 2, "cooldown": 0.0, **changes})
    return config


def arrays_of(workdir, step):
    """All arrays of a checkpoint, by name, as a run restores them."""
    config = config_lib.load(workdir / "config.json")
    run = setup.set_up(config, workdir)
    with Checkpoints(workdir) as checkpoints:
        state, _ = run.restore(checkpoints, step)
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(state)}


@pytest.fixture(scope="session")
def uncut(folder, tmp_path_factory):
    """A run of 24 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("uncut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", functools.partial(_one_device, jax.devices))
        patch.setattr(schedule, "LEFT", 9.0)
        return workdir, loop.train(config_for(folder), workdir)


def _one_device(devices, *arguments):
    return devices(*arguments)[:1]


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs see one device, as the processes that they are compared with do; in both, any loss is one of learning."""
    monkeypatch.setattr(jax, "devices", functools.partial(_one_device, jax.devices))
    monkeypatch.setattr(schedule, "LEFT", 9.0)  # 24 steps are too few to leave chance, but shall have drops


CHILD = """
import os, pathlib, signal, sys
import jax
from alexnet_jax import config
from alexnet_jax.training import loop, schedule
schedule.LEFT = 9.0
devices = jax.devices
jax.devices = lambda *arguments: devices(*arguments)[:1]
kill_at, workdir = int(sys.argv[1]), sys.argv[2]
add = loop.Journal.add
def add_or_die(self, step, metrics):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, step, metrics)
loop.Journal.add = add_or_die
loop.train(config.load(pathlib.Path(sys.argv[3])), workdir)
"""


@pytest.mark.parametrize(
    "kill_at",
    [
        pytest.param(8, marks=pytest.mark.slow, id="in the middle of an epoch"),
        pytest.param(16, id="after a drop of the rate"),
    ],
)
def test_a_killed_run_ends_bit_identical_to_one_that_was_not(kill_at, folder, uncut, tmp_path):
    config, workdir = config_for(folder), tmp_path / "cut"
    config_lib.save(config, tmp_path / "config.json")
    # The same XLA_FLAGS: the number of its devices sets how many threads share a sum, and so its rounding.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = [sys.executable, "-c", CHILD, str(kill_at), str(workdir), str(tmp_path / "config.json")]
    killed = subprocess.run(child, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Checkpoints(workdir) as checkpoints:
        resumed_from = checkpoints.latest_step()
    assert 0 < resumed_from < kill_at

    loop.train(config, workdir)

    want, got = arrays_of(uncut[0], 24), arrays_of(workdir, 24)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)
    assert got[".schedule.scale"] == pytest.approx(1e-3)  # the rate did drop, three times

    told = [
        [(line["step"], line["train_loss"], line["train_error"]) for line in lines if "train_loss" in line]
        for lines in (map(json.loads, (w / "metrics.jsonl").read_text().splitlines()) for w in (uncut[0], workdir))
    ]
    assert told[0] == told[1]  # from checkpoints at odd steps, with lines at even ones
    assert [step for step, *_ in told[1]] == list(range(2, 25, 2))


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
    assert result["left_chance_at_step"] == 1
    assert [line["step"] for line in lines if "left_chance" in line] == [1]
    assert "24" in {path.name for path in (workdir / "checkpoints").iterdir()}


def test_a_run_ends_with_its_page_unless_it_is_not_to(folder, uncut, tmp_path, monkeypatch, capsys):
    assert not (uncut[0] / "report.html").exists()
    with monkeypatch.context() as patch:
        patch.setattr(report, "write", lambda *_, **__: 1 / 0)
        result = loop.train(config_for(folder, num_steps=2, report=True), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == result != {}  # a page that fails costs nothing else
    assert "Wrote: " not in capsys.readouterr().out
    loop.train(config_for(folder, num_steps=2, report=True), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert f"{result['one_view']['top1_error']:.1f}" in page
    assert f"Wrote: {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_statistics_left_by_a_run_that_never_began_are_not_used(folder, tmp_path):
    run = setup.set_up(config_for(folder), tmp_path)
    wanted = np.asarray(run.statistics.mean_image)
    assert wanted.any()
    dataclasses.replace(run.statistics, mean_image=0 * wanted).save(tmp_path / "statistics.npz")
    assert not np.asarray(setup.set_up(config_for(folder), tmp_path).statistics.mean_image).any()
    (tmp_path / "config.json").unlink()
    np.testing.assert_array_equal(setup.set_up(config_for(folder), tmp_path).statistics.mean_image, wanted)


def test_the_evaluate_command_repeats_the_results(uncut, capsys):
    workdir, result = uncut
    cli.main(["evaluate", f"--workdir={workdir}", "--json"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {name: result[name] for name in ("one_view", "ten_views")}


def test_a_finished_run_started_again_only_evaluates(folder, uncut):
    workdir, result = uncut
    again = loop.train(config_for(folder), workdir)
    assert again["one_view"] == result["one_view"]
    assert again["steps"] == 24


@pytest.mark.parametrize(
    ("stop_at", "by"),
    [
        pytest.param(4, signal.SIGTERM, id="within an epoch"),
        pytest.param(6, signal.SIGINT, id="before an epoch is evaluated"),
    ],
)
def test_sigterm_and_ctrl_c_save_and_the_next_run_loses_nothing(
    stop_at, by, folder, uncut, tmp_path, monkeypatch, capsys
):
    add = loop.Journal.add

    def add_and_stop(self, step, metrics):
        add(self, step, metrics)
        if step == stop_at:
            os.kill(os.getpid(), by)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Journal, "add", add_and_stop)
        with pytest.raises(KeyboardInterrupt) if by == signal.SIGINT else contextlib.nullcontext():
            assert loop.train(config_for(folder, checkpoint_every_steps=100), tmp_path) == {}
    assert f"after step {stop_at}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (tmp_path / "result.json").exists()
    loop.train(config_for(folder), tmp_path)
    assert f"Resuming {tmp_path} after step {stop_at}" in capsys.readouterr().out
    want, got = arrays_of(uncut[0], 24), arrays_of(tmp_path, 24)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


def test_sigterm_twice_at_the_same_evaluation_loses_nothing(folder, uncut, tmp_path, monkeypatch):
    validate = loop.validate

    def stopped_on_the_way(run, state, progress, writer, sigterm, **arguments):
        if int(state.step) == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(run, state, progress, writer, sigterm, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stopped_on_the_way)
        for _ in range(2):
            assert loop.train(config_for(folder, checkpoint_every_steps=100), tmp_path) == {}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 12
    loop.train(config_for(folder), tmp_path)
    want, got = arrays_of(uncut[0], 24), arrays_of(tmp_path, 24)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


def test_a_run_that_ended_within_an_epoch_can_be_extended_as_if_it_had_not(folder, uncut, tmp_path):
    assert loop.train(config_for(folder, num_steps=15), tmp_path)["steps"] == 15
    assert loop.train(config_for(folder), tmp_path)["steps"] == 24
    want, got = arrays_of(uncut[0], 24), arrays_of(tmp_path, 24)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


def test_until_makes_an_epoch_the_last_also_where_the_run_was_cut_off_behind_it(folder, tmp_path, monkeypatch):
    asked, workdir = [], tmp_path / "until"

    def until():
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        asked.append(lines[-1]["step"])
        return len([line for line in lines if "eval_top1_error" in line]) == 2

    with monkeypatch.context() as patch:
        patch.setattr(loop, "conclude", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(config_for(folder), workdir, until=until)
    assert asked == [6, 12]
    result = loop.train(config_for(folder), workdir, until=until)
    assert asked == [6, 12, 12]  # not within an epoch, where a run that was not cut off is not asked
    assert (result["steps"], result["epochs"]) == (12, 2.0)
    loop.train(config_for(folder, num_steps=12), tmp_path / "short")
    want, got = arrays_of(tmp_path / "short", 12), arrays_of(workdir, 12)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


def test_a_run_cut_off_within_an_epoch_is_not_asked_whether_it_has_ended(folder, tmp_path, monkeypatch):
    asked = []
    loop.train(config_for(folder, num_steps=4), tmp_path)
    result = loop.train(config_for(folder, num_steps=10), tmp_path, until=lambda: asked.append("") or True)
    assert (result["steps"], len(asked)) == (6, 1)


def test_sigterm_in_the_closing_evaluation_is_made_up_for(folder, uncut, tmp_path, monkeypatch, capsys):
    conclude = loop.conclude

    def stopped_on_the_way(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return conclude(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "conclude", stopped_on_the_way)
        assert loop.train(config_for(folder, num_steps=2), tmp_path) == {}
    assert "after step 2" in capsys.readouterr().out
    assert loop.train(config_for(folder, num_steps=2), tmp_path)["steps"] == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(folder, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+") as caught:
        loop.train(config_for(folder, learning_rate=1e4, checkpoint_every_steps=1), tmp_path)
    step = int(str(caught.value).split("at step ")[1].split(".")[0])
    with Checkpoints(tmp_path) as checkpoints:
        good = checkpoints.latest_step()
    assert good == step - 1
    arrays = arrays_of(tmp_path, good)
    assert all(np.isfinite(a).all() for name, a in arrays.items() if "schedule" not in name)


def test_a_run_that_stays_at_chance_says_so_once_and_at_its_end(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "LEFT", 0.95)
    monkeypatch.setattr(chance, "PATIENCE", 4)
    for steps in (6, 8):  # and once in a run that is resumed
        result = loop.train(config_for(folder, learning_rate=1e-9, num_steps=steps), tmp_path)
        assert result["left_chance_at_step"] is None
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert [line.split(" the network")[0] for line in said] == [f"WARNING: after {n} steps" for n in (4, 6, 8)]
    assert all(
        "at chance: its loss is not below 95% of 2.301, the loss of" in line for line in said
    )  # 96 of 10 classes


def test_evaluations_may_come_at_other_steps_than_the_ends_of_epochs(folder, tmp_path):
    loop.train(config_for(folder, eval_every_steps=4, num_steps=9), tmp_path)  # six steps an epoch
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_top1_error" in line] == [4, 8, 9]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 9


def test_a_drop_of_the_rate_is_printed_with_its_reason(folder, tmp_path, capsys):
    loop.train(config_for(folder, num_steps=12), tmp_path)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    best = next(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "eval_" in line)
    assert said == (
        "step 12: the learning rate is multiplied by 0.1: the validation error has not improved on "
        f"{best['eval_top1_error']:.2f}% (evaluations waited: 1, steps: 6)"
    )


def test_another_network_in_the_workdir_is_refused(folder, uncut, tmp_path):
    workdir = uncut[0]
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    message = r"checkpoint 24 .* belongs to another network: it has float32\[2, 5\] for .*fc8"
    with pytest.raises(UsageError, match=message):
        loop.train(config_for(folder, num_classes=12), tmp_path)


def test_a_network_may_have_more_classes_than_the_data(folder, tmp_path, capsys):
    run = setup.set_up(config_for(folder, num_classes=12), tmp_path)
    assert run.recipe.network.architecture[-1].units == 12
    assert "has no examples of class 10, class 11: 2 of 12 classes" in capsys.readouterr().out


def test_a_workdir_that_cannot_be_made_is_told_before_the_data_is_read(folder, tmp_path, monkeypatch):
    real = Path.mkdir

    def refuses(path, *arguments, **options):
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(UsageError, match=r"/run cannot be written to \(Permission denied\)\. Give another --workdir"):
        loop.train(config_for(folder), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "error"), [("quickstart", 5.0), pytest.param("lenet5", 3.0, marks=pytest.mark.long)]
)
def test_what_comes_with_the_packages_is_learned(config, error, tmp_path):
    command = [sys.executable, "main.py", f"--config=configs/{config}.py", f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    command.append(f"--config.data_dir={tmp_path}")
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["examples"] == 1000
    for views in {"one_view", "ten_views"} & result.keys():
        assert result[views]["top1_error"] <= error
    assert 0 < result["left_chance_at_step"] < result["steps"] / 2
    assert "WARNING" not in done.stdout
