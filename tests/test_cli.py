"""The commands of `python -m alexnet_jax`, and help that does not make the user wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax import cli
from alexnet_jax.network import networks
from alexnet_jax.network.summary import summary

ROOT = Path(__file__).parent.parent


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def imported_by(*arguments):
    """The packages that a program imports, as python -X importtime lists them."""
    done = run("-X", "importtime", *arguments)
    names = (text.rsplit("|", 1)[-1].strip() for text in done.stderr.splitlines() if text.startswith("import time:"))
    return done, {name.split(".")[0] for name in names}


DATA_AND_CHECKPOINTS = {"tensorflow", "tensorflow_datasets", "orbax", "clu", "mlxtend"}


@pytest.mark.parametrize(
    ("program", "wanted", "heavy"),
    [
        ("main.py --help", "--workdir", DATA_AND_CHECKPOINTS | {"jax", "flax", "numpy"}),
        # The package itself imports JAX for its public names.
        ("-m alexnet_jax --help", "summary", DATA_AND_CHECKPOINTS),
        ("-m alexnet_jax evaluate --help", "--checkpoint", DATA_AND_CHECKPOINTS),
        ("-m alexnet_jax doctor --help", "--duplicates", DATA_AND_CHECKPOINTS),
        ("-m alexnet_jax prepare --help", "--source", DATA_AND_CHECKPOINTS),
    ],
)
def test_help_comes_without_importing_what_is_heavy(program, wanted, heavy):
    done, packages = imported_by(*program.split())
    assert wanted in done.stdout
    assert "re" in packages  # the list is one of imports
    assert not packages & heavy


@pytest.mark.parametrize("name", networks.NAMED)
def test_summary_prints_the_table_of_a_network(name, capsys):
    cli.main(["summary", f"--architecture={name}", "--batch_size=2"])
    assert capsys.readouterr().out == summary(networks.NAMED[name], 2) + "\n"


def test_summary_is_of_the_paper_s_network_if_none_is_named(capsys):
    cli.main(["summary"])
    shown = capsys.readouterr().out
    assert shown == summary(networks.PAPER, 1) + "\n"
    assert "60,965,224" in shown  # parameters


def message_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    capsys.readouterr()
    assert isinstance(stop.value.code, str)  # Python prints it and exits with 1
    assert stop.value.code.startswith("error: ")
    return stop.value.code


def test_summary_of_an_unknown_network_names_those_there_are(capsys):
    message = message_of(capsys, "summary", "--architecture=VGG")
    assert "there is no network VGG; accepted is one of " in message
    assert all(name in message for name in networks.NAMED)


def test_evaluate_on_a_folder_that_is_no_run_says_so(capsys, tmp_path):
    message = message_of(capsys, "evaluate", f"--workdir={tmp_path}")
    assert message == (
        f"error: {tmp_path} holds no run: it has no config.json. Give the --workdir of a run of main.py."
    )
    assert list(tmp_path.iterdir()) == []


def test_prepare_without_tars_says_where_they_come_from(capsys, tmp_path):
    message = message_of(capsys, "prepare", f"--source=tars:{tmp_path}", f"--data_dir={tmp_path}")
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found in" in message
    assert "https://image-net.org/download-images" in message


def test_an_error_is_the_last_line_and_the_exit_code_is_1(tmp_path):
    done = run("-m", "alexnet_jax", "evaluate", f"--workdir={tmp_path}/none")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/none holds no run")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["evaluate"], ["evaluate", "--workdir=x", "--checkpoint=first"], ["sumary"]])
def test_wrong_arguments_end_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m alexnet_jax" in capsys.readouterr().err


@pytest.mark.parametrize("beside", [True, False])
def test_a_config_is_read_from_any_working_directory(beside, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    file = ROOT / "configs/cifar10.py"  # it imports configs.alexnet
    if not beside:
        file = tmp_path / "mine.py"
        file.write_text((ROOT / "configs/quickstart.py").read_text())
    program = "from alexnet_jax import config; print(config.from_flags(['--config=' + FILE]).dataset)"
    done = subprocess.run(
        [sys.executable, "-c", program.replace("FILE", repr(str(file)))],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["cifar10" if beside else "digits"], done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--workdir=hdfs://name/run"],
        ["evaluate", "--weights=hdfs://name/x.safetensors", "--dataset=digits"],
        ["prepare", "--source=folder:hdfs://name/images", "--dataset=mine"],
        ["prepare", "--source=folder:/none", "--dataset=mine", "--data_dir=hdfs://name/data"],
        ["convert", "hdfs://name/run", "x.safetensors"],
        ["convert", "x.safetensors", "gs://bucket/x.safetensors"],
        ["report", "--workdir=hdfs://name/run"],
        ["ensemble", "--workdir=hdfs://name/run"],
        ["export", "--workdir=hdfs://name/run", "--output=x"],
        ["features", "--workdir=gs://bucket/run", "--dataset=digits", "--output=gs://bucket/x.npz"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(str(ROOT), ""),
)
def test_an_address_is_refused_before_work_and_makes_no_folder(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "accepted is a path of this machine's file systems" in message_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []
