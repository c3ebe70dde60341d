"""Several processes on this host, connected over loopback: one network, one run, one end."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import config as config_lib
from alexnet_jax import convert, hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.training import setup
from alexnet_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
STEPS = 24


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(workdir, data_dir, *arguments, devices=1, environment=None, cwd=ROOT, program=ROOT / "main.py"):
    """A process of `python main.py`, or of another program, with the quickstart, on a number of fake devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **(environment or {}),
    }
    command = [
        sys.executable, program, f"--config={ROOT / 'configs/quickstart.py'}", f"--workdir={workdir}",
        f"--config.data_dir={data_dir}", f"--config.num_steps={STEPS}", "--config.checkpoint_every_steps=8",
        "--config.report=false", "--config.batch_size=64", "--config.cooldown=0.0", *arguments,
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


PATIENT, QUICK = "--timeout=1000", "--timeout=20"
"""Seconds without a sign of life after which a process counts as lost. QUICK is for tests that lose one. The others
are patient: after 100 s, JAX once counted both processes as lost on a machine whose log had a gap of 94 s."""


def start_two(
    workdir, data_dir, *arguments, timeout=PATIENT, each=((), ()), cwds=(ROOT, ROOT), programs=(ROOT / "main.py",) * 2
):
    """Two processes with one device each, by the flags."""
    port = free_port()
    return [
        start(
            workdir, data_dir, f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={process}",
            timeout, *arguments, *each[process], cwd=cwds[process], program=programs[process],
        )
        for process in range(2)
    ]  # fmt: skip


def end(processes):
    """(exit code, stdout, stderr) of each."""
    try:
        shown = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:  # nothing, unless one of them hangs
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, shown, strict=True)]


def arrays_of(workdir, step=STEPS):
    """All arrays of a checkpoint, by name."""
    run = setup.set_up(config_lib.load(workdir / "config.json"), workdir)
    with Checkpoints(workdir) as checkpoints:
        state, _ = run.restore(checkpoints, step)
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(state)}


def assert_same(one, other):
    want, got = arrays_of(one), arrays_of(other)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The workdir of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    [(code, _, shown)] = end([start(workdir, data_dir)])
    assert code == 0, shown
    return workdir


@pytest.fixture(scope="module")
def two_devices(data_dir, tmp_path_factory):
    """The workdir of one process with two devices that share each batch."""
    workdir = tmp_path_factory.mktemp("two-devices")
    [(code, _, shown)] = end([start(workdir, data_dir, devices=2)])
    assert code == 0, shown
    return workdir


@pytest.mark.slow
def test_two_processes_that_slurm_starts_train_the_towers_as_one_does(alone, data_dir, tmp_path):
    job = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    processes = [
        start(
            tmp_path, data_dir, PATIENT, "--config.mesh.tower=2",
            environment={**job, "SLURM_PROCID": str(process), "SLURM_LOCALID": str(process)},
        )
        for process in range(2)
    ]  # fmt: skip
    (code0, shown0, errors0), (code1, shown1, errors1) = end(processes)
    assert (code0, code1) == (0, 0), errors0 + errors1
    assert_same(alone, tmp_path)
    assert "one view" in shown0
    assert [line for line in shown1.splitlines() if "Gloo" not in line] == []  # one process tells
    lines = [(w / "metrics.jsonl").read_text().splitlines() for w in (alone, tmp_path)]
    of_time = {"images_per_second", "waiting_percent"}
    told = [[{k: v for k, v in json.loads(x).items() if k not in of_time} for x in side] for side in lines]
    for want, got in zip(*told, strict=True):
        assert got == pytest.approx(want, rel=1e-6)
    results = [json.loads((w / "result.json").read_text()) for w in (alone, tmp_path)]
    assert results[0]["one_view"] == pytest.approx(results[1]["one_view"])


def test_processes_that_disagree_on_the_config_are_told_so(data_dir, tmp_path):
    ended = end(start_two(tmp_path / "run", data_dir, each=((), ("--config.learning_rate=0.02",))))
    for code, _, shown in ended:
        assert code == 1
        assert shown.splitlines()[-1] == (
            "error: the processes disagree: config.learning_rate is 0.01 for process 0 and 0.02 for process 1. "
            "Start all of them with the same files and arguments."
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_that_share_batches_train_as_one_with_two_devices(two_devices, data_dir, tmp_path):
    ended = end(start_two(tmp_path, data_dir, "--config.report=true"))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert_same(two_devices, tmp_path)
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_of_a_run_as_one_does(alone, data_dir, tmp_path):
    arguments = f"--config.pretrained={alone}", "--config.num_steps=4", "--config.views=1"
    one, two = tmp_path / "one", tmp_path / "two"
    for code, _, shown in end([start(one, data_dir, *arguments, devices=2), *start_two(two, data_dir, *arguments)]):
        assert code == 0, shown
    want, got = arrays_of(one, 4), arrays_of(two, 4)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("second", ["another", "none"])
def test_weights_that_are_not_the_same_for_both_are_refused(second, alone, data_dir, tmp_path):
    folders = tmp_path / "0", tmp_path / "1"
    for folder in folders:
        folder.mkdir()
    weights = convert.convert(alone, folders[0] / "w.safetensors")
    if second == "another":
        convert.write(dataclasses.replace(weights, mean_image=weights.mean_image + 1), folders[1] / "w.safetensors")
    arguments = "--config.pretrained=w.safetensors", "--config.num_steps=4"
    for code, _, shown in end(start_two(tmp_path / "run", data_dir, *arguments, cwds=folders)):
        assert code == 1
        assert ("what is in w.safetensors is" if second == "another" else "w.safetensors does not exist") in shown
    assert not (tmp_path / "run" / "config.json").exists()


def wait_for_checkpoint(workdir, processes, step=8):
    for _ in range(1200):
        if (workdir / "checkpoints" / str(step)).exists():
            return
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    pytest.fail("no checkpoint came")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_when_one_process_is_killed_the_other_ends_and_both_resume(victim, two_devices, data_dir, tmp_path):
    processes = start_two(tmp_path, data_dir, timeout=QUICK)
    wait_for_checkpoint(tmp_path, processes)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    code, _, shown = end(processes)[1 - victim]
    assert time.monotonic() - began < 40
    assert code not in (0, None)
    # Whoever notices first: our own line, or JAX's runtime, which aborts when the coordinator is gone.
    assert "start all processes again with the same command, and they resume" in shown or "another task died" in shown
    if victim == 1:
        assert code == 1
        assert "error: process 0 of 2 stopped: " in shown
    with Checkpoints(tmp_path) as checkpoints:
        assert 8 <= checkpoints.latest_step() < STEPS

    (code0, shown0, errors0), (code1, _, errors1) = end(start_two(tmp_path, data_dir))
    assert (code0, code1) == (0, 0), errors0 + errors1
    assert f"Resuming {tmp_path} after step " in shown0
    assert_same(two_devices, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.long), 1])
def test_sigterm_to_one_process_stops_both_at_the_same_step(asked, two_devices, data_dir, tmp_path):
    processes = start_two(tmp_path, data_dir)
    wait_for_checkpoint(tmp_path, processes)
    processes[asked].send_signal(signal.SIGTERM)
    (code0, shown0, errors0), (code1, _, errors1) = end(processes)
    assert (code0, code1) == (0, 0), errors0 + errors1
    with Checkpoints(tmp_path) as checkpoints:
        step = checkpoints.latest_step()
    assert f"Stopped: saved {tmp_path} after step {step}; the same command resumes it." in shown0
    assert 8 <= step < STEPS
    assert not (tmp_path / "result.json").exists()
    assert [code for code, *_ in end(start_two(tmp_path, data_dir))] == [0, 0]
    assert_same(two_devices, tmp_path)


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_both(data_dir, tmp_path):
    """The survey reads every image before training: this one breaks later."""
    images = tmp_path / "pictures"
    for split, count in (("train", 64), ("val", 4)):
        for i in range(count):
            path = images / split / f"class{i % 10}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(path)
    workdir, arguments = tmp_path / "run", (f"--config.dataset=folder:{images}", "--config.batch_size=16")
    arguments += ("--config.eval_batch_size=4", "--config.data_on_device=never")
    processes = start_two(workdir, data_dir, *arguments, "--config.num_steps=2000", timeout=QUICK)
    wait_for_checkpoint(workdir, processes)
    for path in images.glob("train/class3/*.png"):
        path.write_text("I am no image any more")
    began = time.monotonic()
    ended = end(processes)
    assert time.monotonic() - began < 60
    assert {code for code, *_ in ended} <= {1, -signal.SIGABRT}
    assert any("does not decode as an image" in shown for *_, shown in ended)
    assert any("it stops, and the others stop too" in shown for *_, shown in ended)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(data_dir, tmp_path):
    port = free_port()
    processes = [
        start(
            tmp_path / f"disk{process}", data_dir, f"--coordinator=localhost:{port}", "--num_processes=2",
            f"--process_id={process}", PATIENT,
        )
        for process in range(2)
    ]  # fmt: skip
    for code, _, shown in end(processes):
        assert code == 1
        assert f"{tmp_path}/disk1 is not the same folder here and on process 0. Give a --workdir" in shown
        assert "on storage that all hosts share" in shown
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":12345"])
def test_a_coordinator_without_host_or_port_is_refused(address, process):
    with pytest.raises(UsageError) as error, hosts.session(address, 2, process):
        pytest.fail("started")
    assert str(error.value).startswith(f"--coordinator is {address}; accepted is HOST:PORT of process 0")


def test_a_process_that_finds_nobody_says_so():
    address = f"localhost:{free_port()}"
    with pytest.raises(UsageError) as error, hosts.session(address, 2, 1, timeout=1):
        pytest.fail("started")
    assert str(error.value).startswith(f"--coordinator is {address}, where process 0 did not answer within 1 s (")
    assert "Give HOST:PORT of process 0" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("localhost:1", 0, -1), "--num_processes, --process_id"),
        (("localhost:1", 2, -1), "--process_id"),
        (("", 2, 0), "--coordinator"),
        (("", 0, 0), "--coordinator, --num_processes"),
    ],
)
def test_flags_that_are_missing_are_named(arguments, missing):
    with pytest.raises(UsageError) as error, hosts.session(*arguments):
        pytest.fail("started")
    assert str(error.value).startswith(f"{missing} is missing. Give --coordinator=HOST:PORT, ")


def test_a_process_beyond_the_last_is_refused():
    with pytest.raises(UsageError, match=r"--process_id is 2; accepted are 0 to 1"), hosts.session("localhost:1", 2, 2):
        pytest.fail("started")


def test_alone_a_process_agrees_with_itself(tmp_path):
    assert hosts.gather("words, also longer ones: äöü") == ["words, also longer ones: äöü"]
    hosts.agree({"a": 1, "b": [None, "c"]})
    hosts.share(tmp_path / "new" / "folder")
    assert list((tmp_path / "new").glob("*/*")) == []
    assert hosts.together(lambda: 3) == hosts.in_turn(lambda: 3) == 3
    with pytest.raises(UsageError, match="own words"):
        hosts.together(lambda: (_ for _ in ()).throw(UsageError("own words")))


@pytest.mark.slow
def test_a_process_that_slurm_starts_alone_still_hears_sigterm(data_dir, tmp_path):
    job = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
        "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    }  # fmt: skip
    process = start(tmp_path, data_dir, "--config.num_steps=2000", environment=job)
    wait_for_checkpoint(tmp_path, [process])
    process.send_signal(signal.SIGTERM)
    [(code, shown, errors)] = end([process])
    assert code == 0, errors
    assert f"Stopped: saved {tmp_path} after step " in shown


def test_compiled_programs_are_kept_by_host_unless_the_environment_says_where(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    hosts.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    try:
        hosts.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "alexnet_jax" / socket.gethostname())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_convolutions_are_eigens_unless_the_environment_says_whose(monkeypatch):
    monkeypatch.setattr(hosts.importlib.metadata, "entry_points", lambda group: ())  # as where JAX has no accelerator
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    hosts.convolve_with_eigen()
    flags = "--xla_force_host_platform_device_count=4 --xla_cpu_experimental_ynn_fusion_type=individual_dot"
    assert os.environ["XLA_FLAGS"] == flags
    hosts.convolve_with_eigen()
    assert os.environ["XLA_FLAGS"] == flags
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    hosts.convolve_with_eigen()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type="
    monkeypatch.delenv("XLA_FLAGS")
    with monkeypatch.context() as patch:
        patch.setattr(jax.version, "__version_info__", (0, 13, 0))  # perhaps without that flag
        hosts.convolve_with_eigen()
    assert "XLA_FLAGS" not in os.environ
    monkeypatch.setattr(hosts.importlib.metadata, "entry_points", lambda group: (group,))  # an accelerator's own XLA
    hosts.convolve_with_eigen()
    assert "XLA_FLAGS" not in os.environ


def test_outside_of_the_main_thread_signals_are_left_alone_and_it_says_so(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with hosts.Sigterm() as sigterm:
            assert not sigterm.check()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "This is not the main thread: SIGTERM and Ctrl-C will not save the state" in capsys.readouterr().out


@pytest.mark.parametrize("home", ["unknown", "read-only"])
def test_without_a_home_folder_nothing_is_kept_and_it_says_so_once(home, monkeypatch, capsys, tmp_path):
    def refuses(*_, **__):
        if home == "unknown":
            raise RuntimeError("Could not determine home directory.")
        raise PermissionError(13, "Permission denied")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home" if home == "unknown" else "mkdir", refuses)
    before = jax.config.jax_compilation_cache_dir
    hosts.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before
    assert capsys.readouterr().out.count("Compiled programs are not kept: no home folder can be written to.") == 1


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
    with hosts.alone(tmp_path), pytest.raises(UsageError) as error, hosts.alone(tmp_path):
        pass
    assert f"Another run is using {tmp_path}: process {os.getpid()} on " in str(error.value)
    with hosts.alone(tmp_path):
        pass


@pytest.mark.parametrize(("limits", "free"), [((), 3000 * 1024), (("max",), 3000 * 1024), (("2000", "9" * 19), 2000)])
def test_free_memory_is_that_of_the_container_if_it_has_less(limits, free, tmp_path, monkeypatch):
    paths = [tmp_path / str(k) for k in range(2)]
    for path, limit in zip(paths, limits, strict=False):
        path.write_text(f"{limit}\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr(hosts, "_LIMITS", paths)
    monkeypatch.setattr(hosts, "_MEMINFO", meminfo)
    assert hosts.free_memory() == free
    meminfo.unlink()
    assert hosts.free_memory() == (2000 if "2000" in limits else None)
