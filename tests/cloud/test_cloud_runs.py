"""Runs whose workdir is in an object store: killed, without a network, refused, shared by two processes."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import cli
from alexnet_jax.files import copies, datasets, stores
from tests.cloud import servers
from tests.cloud.servers import gcs, put, read, s3  # noqa: F401
from tests.test_hosts import ROOT, STEPS, arrays_of, data_dir, end, start, start_two  # noqa: F401

servers.needs("s3fs", "gcsfs", "moto", "gcp_storage_emulator", "flask")
CHECKPOINTS = "--config.checkpoint_every_steps=4"
MEASURED = ("seconds", "images_per_second", "waiting_percent")  # these differ between two runs


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A home, a folder for temporary files and a cache of their own, so that nothing else is written unseen."""
    top = tmp_path_factory.mktemp("machine")
    folders = {"HOME": "home", "TMPDIR": "tmp", "ALEXNET_CACHE_DIR": "cache", "JAX_COMPILATION_CACHE_DIR": "compiled"}
    for folder in (*folders.values(), "work"):
        (top / folder).mkdir()
    return {name: str(top / folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def local_run(data_dir, environment, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp("local")
    [(code, _, shown)] = end([start(workdir, data_dir, CHECKPOINTS, environment=environment)])
    assert code == 0, shown
    return workdir


@pytest.fixture(scope="module")
def seconds(local_run, data_dir, environment, tmp_path_factory):  # noqa: F811
    """What such a run takes when its programs are compiled."""
    began = time.monotonic()
    [(code, _, shown)] = end([start(tmp_path_factory.mktemp("x"), data_dir, CHECKPOINTS, environment=environment)])
    assert code == 0, shown
    return time.monotonic() - began


def assert_same_run(local, address):
    """The same arrays, results and metrics, but for measured times."""
    with copies.opened(address, "--workdir") as folder:
        want, got = arrays_of(local), arrays_of(folder)
        assert want.keys() == got.keys()
        for name in want:
            np.testing.assert_array_equal(want[name], got[name], err_msg=name)
        for name, lines in (("result.json", False), ("metrics.jsonl", True)):
            texts = [(one / name).read_text() for one in (local, folder)]
            values = [
                [json.loads(line) for line in text.splitlines()] if lines else [json.loads(text)] for text in texts
            ]
            one, other = ([{k: v for k, v in x.items() if k not in MEASURED} for x in each] for each in values)
            assert one == other


def kill_at_random(address, data_dir, environment, kills, seconds):  # noqa: F811
    """Starts a run again and again and kills it at random moments, within the time that it takes in all."""
    draw, resumed = random.Random(24), set()
    for _ in range(kills):
        process = start(address, data_dir, CHECKPOINTS, environment=environment)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0.2, 1.0) * seconds)
        process.kill()
        shown = process.communicate()[0]
        resumed |= set(re.findall(r"Resuming \S+ after step (\d+)", shown))
    return resumed


def test_a_killed_run_resumes_and_ends_as_a_local_one(s3, local_run, data_dir, environment):  # noqa: F811
    address = f"{s3}/killed"
    process = start(address, data_dir, CHECKPOINTS, environment=environment)
    while not any(name.endswith(copies.WHOLE) for name in stores.listing(address)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    [(code, shown, errors)] = end([start(address, data_dir, CHECKPOINTS, environment=environment)])
    assert code == 0, errors
    assert re.search(rf"Resuming {address} after step \d+\.", shown)
    assert_same_run(local_run, address)
    assert servers.SECRET not in shown + errors
    for name in stores.listing(address):
        content = read(f"{address}/{name}")
        assert servers.SECRET.encode() not in content
        assert servers.KEYS["AWS_ACCESS_KEY_ID"].encode() not in content
    # Nothing of the run was written but to the cache, where the killed process left its copy.
    machine, names = Path(environment["HOME"]).parent, {name.rpartition("/")[2] for name in stores.listing(address)}
    written = {path.relative_to(machine).parts[0] for path in machine.rglob("*") if path.name in names}
    assert written <= {"cache"}
    assert len(list((machine / "cache/copies").iterdir())) <= 1


def test_the_commands_read_it(s3, local_run, data_dir, capsys, tmp_path, monkeypatch):  # noqa: F811
    address = f"{s3}/copied"
    datasets.put_folder(local_run, address, last="config.json")  # what a person copies there is a workdir as well
    datasets.put_folder(data_dir / "digits", f"{s3}/tfds/digits", last="1.0.0/dataset_info.json")
    monkeypatch.chdir(tmp_path)
    found = []
    for where, data in ((local_run, data_dir), (address, f"{s3}/tfds")):
        cli.main(["evaluate", f"--workdir={where}", f"--data_dir={data}", "--json"])
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        cli.main(["convert", str(where), f"{len(found)}.safetensors"])
        capsys.readouterr()
    assert found[0] == found[1]
    assert Path("1.safetensors").stat().st_size == Path("2.safetensors").stat().st_size
    cli.main(["report", f"--workdir={address}", f"--data_dir={s3}/tfds"])
    assert f"Wrote: {address}/report.html" in capsys.readouterr().out
    assert b"<html" in read(f"{address}/report.html")
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save("x.png")
    cli.main(["predict", "x.png", f"--workdir={address}", "--json"])
    assert len(json.loads(capsys.readouterr().out)["top"]) == 5
    with pytest.raises(SystemExit, match=r"step 24 of the run copied .* are the same network"):  # it has read both
        cli.main(["ensemble", f"--workdir={address}", f"--workdir={local_run}", f"--data_dir={data_dir}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors", "x.png"]


def test_with_wrong_credentials_the_error_comes_before_the_first_step(data_dir, environment):  # noqa: F811
    with servers.served(servers.S3, {"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as (_, port):
        wrong = environment | servers.s3_variables(port)
        [(code, shown, errors)] = end([start("s3://bucket/run", data_dir, environment=wrong)])
    assert code == 1
    assert "error: s3://bucket/run: the credentials are not accepted" in errors
    assert "step" not in shown
    assert "Traceback" not in errors
    assert servers.SECRET not in shown + errors


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("store", ["s3", "gcs"])
def test_ten_kills_at_random_moments_change_nothing(
    store,
    request,
    local_run,
    seconds,
    data_dir,  # noqa: F811
    environment,
    faults,
):
    address = f"{request.getfixturevalue(store)}/often"
    resumed = kill_at_random(address, data_dir, environment, faults(10), seconds)
    [(code, shown, errors)] = end([start(address, data_dir, CHECKPOINTS, environment=environment)])
    assert code == 0, errors
    assert resumed | set(re.findall(r"after step (\d+)", shown))
    assert_same_run(local_run, address)


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("refuses", marks=pytest.mark.long), "hangs"])
def test_a_server_that_is_away_for_20_seconds_loses_nothing(how, local_run, data_dir, environment):  # noqa: F811
    with servers.served(servers.S3) as (server, port):
        relay = servers.Relay(port)
        with servers.variables(servers.s3_variables(relay.port)):
            stores.attempt("s3://bucket", lambda system: system.mkdir("s3://bucket"))
            process = start("s3://bucket/run", data_dir, CHECKPOINTS, environment=environment)
            shown = []
            reader = threading.Thread(target=lambda: shown.append(process.communicate(timeout=400)))
            reader.start()
            while not any(name.endswith(copies.WHOLE) for name in stores.listing("s3://bucket/run")):
                assert process.poll() is None
                time.sleep(0.1)
            relay.stop() if how == "refuses" else server.send_signal(signal.SIGSTOP)
            time.sleep(20)
            relay.start() if how == "refuses" else server.send_signal(signal.SIGCONT)
            reader.join()
            if process.returncode:
                assert "Traceback" not in shown[0][1]
                assert "the same command resumes the run" in shown[0][1]
                [(code, *shown)] = end([start("s3://bucket/run", data_dir, CHECKPOINTS, environment=environment)])
                assert code == 0, shown
            assert_same_run(local_run, "s3://bucket/run")


@pytest.mark.slow
def test_a_server_that_stays_away_is_told_with_the_last_checkpoint(data_dir, environment, tmp_path):  # noqa: F811
    quick = tmp_path / "quick.py"
    quick.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from alexnet_jax.files import stores; "
        "stores.attempt.__defaults__ = ((1, 1),); "
        "import main; from absl import app; app.run(main.main, flags_parser=main.parse_flags)"
    )
    with servers.served(servers.S3) as (_, port):
        relay = servers.Relay(port)
        with servers.variables(servers.s3_variables(relay.port)):
            stores.attempt("s3://bucket", lambda system: system.mkdir("s3://bucket"))
            process = start("s3://bucket/run", data_dir, CHECKPOINTS, environment=environment, program=quick)
            while not any(name.endswith(copies.WHOLE) for name in stores.listing("s3://bucket/run")):
                assert process.poll() is None
                time.sleep(0.1)
            relay.stop()
            _, errors = process.communicate(timeout=400)
            relay.start()
            assert process.returncode == 1
            assert "Traceback" not in errors
            step = int(re.search(r"cannot be reached .* The last checkpoint there is that of step (\d+);", errors)[1])
            assert f"checkpoints/{step}/{copies.WHOLE}" in stores.listing("s3://bucket/run")
            kept = Path(re.search(r"is kept in (\S+)\.", errors)[1])
            assert (kept / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_share_a_workdir(s3, data_dir, environment):  # noqa: F811
    """Their towers are on devices of different processes; they are stopped in the middle, and start again."""
    address, towers = f"{s3}/two", "--config.mesh.tower=2"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        uncut = end(start_two(f"{s3}/uncut", data_dir, towers))
        assert [code for code, *_ in uncut] == [0, 0], uncut
        first = end(start_two(address, data_dir, towers, f"--config.num_steps={STEPS - 8}"))
        assert [code for code, *_ in first] == [0, 0], first
        (code, shown, errors), (other, _, more) = end(start_two(address, data_dir, towers))
    assert (code, other) == (0, 0), errors + more
    assert f"Resuming {address} after step {STEPS - 8}." in shown
    with copies.opened(f"{s3}/uncut", "--workdir") as folder:
        want = arrays_of(folder)
    with copies.opened(address, "--workdir") as folder:
        got = arrays_of(folder)
    for name in want:
        np.testing.assert_array_equal(want[name], got[name], err_msg=name)


@pytest.mark.slow
def test_a_second_run_is_refused_and_an_experiment_runs_there(s3, data_dir, environment):  # noqa: F811
    put(f"{s3}/taken/.lock", json.dumps({"id": "x", "host": "elsewhere", "process": 7}).encode())
    [(code, _, errors)] = end([start(f"{s3}/taken", data_dir, environment=environment)])
    assert code == 1
    assert f"Another run is using {s3}/taken: process 7 on elsewhere" in errors
    command = [
        sys.executable, "-m", "alexnet_jax", "experiment", "seeds", f"--workdir={s3}/experiment", "--seeds=1",
        f"--config={ROOT / 'configs/quickstart.py'}", f"--config.data_dir={data_dir}", "--config.num_steps=8",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert f"Wrote: {s3}/experiment" in done.stdout
    names = stores.listing(f"{s3}/experiment")
    assert any(name.endswith("outcome.json") for name in names)
    assert any(name.endswith(copies.WHOLE) for name in names)
