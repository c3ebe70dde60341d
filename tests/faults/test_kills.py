"""Runs that are killed at random moments, again and again, end as one that was not."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from alexnet_jax import config as config_lib
from tests.test_loop import CHILD, ROOT, arrays_of, config_for, folder, one_device, uncut  # noqa: F401

KILLS = 10  # a hundred with --faults=10
NEVER = "0"  # the step at which CHILD kills itself


def curve(workdir):
    """Step, loss and error of the lines of metrics.jsonl."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["train_loss"], line["train_error"]) for line in lines if "train_loss" in line]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_bit_identical(faults, folder, uncut, tmp_path):  # noqa: F811
    draw, workdir, wanted = random.Random(0), tmp_path / "w", arrays_of(uncut[0], 24)
    config_lib.save(config_for(folder), tmp_path / "config.json")

    def start(workdir):
        child = [sys.executable, "-c", CHILD, NEVER, str(workdir), str(tmp_path / "config.json")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(child, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    _, told = start(tmp_path / "timed").communicate()
    assert (tmp_path / "timed/result.json").exists(), told.decode()
    took = time.monotonic() - began
    kills = late = ended = 0  # late: with a checkpoint
    while kills < faults(KILLS) or workdir.exists():
        process = start(workdir)
        try:
            _, told = process.communicate(timeout=draw.uniform(0.3 * took, took) if kills < faults(KILLS) else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            late += any((workdir / "checkpoints").glob("[0-9]*"))
            continue
        assert process.returncode == 0, told.decode()
        got = arrays_of(workdir, 24)
        assert got.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
        assert curve(workdir) == curve(uncut[0])
        shutil.rmtree(workdir)
        ended += 1
    print(f"{kills} kills, {late} of them after a checkpoint, {ended} runs that ended")
    assert ended
    assert late
