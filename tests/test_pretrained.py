"""From one data set to another (the paper's "1 CNN*"): what is copied, what is drawn again, and what is refused."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import place, recipe_of

from alexnet_jax import (
    CAFFENET,
    LRN,
    PAPER,
    QUICKSTART,
    SIX_CONV,
    Conv,
    Flatten,
    ReLU,
    cli,
    convert,
    replace,
    with_classes,
    without,
)
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import saved
from alexnet_jax.network import networks
from alexnet_jax.training import loop, setup
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.pretrained import changes, copy_pretrained
from alexnet_jax.training.step import init_state
from configs import alexnet

NARROW = (
    *QUICKSTART[: (flatten := QUICKSTART.index(Flatten()))],
    Conv(64, 3, padding=1, sees="all", bias=0.1, std=0.05),
    ReLU(),
    *QUICKSTART[flatten:],
)


def test_the_narrow_network_has_the_layers_of_the_paper_s():
    assert [type(layer) for layer in NARROW] == [type(layer) for layer in SIX_CONV]


def folder(root, classes, images):
    """Images with a bright bar whose height tells the class."""
    rng = np.random.default_rng(classes)
    for split, count in (("train", images), ("val", 2 * classes)):
        for i in range(count):
            image = rng.integers(0, 100, (32, 32, 3), np.uint8)
            top = (i % classes) * 32 // classes
            image[top : top + 3] = 250
            path = root / split / f"class{i % classes}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return f"folder:{root}"


def config_for(variant, dataset, **changes):
    config = alexnet.get_config(variant)
    small = {
        "dataset": dataset,
        "image_size": 32,
        "batch_size": 16,
        "eval_batch_size": 8,
        "num_steps": 4,
        "report": False,
    }
    config.update_from_flattened_dict({**small, "views": 1, **changes})
    return config


def first_state(config, workdir):
    """The parameters before the first step, as a run would begin with them."""
    run = setup.set_up(config, workdir)
    state = init_state(recipe=run.recipe)
    if run.pretrained is not None:
        state = copy_pretrained(state, run.pretrained.params, run.recipe)
    return jax.device_get(state.params), run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return folder(root / "many", 5, 40), folder(root / "few", 3, 30)


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NAMED, "SIX_CONV", NARROW)
        loop.train(config_for("six_conv_pretrain", data[0]), workdir)
    return workdir


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(networks.NAMED, "SIX_CONV", NARROW)


@pytest.mark.parametrize("kind", ["workdir", "file"])
def test_fine_tuning_begins_with_all_layers_but_the_last(kind, data, pretrained, tmp_path):
    source = pretrained
    if kind == "file":
        source = tmp_path / "pretrained.safetensors"
        convert.convert(pretrained, source)
    config = config_for("six_conv_finetune", data[1], pretrained=str(source))
    params, run = first_state(config, tmp_path / "finetune")
    with Checkpoints(pretrained) as checkpoints:
        before, _ = checkpoints.params(checkpoints.latest_step())
    assert list(params) == [*(f"conv{i}" for i in range(1, 7)), "fc7", "fc8", "fc9"]
    for layer in params:
        for name in ("kernel", "bias"):
            if layer != "fc9":
                np.testing.assert_array_equal(params[layer][name], before[layer][name])
    # Five classes on two towers are six neurons, and three are four.
    assert before["fc9"]["kernel"].shape == (2, 256, 3)
    drawn = jax.device_get(init_state(recipe=run.recipe).params)
    assert params["fc9"]["kernel"].shape == (2, 256, 2)
    np.testing.assert_array_equal(params["fc9"]["kernel"], drawn["fc9"]["kernel"])
    assert not np.array_equal(params["conv6"]["kernel"], drawn["conv6"]["kernel"])  # training had moved it


def test_fine_tuning_runs_to_its_end_and_resumes_without_what_it_began_with(data, pretrained, tmp_path, capsys):
    moved = tmp_path / "pretrain"
    pretrained.rename(moved)
    try:
        config = config_for("six_conv_finetune", data[1], pretrained=str(moved))
        loop.train(config, tmp_path / "finetune")
        assert f"Copied all layers but the last from {moved}." in capsys.readouterr().out
    finally:
        moved.rename(pretrained)
    config.num_steps = 6
    result = loop.train(config, tmp_path / "finetune")  # moved is not there any more
    shown = capsys.readouterr().out
    assert "Resuming" in shown
    assert "Copied" not in shown
    assert result["steps"] == 6
    assert json.loads((tmp_path / "finetune" / "result.json").read_text())["examples"] == 6
    assert convert.read(tmp_path / "finetune").predict(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3)


def test_weights_are_evaluated_on_data_with_their_classes(data, pretrained, tmp_path, capsys):
    file = tmp_path / "pretrained.safetensors"
    convert.convert(pretrained, file)
    cli.main(["evaluate", f"--weights={file}", f"--dataset={data[0]}", "--batch_size=8", "--json"])
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((pretrained / "result.json").read_text())
    assert shown["one_view"] == pytest.approx(result["one_view"], rel=1e-5)
    assert "ten_views" not in shown  # as the run's config has it
    for arguments, wanted in (
        ([f"--dataset={data[0]}", "--checkpoint=best"], "--checkpoint=best is only for --workdir, not for --weights"),
        ([f"--dataset={data[0]}", "--split=foo"], "Set --split=NAME"),
        (["--dataset=folder:/no/where"], "there is no such folder"),
        ([f"--dataset={data[1]}"], "has 3 classes, but .* has 5 classes of many"),
        ([], "--dataset is missing"),
        ([f"--dataset={data[0]}", "--split=test"], "has no split 'test'; it has 'train', 'val'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", f"--weights={file}", *arguments])
        assert re.search(wanted, stop.value.code)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", f"--workdir={pretrained}", "--dataset=digits"])
    assert "only for a run on a folder can it be given, as folder:PATH" in stop.value.code


def test_a_run_of_another_version_is_not_evaluated(pretrained, tmp_path):
    config = json.loads((pretrained / "config.json").read_text())
    del config["mean_at"], config["augment"]["group"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"another version .* its config lacks augment\.group, mean_at\."):
        saved.evaluate_workdir(tmp_path)


def test_a_network_that_differs_from_the_pretrained_one_is_told():
    assert changes(PAPER, replace(with_classes(PAPER, 10), "conv2", bias=0.0)) == ""
    told = changes(CAFFENET, PAPER)
    assert "input is Input(size=227" in told
    assert "lrn2 is LRN(n=5, k=1.0" in told
    assert "conv3" not in told
    assert changes(without(PAPER, LRN), PAPER).startswith("lrn1 is nothing there, LRN(")


def test_another_network_or_no_file_is_refused_before_any_work(data, pretrained, tmp_path):
    config = config_for("paper", data[1], architecture="QUICKSTART", pretrained=str(pretrained))
    with pytest.raises(UsageError, match=r"config\.pretrained has .* for fc6; accepted is .* Only the last layer may"):
        loop.train(config, tmp_path / "other")
    config.pretrained = str(tmp_path / "nothing.safetensors")
    with pytest.raises(UsageError, match=r"nothing\.safetensors does not exist"):
        loop.train(config, tmp_path / "other")
    assert not (tmp_path / "other" / "config.json").exists()


@pytest.mark.devices
def test_copied_parameters_lie_where_the_drawn_ones_did():
    recipe = recipe_of(place(4, 2))
    other = jax.device_get(init_state(recipe=recipe_of(place(), seed=9)).params)
    state = init_state(recipe=recipe)
    copied = copy_pretrained(state, other, recipe)
    for layer, arrays in copied.params.items():
        for name, array in arrays.items():
            assert array.sharding == state.params[layer][name].sharding
            wanted = state.params if layer == "fc5" else other
            np.testing.assert_array_equal(array, wanted[layer][name])
