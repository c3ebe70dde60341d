"""What a user can get wrong: each mistake ends before training and says what is wrong, what is accepted, what to do."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf

from alexnet_jax import config as config_lib
from alexnet_jax.config import FIELDS
from alexnet_jax.errors import UsageError
from alexnet_jax.training import loop, setup
from configs import alexnet, quickstart

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path):
    """A folder of three classes, two images of each in train and one in val."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog", "zebra")):
        for path in (f"train/{name}/1.png", f"train/{name}/2.png", f"val/{name}/3.png"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(tf.io.encode_png(np.full((32, 32, 3), 100 * label, np.uint8)).numpy())
    return root


def config_for(dataset, **changes):
    config = quickstart.get_config()
    devices = jax.device_count()
    config.update({"dataset": str(dataset), "batch_size": devices, "eval_batch_size": devices, **changes})
    return config


@pytest.fixture
def message_of(tmp_path, monkeypatch):
    """A function that gives the message with which a run ends before its first step."""
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("training began"))

    def message(config, workdir=tmp_path / "run"):
        with pytest.raises(UsageError) as error:
            loop.train(config, workdir)
        return str(error.value)

    return message


def test_a_good_folder_passes(folder, tmp_path):
    run = setup.set_up(config_for(f"folder:{folder}"), tmp_path / "run")
    assert run.recipe.network.architecture[-1].units == 3
    assert config_lib.load(tmp_path / "run" / "config.json").dataset == f"folder:{folder}"


# The data


def test_imagenet_that_is_not_there(message_of, tmp_path):
    message = message_of(config_for("imagenet2012", data_dir=str(tmp_path)))
    assert message.startswith("imagenet2012 at 32 pixels is not in ")
    assert "https://image-net.org/download-images" in message
    assert f"prepare --source=tars:FOLDER --data_dir={tmp_path} --image_size=32" in message


def test_an_unknown_dataset(message_of):
    message = message_of(config_for("digitz"))
    assert "dataset 'digitz' is not known; did you mean 'digits'?" in message
    assert "Accepted are 'digits', 'imagenet2012', 'folder:PATH'" in message


def test_a_folder_that_is_not_there(message_of, tmp_path):
    message = message_of(config_for(f"folder:{tmp_path}/none"))
    assert f"folder:{tmp_path}/none: there is no such folder" in message
    assert "SPLIT/CLASS/FILE, for example train/cat/1.jpg" in message


@pytest.mark.parametrize("inside", ["", "train", "train/cat", "train/cat/readme.txt", "train/1.png"])
def test_a_folder_without_images_in_class_folders(message_of, tmp_path, inside):
    root = tmp_path / "pictures"
    if Path(inside).suffix:
        (root / inside).parent.mkdir(parents=True)
        (root / inside).write_bytes(b"x")
    else:
        (root / inside).mkdir(parents=True)
    message = message_of(config_for(f"folder:{root}"))
    wanted = (
        f"folder:{root} holds no folders" if not inside else f"dataset 'folder:{root}' has no split named validation"
    )
    assert message.startswith(wanted)
    assert "train/cat/1.jpg" in message


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_folder_of_which_one_split_is_empty(message_of, folder, empty):
    for path in (folder / empty).glob("*/*"):
        path.unlink()
    message = message_of(config_for(f"folder:{folder}"))
    assert f"folder:{folder}/{empty} holds no images in class folders" in message


def test_a_split_that_is_not_there(message_of, folder):
    message = message_of(config_for(f"folder:{folder}", train_split="training"))
    assert "has no split 'training'; it has " in message
    assert "--config.train_split=NAME" in message


def test_labels_outside_the_classes(message_of, folder):
    message = message_of(config_for(f"folder:{folder}", num_classes=2))
    assert f"{folder}/train/zebra/" in message
    assert "has the label 2; accepted are 0 to 1" in message
    assert "--config.num_classes" in message


@pytest.mark.parametrize("path", ["train/dog/text.jpg", "val/cat/text.png"])
def test_a_file_that_is_no_image_is_found_before_training(message_of, folder, path):
    (folder / path).write_text("I am no image")
    message = message_of(config_for(f"folder:{folder}"))
    assert message.startswith(f"{folder / path} does not decode as an image (")
    assert "Accepted are JPEG, PNG, WebP, GIF, BMP, TIFF and the other formats" in message
    assert "Repair or remove it" in message


def test_a_run_that_was_refused_can_be_started_again_once_that_is_mended(message_of, folder, tmp_path):
    bad = folder / "val" / "cat" / "text.png"
    bad.write_text("I am no image")
    message_of(config_for(f"folder:{folder}"))
    bad.unlink()
    setup.set_up(config_for(f"folder:{folder}"), tmp_path / "run")


# The config


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", "abc"), ("learning_rate", -0.1), ("architecture", "VGG")]
)
def test_a_value_that_is_not_accepted(message_of, folder, name, value):
    values = config_for(f"folder:{folder}").to_dict() | {name: value}
    message = message_of(config_lib.ml_collections.ConfigDict(values))
    assert message.startswith(f"config.{name} is {value!r}; accepted is {FIELDS[name].accepted}. ")
    assert f"Set --config.{name} " in message


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_a_batch_that_does_not_divide_by_the_devices(message_of, folder, name):
    devices = jax.device_count()
    if devices == 1:
        pytest.skip("one device: every batch size divides by it")
    message = message_of(config_for(f"folder:{folder}", **{name: devices + 1}))
    assert message == (
        f"config.{name} is {devices + 1}; accepted are multiples of {devices}, the {devices} devices that share a "
        f"batch. Set --config.{name}={2 * devices}."
    )


def test_a_batch_that_does_not_divide_into_its_parts(message_of, folder):
    devices = jax.device_count()
    message = message_of(config_for(f"folder:{folder}", batch_size=devices, accumulate=3))
    assert message == (
        f"config.batch_size is {devices}; accepted are multiples of {3 * devices}, the {devices} devices that share a "
        f"batch times the 3 parts of accumulate. Set --config.batch_size={3 * devices}."
    )


def test_towers_that_the_architecture_does_not_have(message_of, folder):
    config = config_for(f"folder:{folder}", architecture="SLIDES", image_size=256)
    config.mesh.tower = 2
    assert message_of(config).startswith("mesh.tower is 2, but SLIDES has 1 tower(s); accepted are the divisors of ")


def test_towers_that_do_not_divide_the_devices(message_of, folder, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    config = config_for(f"folder:{folder}")
    config.mesh.tower = 2
    message = message_of(config)
    assert message.startswith("mesh.tower is 2, but there are 1 devices; accepted are the divisors of that number. ")
    assert "Set --config.mesh.tower=1" in message


def test_the_weird_trick_finds_its_own_mesh(message_of, folder):
    config = config_for(f"folder:{folder}")
    config.mesh.update(tower=2, placement="weird_trick")
    message = message_of(config)
    assert message.startswith("mesh.tower is 2, but mesh.placement=weird_trick keeps the convolutions of all towers ")
    assert "accepted is 1" in message


def test_a_workdir_of_another_architecture(message_of, folder, tmp_path):
    workdir = tmp_path / "other"
    workdir.mkdir()
    config_lib.save(config_for(f"folder:{folder}", architecture="PAPER"), workdir / "config.json")
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    message = message_of(config_for(f"folder:{folder}"), workdir)
    assert message.startswith(
        f"{workdir} holds a run with architecture='PAPER', and this one has architecture='QUICKSTART'. "
    )
    assert "set --config.architecture=PAPER" in message
    assert "another --workdir" in message
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


# The command line


def run_main(*arguments):
    """Exit code and last lines of `python main.py ...`; the arguments are wrong, so it ends soon."""
    command = [sys.executable, "main.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr.splitlines()[-2:], done.stderr


QUICKSTART = "--config=configs/quickstart.py"
USAGE = "usage: python main.py --config=configs/alexnet.py --workdir=FOLDER [--config.FIELD=VALUE ...]"


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("--config.batchsize=3", "config has no field 'batchsize'; did you mean 'batch_size'? Correct or remove it."),
        (
            "--config.mesh.towers=2",
            "config has no field 'mesh.towers'; did you mean 'mesh.tower'? Correct or remove it.",
        ),
        (
            "--noconfig.augment.flp",
            "config has no field 'augment.flp'; did you mean 'augment.flip'? Correct or remove it.",
        ),
        (
            "--config.batch_size=abc",
            "config.batch_size is 'abc'; accepted is an integer of at least 1, below 2^31. "
            "Set --config.batch_size to such a value.",
        ),
        (
            "--config.learning_rate=1e-3:",
            "config.learning_rate is '1e-3:'; accepted is a number above 0. "
            "Set --config.learning_rate to such a value.",
        ),
        (
            "--config.augment.crop=maybe",
            "config.augment.crop is 'maybe'; accepted is True or False. Set --config.augment.crop to such a value.",
        ),
        ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
    ],
)
def test_a_wrong_argument_is_answered_in_a_sentence(tmp_path, argument, wanted):
    code, last, shown = run_main(QUICKSTART, argument, f"--workdir={tmp_path}/run")
    assert code == 1
    assert last == [f"error: {wanted}", USAGE]
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([QUICKSTART], "flag --workdir=None: Flag --workdir must have a value other than None."),
        (["--workdir=run"], "flag --config=None: Flag --config must have a value other than None."),
        (["--config=configs/none.py", "--workdir=run"], "No such file or directory: 'configs/none.py'"),
        (
            ["--config=configs/none.py", "--config.seed=1", "--workdir=run"],
            "No such file or directory: 'configs/none.py'",
        ),
        (
            ["--config=configs/alexnet.py:foo", "--workdir=run"],
            f"configs/alexnet.py has no variant 'foo'; accepted are {', '.join(alexnet.VARIANTS)}.",
        ),
    ],
    ids=["no workdir", "no config", "no such file", "no such file and a field", "no such variant"],
)
def test_a_config_or_workdir_that_is_missing_is_answered_in_the_last_lines(arguments, wanted):
    code, last, _ = run_main(*arguments)
    assert code == 1
    assert last[0].endswith(wanted)
    assert last[1] == USAGE


def test_an_argument_that_is_no_flag_is_named(tmp_path):
    code, _, shown = run_main(QUICKSTART, f"--workdir={tmp_path}", "batch_size=3")
    assert code == 1
    assert "unknown arguments: batch_size=3; set config fields as --config.FIELD=VALUE" in shown


def test_a_config_file_with_an_unknown_field(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import quickstart\n\n\ndef get_config():\n    config = quickstart.get_config()\n"
        "    config.batchsize = 3\n    return config\n"
    )
    code, last, shown = run_main(f"--config={path}", f"--workdir={tmp_path}/run")
    assert code == 1
    assert last[-1] == "error: config has no field 'batchsize'; did you mean 'batch_size'? Correct or remove it."
    assert "Traceback" not in shown


def test_right_overrides_reach_the_config(tmp_path):
    # A later field is refused, so that the run ends here; config.json of an earlier run shows what was compared.
    workdir = tmp_path / "run"
    workdir.mkdir()
    saved = quickstart.get_config()
    saved.batch_size, saved.augment.crop, saved.learning_rate = 7, False, 0.5
    (workdir / "config.json").write_text(json.dumps(saved.to_dict()))
    arguments = ["--config.batch_size=7", "--noconfig.augment.crop", "--config.learning_rate=0.5", "--config.seed=9"]
    code, last, _ = run_main(QUICKSTART, *arguments, f"--workdir={workdir}")
    assert code == 1
    assert last[-1].startswith(f"error: {workdir} holds a run with seed=0, and this one has seed=9. ")
