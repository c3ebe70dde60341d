"""The benchmarks refuse a contestant that computes something else, keep to their time, and run to their end."""

import copy
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet_jax import LRN, Conv, Dense, Dropout, Flatten, Input, MaxPool, ReLU
from alexnet_jax.network import networks

ROOT = Path(__file__).parent.parent
SMALL = (
    Input(13, towers=2),
    Conv(8, 3, stride=2, padding=(0, 1), std=0.01),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Flatten(),
    Dense(8, std=0.1),
    ReLU(),
    Dropout(0.5),
    Dense(6, std=0.1),
)
FAULTS = {
    "alpha of the mean instead of the sum": ("LRN", "alpha", lambda alpha: alpha / 5),
    "padding on the other side": ("Conv", "padding", lambda padding: padding[::-1]),
    "another dropout": ("Dropout", "rate", lambda rate: rate + 0.01),
}


@pytest.fixture(scope="module")
def scripts():
    """The modules of benchmarks/ by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="module")
def prepared(scripts, tmp_path_factory):
    """A folder with the small network's weights, batches and reference, its layers, and this project's distances."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NAMED, "SMALL", SMALL)
        layers, platform = scripts("train_step_jax").prepare(folder, "SMALL", 2)
        assert platform == "cpu"
        ours = [distance(scripts, folder, layers, dtype, "this project") for dtype in ("float64", "float32")]
    assert ours[0] == 0  # it is the reference
    return folder, layers, ours


def distance(scripts, folder, layers, dtype, name):
    """The distance of a contestant, with these layers, from this project in float64."""
    settings = {"dtype": dtype, "batch": "check"}
    if name == "PyTorch":
        made = scripts("train_step_torch").contestant(folder, layers, maps_last=True, compiled=None, **settings)
    else:
        ours = name == "this project"
        made = scripts("train_step_jax").contestant(folder, "SMALL", layers, ours=ours, **settings)
    return max(scripts("train_step").distances(made, folder))


PEERS = ["plain Flax", pytest.param("PyTorch", marks=pytest.mark.torch)]


@pytest.mark.parametrize("peer", PEERS)
def test_right_contestants_are_accepted(peer, scripts, prepared, monkeypatch):
    monkeypatch.setitem(networks.NAMED, "SMALL", SMALL)
    folder, layers, ours = prepared
    found = [distance(scripts, folder, layers, dtype, peer) for dtype in ("float64", "float32")]
    assert found[0] < 1e-12
    assert scripts("train_step").refusal({"this project": ours, peer: found}) is None


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("peer", PEERS)
def test_a_contestant_with_a_fault_is_refused(peer, fault, scripts, prepared, monkeypatch):
    monkeypatch.setitem(networks.NAMED, "SMALL", SMALL)
    folder, layers, ours = prepared
    kind, field, change = FAULTS[fault]
    wrong = copy.deepcopy(layers)
    for layer in wrong:
        if layer.kind == kind:
            setattr(layer, field, change(getattr(layer, field)))
    exact = distance(scripts, folder, wrong, "float64", peer)
    said = scripts("train_step").refusal({"this project": ours, peer: (exact, ours[1])})
    assert f"{peer} computes something else" in said


def test_in_the_timed_type_no_contestant_may_be_much_farther_than_the_others(scripts):
    def verdict(*timed):
        names = ("this project", "plain Flax", "PyTorch, eager, maps last")
        return scripts("train_step").refusal({name: (0.0, t) for name, t in zip(names, timed, strict=False)})

    assert verdict(1e-6, 2e-6, 3e-6) is None
    assert verdict(0.2, 0.3, 0.25) is None  # bfloat16
    assert verdict(1e-6) is None  # alone
    assert "this project is 1.0e-03 from float64" in verdict(1e-3, 2e-6, 3e-6)
    assert "PyTorch, eager, maps last" in verdict(1e-6, 2e-6, 3e-3)
    assert "this project" in verdict(float("nan"), 2e-6, 3e-6)


def test_margins_see_ties_of_relus_and_of_pools(scripts):
    jax_side = scripts("train_step_jax")
    layers = jax_side.plain_layers((Input(4), Conv(1, 1, std=1.0), ReLU(), MaxPool(2, 2), Flatten(), Dense(2)))
    params = {"conv1": {"kernel": np.ones((1, 1, 3, 1), np.float32) / 3, "bias": np.zeros(1, np.float32)}}
    params[layers[-1].name] = {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2, np.float32)}
    images = np.repeat(np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1), 3, 0)
    images[1, 0, 0] = 1e-3  # near a ReLU's kink
    images[2, 1, 1] = images[2, 1, 0] + 1e-3  # beside the largest number of its window
    far, *near = jax_side.margins(layers, params, np.repeat(images, 3, -1))
    assert far > 0.05
    assert all(margin < 2e-4 for margin in near)


def test_rounds_end_before_the_time_does(scripts, monkeypatch):
    shared, now = scripts("shared"), [0.0]
    monkeypatch.setattr(shared.time, "perf_counter", lambda: now[0])

    def counted(most, end, length):
        found = 0
        for _ in shared.rounds(most, end):
            now[0] += length
            found += 1
        return found

    assert counted(5, 1000.0, 10) == 5
    assert counted(5, now[0] + 35, 10) == 3
    assert counted(5, now[0] - 1, 10) == 1


@pytest.mark.slow
def test_all_run_to_their_end_at_the_smallest_sizes(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = ["bash", "benchmarks/accelerator.sh", "--smallest", f"--output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    for part in ("step-bf16-4", "lrn", "roofline", "waiting", "step-tf32-4", "input"):
        assert "|---|" in (tmp_path / f"{part}.md").read_text(), part
    assert (tmp_path / "tables.md").read_text() == done.stdout


def test_a_part_that_fails_shows_its_error_and_the_others_go_on(tmp_path):
    (tmp_path / "python").write_text('#!/bin/sh\necho "no such module" >&2\nexit 3\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PYTHON": str(tmp_path / "python")}
    command = ["bash", "benchmarks/accelerator.sh", "--smallest", f"--output={tmp_path}/found"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stdout.count("no such module") > 5
    assert "error: these parts did not run to their end: " in done.stdout
