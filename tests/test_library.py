"""The library without the packages of the extras, and what a command says where one is missing."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import apart
import pytest

from alexnet_jax.errors import EXTRAS, missing_package

ROOT = Path(__file__).parent.parent


def test_the_library_block_and_a_training_step_need_no_extra():
    program = "import library; library.refuse(); print(*library.train_a_step()); exec(library.readme_block())"
    first, last = map(float, apart.run(program, 300).split("\n")[0].split())
    assert last < first


def test_a_command_says_which_extra_to_install():
    program = (
        "import sys; sys.modules['orbax'] = None; from alexnet_jax import cli; cli.main(['evaluate', '--workdir=none'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        'error: the package orbax is not installed. Install the extra that brings it: pip install "alexnet-jax[tr'
        in (done.stderr)
    )


def test_main_says_what_to_install(tmp_path):
    (tmp_path / "absl.py").write_text("raise ModuleNotFoundError('absl', name='absl')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == "error: the package absl is not installed. Run: pip install -r requirements.txt\n"


def test_a_missing_module_of_our_own_stays_an_error():
    with pytest.raises(ModuleNotFoundError):
        missing_package(ModuleNotFoundError("no", name="alexnet_jax.nothing"))


def test_extras_that_are_named_exist_and_the_library_lists_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"].keys() == {"train", *EXTRAS.values()}
    assert sorted(line.split(">")[0] for line in project["dependencies"]) == ["flax", "jax", "numpy", "optax"]


def test_main_says_which_extra_training_lacks(tmp_path):
    program = "import runpy, sys; sys.modules['clu'] = None; runpy.run_path('main.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, "--config=configs/quickstart.py", f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error: the package clu is not installed. Install the extra that brings it" in done.stderr
    assert "Traceback" not in done.stderr
