"""Every field is checked before the work starts; a resumed run may change only what does not change a step."""

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.config import FIELDS
from alexnet_jax.errors import UsageError
from alexnet_jax.network import networks, towers
from alexnet_jax.training import augment, optimizer
from configs import alexnet, cifar10, folder, imagenette, lenet5, quickstart

CONFIGS = {
    **{
        f"{module.__name__.removeprefix('configs.')}:{variant}": lambda m=module, v=variant: m.get_config(v)
        for module in (alexnet, cifar10, folder, lenet5)
        for variant in module.VARIANTS
    },
    "imagenette": imagenette.get_config,
    "quickstart": quickstart.get_config,
}
WRONG = {  # for each field a value of another type, and one that is out of range if there is one
    "dataset": [3, ""],
    "data_dir": [None],
    "train_split": [1],
    "eval_split": [None],
    "image_size": [256.0, 0, 2**31],
    "num_classes": ["10", -1, 2**31],
    "architecture": [None, "VGG"],
    "dtype": [32, "float16"],
    "pretrained": [None],
    "seed": [0.5, -1, 2**32],
    "batch_size": [True, 0],
    "num_epochs": [1.5, 0],
    "num_steps": [None, -1, 2**31],
    "mean_at": [1, "corner"],
    "augment.crop": [1],
    "augment.flip": ["True"],
    "augment.min_area": [0.0, 1.1, "half"],
    "augment.group": [1.0, 0, 2**31],
    "augment.pca_std": ["0.1", -0.1],
    "augment.pca_scale": [0, "variance"],
    "augment.pca_rescale": [1.1],
    "augment.pca_epochs": ["67", -1],
    "learning_rate": [True, 0.0, float("inf"), float("nan")],
    "momentum": ["0.9", 1.0],
    "weight_decay": [None, -5e-4],
    "weight_decays": [0.1, (("conv1",),), (("conv1", -0.1),), (("conv1", "0.1"),), ((1, 0.1),), 2 * (("conv1", 0.1),)],
    "shuffle": [1],
    "early_share": [0.0, 1.1],
    "early_epochs": [-1, 0.5],
    "data_on_device": [True, "yes"],
    "update_rule": [False, "coupled"],
    "schedule": [
        0.1,
        ((25, "*"),),
        ((25, 3, 0.1),),
        ((-1, "*", 0.1),),
        ((25, "*", "0.1"),),
        ((25, "*", -0.1),),
        ((float("inf"), "*", 0.1),),
        ((51, "*", 0.1), (25, "*", 0.1)),
        (25, "*", 0.1),
        ((True, "*", 0.1),),
    ],
    "accumulate": [0, 1.5],
    "rate_batch_size": [-1, 1.5],
    "warmup_epochs": [-1, "5"],
    "cooldown": [-0.1, 1.1, "half"],
    "mesh.placement": [2, "one_weird_trick"],
    "plateau.factor": ["0.1", 1.0],
    "plateau.patience": [2.0, 0, 2**31],
    "plateau.patience_steps": [2.0, -1, 2**31],
    "plateau.drops": [3.0, -1],
    "plateau.threshold": [None, -1e-3, 0.0],
    "mesh.tower": ["2", 0],
    "eval_batch_size": [1e2, 0],
    "views": ["10", 2],
    "checkpoint_every_steps": [None, 0],
    "eval_every_steps": [None, -1, 2.0],
    "log_every_steps": [20.0, 0],
    "profile": [0],
    "report": ["yes"],
}


def config_with(name, value):
    """The paper's config with one field changed, whatever its type."""
    values = alexnet.get_config().to_dict()
    inner = values
    *groups, last = name.split(".")
    for group in groups:
        inner = inner[group]
    inner[last] = value
    return config_lib.ml_collections.ConfigDict(values)


def test_all_files_in_configs_are_tested_here():
    files = {path.stem for path in Path(alexnet.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {name.split(":")[0] for name in CONFIGS}
    assert set(WRONG) == set(FIELDS)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_passes_its_check(name):
    config_lib.check(CONFIGS[name]())


@pytest.mark.parametrize("name", sorted({name.split(":")[0] for name in CONFIGS}))
def test_each_config_names_its_own_command(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"python main.py --config=configs/{name}.py --workdir=" in module.__doc__


@pytest.mark.parametrize("module", [alexnet, cifar10, lenet5])
def test_a_variant_that_is_not_there_is_answered_with_those_that_are(module):
    with pytest.raises(ValueError, match=r"has no variant 'vgg'; accepted are ") as error:
        module.get_config("vgg")
    assert all(variant in str(error.value) for variant in module.VARIANTS)


def test_each_ablation_has_a_variant():
    used = {alexnet.get_config(variant).architecture for variant in alexnet.VARIANTS}
    assert used >= networks.ABLATIONS.keys()


def test_a_variant_differs_from_the_paper_in_what_it_names_and_in_nothing_else():
    paper = config_lib.flatten(alexnet.get_config())
    for variant, changes in alexnet.VARIANTS.items():
        config = config_lib.flatten(alexnet.get_config(variant))
        assert {name: value for name, value in config.items() if value != paper[name]} == changes


def test_the_variant_of_the_slides_is_their_network():
    assert alexnet.get_config().architecture == "PAPER"
    assert alexnet.get_config("slides").architecture == "SLIDES"


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_each_field_refuses_what_it_does_not_accept(name, value):
    with pytest.raises(UsageError) as error:
        config_lib.check(config_with(name, value))
    assert str(error.value) == (
        f"config.{name} is {value!r}; accepted is {FIELDS[name].accepted}. Set --config.{name} to such a value."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1),
        ("weight_decay", 0),
        ("momentum", 0),
        ("augment.pca_std", 0),
        ("plateau.drops", 0),
        ("num_steps", 0),
        ("seed", 0),
        ("update_rule", "paper"),
        ("augment.pca_scale", "stdev"),
        ("schedule", ()),
        ("schedule", ((0, "*", 0.0), (0, "conv5", 1e-3), (7.5, "*", 1))),
        ("dtype", "bfloat16"),
        ("image_size", 227),
        *(("architecture", name) for name in networks.NAMED),
    ],
)
def test_the_ends_of_the_ranges_are_accepted(name, value):
    config_lib.check(config_with(name, value))


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_must_be_there(name):
    config = alexnet.get_config()
    *groups, last = name.split(".")
    inner = config
    for group in groups:
        inner = inner[group]
    del inner[last]
    with pytest.raises(UsageError, match=re.escape(f"config lacks the field {name!r} ({FIELDS[name].accepted}).")):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("name", "hint"), [("batchsize", "batch_size"), ("mesh.towers", "mesh.tower"), ("learning-rate", "learning_rate")]
)
def test_an_unknown_field_is_named_with_the_nearest_one(name, hint):
    with pytest.raises(UsageError, match=re.escape(f"config has no field {name!r}; did you mean {hint!r}?")):
        config_lib.check(config_with(name, 3))


def test_an_unknown_field_that_is_near_to_none_is_answered_with_all():
    with pytest.raises(UsageError) as error:
        config_lib.check(config_with("qqq", 3))
    assert all(name in str(error.value) for name in FIELDS)


def test_images_smaller_than_the_network_s_input_are_refused():
    size = networks.NAMED["PAPER"][0].size
    config_lib.check(config_with("image_size", size))
    with pytest.raises(UsageError) as error:
        config_lib.check(config_with("image_size", size - 1))
    assert str(error.value).startswith(f"config.image_size is {size - 1}; accepted is {size}, the input of PAPER")
    assert f"--config.image_size={size}" in str(error.value)


# Resuming

OTHER = {
    int: lambda v: v + 1,
    float: lambda v: v / 2 or 0.5,
    str: lambda v: v + "x",
    bool: lambda v: not v,
    tuple: lambda v: (*v, (90, "*", 0.1)),
}
FREE = {
    *(
        "data_dir",
        "num_epochs",
        "num_steps",
        "mesh.tower",
        "mesh.placement",
        "accumulate",
        "eval_batch_size",
        "views",
    ),
    *("data_on_device", "checkpoint_every_steps", "log_every_steps", "profile", "report"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_resumed_run_may_change_what_does_not_change_a_step_and_nothing_else(name, tmp_path):
    saved = alexnet.get_config()
    before = config_lib.flatten(saved)[name]
    now = OTHER[FIELDS[name].kind](before)
    changed = config_with(name, now)
    if name in FREE:
        config_lib.check_resumable(changed, saved, tmp_path)
        return
    with pytest.raises(UsageError) as error:
        config_lib.check_resumable(changed, saved, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path} holds a run with {name}={before!r}, and this one has {name}={now!r}. ")
    assert f"--config.{name}={before}" in message
    assert "another --workdir" in message


def test_pretrained_weights_may_be_moved(tmp_path):
    before, now = alexnet.get_config(), alexnet.get_config()
    before.pretrained, now.pretrained = "/tmp/a/weights.safetensors", "/tmp/b/weights.safetensors"
    config_lib.check_resumable(now, before, tmp_path)


def test_with_a_cooldown_the_length_of_a_run_is_not_free(tmp_path):
    before, now = folder.get_config(), folder.get_config()
    now.num_steps = before.num_steps + 1000
    with pytest.raises(UsageError, match=f"holds a run with num_steps={before.num_steps}, and this one has num_steps="):
        config_lib.check_resumable(now, before, tmp_path)


def test_a_run_of_before_some_fields_resumes_with_what_it_did(tmp_path):
    before = alexnet.get_config()
    del before.cooldown, before.weight_decays, before.shuffle, before.augment.min_area
    config_lib.check_resumable(alexnet.get_config(), before, tmp_path)
    now = alexnet.get_config()
    now.cooldown = 0.5
    with pytest.raises(UsageError, match=r"holds a run with cooldown=0.0, and this one has cooldown=0.5"):
        config_lib.check_resumable(now, before, tmp_path)


def test_the_same_config_resumes(tmp_path):
    config_lib.check_resumable(alexnet.get_config(), alexnet.get_config(), tmp_path)


def test_a_layer_of_the_schedule_that_the_network_does_not_have_is_named():
    with pytest.raises(UsageError) as error:
        config_lib.check(config_with("schedule", ((67, "conv6", 1e-5),)))
    assert str(error.value).startswith(
        "config.schedule names the layer 'conv6'; accepted are '*' and the layers of PAPER"
    )
    assert "conv5, fc6, fc7, fc8. Correct that entry." in str(error.value)


@pytest.mark.parametrize("sides", ["now", "before"])
def test_a_field_that_only_one_of_the_two_has_is_named(sides, tmp_path):
    both = [alexnet.get_config(), config_with("optimizer", "sgd")]
    now, before = both[::-1] if sides == "now" else both
    with pytest.raises(UsageError, match=r"holds a run of another version of this program: optimizer="):
        config_lib.check_resumable(now, before, tmp_path)


@pytest.mark.parametrize("config", [quickstart.get_config(), alexnet.get_config("source2012")])
def test_what_is_saved_is_loaded(config, tmp_path):
    config_lib.save(config, tmp_path / "config.json")
    loaded = config_lib.load(tmp_path / "config.json")
    config_lib.check(loaded)  # types too: a float that is written as 1 would still be accepted, an int as 1.0 not
    assert config_lib.flatten(loaded) == config_lib.flatten(config)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_choices_are_those_of_the_code_that_takes_them():
    choices_of = {
        "update_rule": optimizer.RULES,
        "mesh.placement": towers.KINDS,
        "mean_at": get_args(augment.MeanAt),
    }
    for name, choices in choices_of.items():
        assert FIELDS[name].accepted == "one of " + ", ".join(choices)
        assert all(FIELDS[name].accepts(choice) for choice in choices)


def test_a_network_that_cannot_be_changed_so_is_told_why():
    with pytest.raises(
        UsageError, match=r"config.architecture is 'TORCHVISION_NO_LRN', but .* has no LRN; .*Set --config"
    ):
        config_lib.check_value("architecture", "TORCHVISION_NO_LRN")


def test_names_of_networks_are_the_same_in_any_case(tmp_path):
    config = config_with("architecture", "paper_no_lrn")
    config_lib.check(config)
    assert networks.named("Paper_No_LRN") == networks.named("PAPER_NO_LRN")
    config_lib.check_resumable(config, config_with("architecture", "PAPER_NO_LRN"), tmp_path)


def test_images_of_a_folder_may_move_but_not_become_another_dataset(tmp_path):
    one, other = config_with("dataset", "folder:/a"), config_with("dataset", "folder:/b")
    config_lib.check_resumable(one, other, tmp_path)
    with pytest.raises(UsageError, match="holds a run with dataset='folder:/b'"):
        config_lib.check_resumable(config_with("dataset", "cifar10"), other, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dataset", "folder:gs://b/images"), ("data_dir", "hdfs://b/data"), ("pretrained", "hdfs://b/x.pth")],
)
def test_an_address_is_not_taken_for_a_folder(name, value):
    with pytest.raises(UsageError, match=f"config.{name} is .*; accepted is a path of this machine's file systems"):
        config_lib.check(config_with(name, value))
