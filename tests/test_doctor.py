"""Each check sees its illness; a healthy dataset passes, and the sheet shows the very pixels of the augmentation."""

import collections
import dataclasses
import functools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from alexnet_jax import cli, doctor
from alexnet_jax import config as config_lib
from alexnet_jax.data import labels
from alexnet_jax.data.batches import Order
from alexnet_jax.data.sources import Dataset, FolderSource
from alexnet_jax.doctor import data as checks
from alexnet_jax.doctor import length, machine, sheet, speed
from alexnet_jax.errors import UsageError
from alexnet_jax.network import networks
from alexnet_jax.training import augment, chance, setup
from alexnet_jax.training.augment import ColorPCA
from alexnet_jax.training.statistics import Statistics, Sums
from alexnet_jax.training.step import init_state
from configs import quickstart

ROOT = Path(__file__).parent.parent
SIDE = 32
CLASSES = ("cat", "dog", "zebra")

# How ml_collections reads the file of a config.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes, each with eight images to train on and three to evaluate on."""
    root = tmp_path / "pictures"
    for label, name in enumerate(CLASSES):
        for i in range(11):
            save(root / ("train" if i < 8 else "val") / name / f"{i}.png", image((label, i)))
    return root


def config_for(dataset, **changes):
    config = quickstart.get_config()
    config.update({"dataset": str(dataset), "batch_size": 8, "eval_batch_size": 8, **changes})
    return config


@pytest.fixture
def not_timed(monkeypatch):
    """Leaves out the speed, which needs a compiled step."""
    monkeypatch.setattr(speed, "who_waits", lambda run: iter(()))


@pytest.fixture
def examine(not_timed, folder, tmp_path):
    """A function that examines the folder and gives what was found by check."""

    def found(**changes):
        return by_check(
            doctor.examine(config_for(**{"dataset": f"folder:{folder}", **changes}), workdir=tmp_path / "run")
        )

    return found


def by_check(findings):
    return {finding.check: finding for finding in findings}


def only(findings):
    """The level and the text of the one finding that there is."""
    (finding,) = findings
    return finding.level, finding.text


def levels(found):
    return collections.Counter(finding.level for finding in found.values())


@dataclasses.dataclass
class InMemory:
    """A split without files."""

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str] | None = None
    sleep: float = 0.0
    name: str = "in memory, split train"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        time.sleep(self.sleep * len(indices))
        return list(self.pixels[indices]), self.labels[indices]

    def describe(self, index):
        return f"{self.names[index] if self.names else index} of {self.name}"


def in_memory(count, classes=5, size=16, **changes):
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    return InMemory(pixels, (np.arange(count) % classes).astype(np.int32), **changes)


def seen(split, source, duplicates="all", size=16):
    return checks.look(split, source, image_size=size, seed=0, duplicates=duplicates)


def labelled(split, values, source=None):
    """What was seen of a split with these labels, and no images."""
    return checks.Seen(split, source or InMemory(np.zeros(len(values)), values), labels=dict(enumerate(values)))


# All together


def test_a_healthy_folder_passes_and_nothing_is_left_in_the_workdir(examine, folder, tmp_path):
    found = examine(num_steps=100)
    assert levels(found).keys() == {"ok"}, "\n".join(map(str, found.values()))
    assert not (tmp_path / "run").exists()
    assert "24 to train on" in found["examples"].text
    assert found["classes, train"].text == "3 classes of 8 examples"
    assert found["duplicates, across"].text == (
        "none with exactly the same pixels: compared all 9 images to evaluate on with all 24 to train on"
    )
    pixels = np.stack([image((label, i)) for label in range(3) for i in range(8)])
    mean = ", ".join(f"{value:.1f}" for value in pixels.mean((0, 1, 2)))
    assert f"of 24 images: mean RGB ({mean}), colour variances (0.08" in found["colours"].text


def test_the_command_times_a_healthy_folder_writes_the_sheet_and_ends_well(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "SECONDS", 0.3)
    monkeypatch.setitem(networks.NAMED, "QUICKSTART", tiny.TINY)  # quick to compile
    fields = [f"--config.dataset=folder:{folder}", "--config.batch_size=8", "--config.num_steps=30"]
    cli.main(["doctor", f"--config={ROOT}/configs/quickstart.py", *fields, f"--output={tmp_path}/out"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 problems, ")
    assert (tmp_path / "out" / "doctor.png").exists()
    checks = [line.split(":")[0].split(maxsplit=1)[1] for line in lines[:-1]]
    assert checks[0] == "versions"
    assert checks[-3:] == ["sheet", "speed", "duration"]
    assert " for 30 steps (10 epochs)" in lines[-2]


def test_the_command_ends_with_1_after_a_problem_and_tells_the_rest(not_timed, folder, tmp_path, capsys):
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")
    config = [f"--config={ROOT}/configs/quickstart.py", f"--config.dataset=folder:{folder}", "--config.num_steps=100"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", *config, f"--output={tmp_path}"])
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 problem, 0 warnings"
    (problem,) = (line for line in lines if line.startswith("problem"))
    assert problem.startswith(f"problem  images, train: 1 of all 24 do not decode: {folder}/train/cat/0.png (")
    assert any(line.startswith("ok       duplicates, across: ") for line in lines)


# The config


@pytest.mark.parametrize(
    ("changes", "check", "wanted"),
    [
        ({"batch_size": 0}, "config", "config.batch_size is 0; accepted is an integer of at least 1, below 2^31. "),
        ({"accumulate": 3}, "devices", "config.batch_size is 8; accepted are multiples of 3"),
        ({"dataset": "digitz"}, "dataset", "dataset 'digitz' is not known; did you mean 'digits'?"),
        ({"eval_split": "test"}, "dataset", "has no split 'test'; it has "),
        ({"num_classes": 2}, "labels, train", "8 of 24 are not in 0..1: "),
        ({"pretrained": "/none"}, "pretrained", "/none does not exist. "),
        ({"architecture": "CIFAR_FOUR_LAYER", "num_classes": 0, "image_size": 31}, "config", "config.image_size is 31"),
    ],
)
def test_what_stops_a_run_is_a_problem_with_its_own_sentence(changes, check, wanted, examine):
    found = examine(**changes)
    assert found[check].level == "problem"
    assert wanted in found[check].text
    # The rest does not depend on it.
    assert found["versions"].level == "ok"
    if check in ("dataset", "devices"):
        assert {"devices", "disk of the data"} <= found.keys()
    if check in ("devices", "pretrained"):
        assert found["classes, train"].level == found["label order"].level == "ok"


def test_a_workdir_of_another_run_is_a_problem(examine, folder, tmp_path):
    (tmp_path / "run").mkdir()
    config_lib.save(config_for(f"folder:{folder}", seed=9), tmp_path / "run" / "config.json")
    found = examine()
    assert found["config"].level == "problem"
    assert "holds a run with seed=9, and this one has seed=0" in found["config"].text


def test_pretrained_weights_of_another_network_are_a_problem(examine, monkeypatch):
    other = dataclasses.make_dataclass("Weights", ["params", "source"])({}, "a run")
    monkeypatch.setattr(doctor.convert, "read", lambda path, trunk: other)
    found = examine(pretrained="/there")
    assert found["pretrained"].level == "problem"
    assert found["pretrained"].text.startswith("config.pretrained has nothing for conv1; accepted is ")


def test_flags_give_the_config_that_main_trains_with():
    wanted = quickstart.get_config()
    wanted.batch_size, wanted.augment.crop, wanted.mesh.tower, wanted.learning_rate = 7, False, 2, 0.5
    fields = [
        "--config.batch_size=7",
        "--noconfig.augment.crop",
        "--config.mesh.tower",
        "2",
        "--config.learning_rate=0.5",
    ]
    found = config_lib.from_flags([f"--config={ROOT}/configs/quickstart.py", *fields])
    assert found.to_dict() == wanted.to_dict()
    assert found.is_locked
    variant = config_lib.from_flags([f"--config={ROOT}/configs/alexnet.py:slides"])
    assert variant.architecture == "SLIDES"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (["--config.batchsize=3"], "config has no field 'batchsize'; did you mean 'batch_size'?"),
        (["--config.batch_size=abc"], "config.batch_size is 'abc'; accepted is an integer of at least 1, below 2^31. "),
        (["--wrong=3"], "Unknown command line flag 'wrong'"),
        (["batch_size=3"], "unknown arguments: batch_size=3; fields are set as --config.FIELD=VALUE"),
    ],
)
def test_wrong_flags_are_answered_in_a_sentence(fields, wanted):
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", f"--config={ROOT}/configs/quickstart.py", *fields])
    assert stop.value.code.startswith("error: ")
    assert wanted in stop.value.code


def test_a_config_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"No such file or directory: .*none\.py"):
        config_lib.from_flags(["--config=none.py"])


# The machine


def test_versions_that_were_not_tried_are_named(monkeypatch):
    assert only(machine.versions())[0] == "ok"
    versions = {"jax": "0.9.0", "optax": None}
    here = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: versions.get(name, here(name)))
    level, text = only(machine.versions())
    assert level == "warning"
    assert (
        "jax 0.9.0 (accepted is <0.13,>=0.10.2), optax is not installed (accepted is <0.3,>=0.2.8); jax 0.9.0, " in text
    )
    assert "pip install -r requirements.txt" in text


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_that_jax_does_not_use_is_seen(there, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "NVIDIA", tmp_path if there else tmp_path / "none")
    level, text = only(machine.devices(config_for("digits")))
    assert text.startswith(
        "1 x cpu (cpu); mesh 1 x 1 (data x tower), each with all of the network and 8 of a batch's 8"
    )
    assert (level, 'pip install "jax[cuda13]' in text) == (("warning", True) if there else ("ok", False))


def test_towers_on_two_devices_are_told(monkeypatch):
    two = jax.local_devices()[:2]
    if len(two) < 2:
        pytest.skip("needs 2 devices")
    monkeypatch.setattr(jax, "devices", lambda *_: two)
    config = config_for("digits")
    config.mesh.tower = 2
    text = only(machine.devices(config))[1]
    assert "mesh 1 x 2 (data x tower), each with 1 of the network's towers and 8 of a batch's 8 images" in text


@pytest.mark.parametrize(("free", "level"), [(6_890_000, "problem"), (6_900_000, "ok")])
def test_too_little_room_for_checkpoints(free, level, monkeypatch, tmp_path, examine):
    # 286,033 parameters of three classes, each with its velocity, in float32, three times: 6.87 MB and a few numbers.
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    recipe = recipe_of_quickstart(3)
    parameters = sum(
        a.size for a in jax.tree.leaves(jax.eval_shape(functools.partial(init_state, recipe=recipe)).params)
    )
    limit = 3 * machine.setup.state_bytes(recipe)
    assert 3 * 8 * parameters <= limit <= 3 * 8 * parameters + 300
    usage = usage._replace(free=limit - (level == "problem"))
    found = examine()["disk of the workdir"]
    assert found.level == level
    assert f"free at {tmp_path}/run; 3 checkpoints of 2.3 MB (best, last, the next) need " in found.text
    assert ("give another --workdir" in found.text) == (level == "problem")


def recipe_of_quickstart(classes):
    config = config_for("digits", num_classes=classes)
    data = Dataset(in_memory(8), in_memory(8), classes, None, None)
    return setup.recipe_for(config, data, setup.place(config, ("batch_size",)))


def test_room_for_imagenet_that_is_not_prepared(monkeypatch, tmp_path):
    config = config_for("imagenet2012", data_dir=str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((37e9, "warning"), (39e9, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=int(free)))
        assert only(machine.disk(config, tmp_path, None))[0] == level


# The data


def test_folders_that_differ_between_the_splits(examine, folder):
    (folder / "val" / "zebra").rename(folder / "val" / "Zebra")
    found = examine()
    assert found["label order"].level == "warning"
    assert "folders that the training split lacks: Zebra; the reverse: zebra." in found["label order"].text
    assert found["classes, train"].level == "warning"
    assert "no examples of Zebra: 1 of 4 classes cannot be learned" in found["classes, train"].text
    assert found["classes, evaluation"].level == "warning"
    assert "no examples of zebra in the split" in found["classes, evaluation"].text


def test_a_folder_without_images(examine, folder):
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    assert "no examples of dog: 1 of 3 classes" in examine()["classes, train"].text


@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_images_are_all_named(split, examine, folder):
    content = {"cut.png": (folder / "train/cat/0.png").read_bytes()[:300], "empty.png": b"", "text.jpg": b"some text"}
    for name, broken in content.items():
        (folder / split / "dog" / name).write_bytes(broken)
    found = examine()[f"images, {'train' if split == 'train' else 'evaluation'}"]
    assert found.level == "problem"
    assert found.text.startswith(f"3 of all {27 if split == 'train' else 12} do not decode: ")
    assert all(f"{folder}/{split}/dog/{name} (" in found.text for name in content)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_looked_at(folder):
    paths = sorted(map(str, folder.glob("train/*/*.png")))
    source = FolderSource("split train", [*paths, f"{folder}/gone.png"], np.zeros(25, np.int32))
    looked = seen("train", source, size=SIDE)
    assert len(looked.digests) == 24
    assert f"{folder}/gone.png cannot be read" in only(checks.broken(looked))[1]


def test_labels_are_looked_at_whatever_the_source():
    source = in_memory(20)
    source.labels[[3, 7]] = -1, 5
    level, text = only(checks.label_range(seen("train", source), 5))
    assert level == "problem"
    assert "2 of 20 are not in 0..4: 3 of in memory, split train has -1, 7 of in memory, split train has 5." in text
    assert only(checks.label_range(seen("train", in_memory(20)), 5)) == ("ok", "20 examined, all in 0..4")


@pytest.mark.parametrize(("most", "level"), [(1000, "ok"), (1001, "warning")])
def test_uneven_classes(most, level):
    found = only(checks.classes(labelled("train", [0] * most + [1] * 100), 2, ["cat", "dog"], imagenet=False))
    assert found[0] == level
    assert f"2 classes of 100 (dog) to {most:,} (cat) examples" in found[1]


def test_a_sample_does_not_prove_that_a_class_is_empty():
    sample = labelled("train", [0, 0, 1], in_memory(100))
    level, text = only(checks.classes(sample, 3, None, imagenet=False))
    assert level == "warning"
    assert "no examples of class 2 in a sample of 3: 1 of 3 classes. Look at all: --duplicates=all." in text


def of_size(count, **changes):
    """A split that only says how large it is."""
    return dataclasses.make_dataclass(
        "Sized", [], namespace={"__len__": lambda self: count, "name": "imagenet2012", **changes}
    )()


@pytest.mark.parametrize(("train", "level"), [(1_281_167, "ok"), (1_281_166, "warning")])
def test_the_size_of_imagenet(train, level):
    data = Dataset(of_size(train), of_size(50_000), 1000, None, None)
    found = only(checks.sizes(config_for("imagenet2012"), data))
    assert found[0] == level
    assert ("a part of ImageNet, which has 1,281,167 and 50,000" in found[1]) == (level == "warning")
    assert only(checks.sizes(config_for("imagenette"), data))[0] == "ok"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        # 4,000 images, 64 a batch: 62.5 steps an epoch. The first evaluation is the best, the fourth drops: step 250.
        ({"patience": 3, "patience_steps": 180}, "the rate can drop from step 250 on"),
        # 300 steps are 4.8 epochs: the sixth evaluation, step 375.
        ({"patience": 3, "patience_steps": 300}, "the rate can drop from step 375 on"),
        ({"patience": 3, "patience_steps": 10_000}, "the rate does not drop in so few steps"),
        ({"drops": 0}, "the rate never drops"),
        ({"drops": 0, "cooldown": 0.4}, "the rate falls to 0 in the last 40% of the steps"),
        # Evaluations at 100, 200, ...; 180 steps after the first of them is the third.
        ({"patience": 1, "patience_steps": 180, "eval_every_steps": 100}, "the rate can drop from step 300 on"),
    ],
)
def test_the_first_drop_is_told_before_the_run(changes, wanted):
    config = quickstart.get_config()
    config.update(batch_size=64, cooldown=0.0)
    config.plateau.patience_steps = 180
    config.update({name: changes[name] for name in ("eval_every_steps", "cooldown") if name in changes})
    config.plateau.update({name: value for name, value in changes.items() if name in config.plateau})
    level, text = only(length.length(config, 938, 4000))
    assert level == "ok"
    assert "938 steps, 62.5 an epoch" in text
    assert wanted in text


def test_a_run_that_ends_before_such_networks_learn_is_told(monkeypatch):
    monkeypatch.setattr(chance, "MEASURED", {"QUICKSTART": (100, "digits"), "QUICKSTART_TANH": (70, "digits")})
    config = quickstart.get_config()
    config.batch_size = 64
    assert only(length.length(config, 101, 120))[0] == "ok"
    level, text = only(length.length(config, 100, 120))  # 1.875 steps an epoch: 107 epochs are 200 steps
    assert level == "warning"
    assert "QUICKSTART left chance after 100 steps on digits: this run may end before" in text
    assert "--config.num_epochs=107 or more" in text
    assert chance.measured("QUICKSTART_TANH_NO_LRN") == ("QUICKSTART_TANH", 70, "digits")
    config.num_steps = 100  # overrides num_epochs
    assert "--config.num_steps=200 or more" in only(length.length(config, 100, 120))[1]
    config.architecture = "QUICKSTART_NO_LRN"  # not measured itself
    assert "; QUICKSTART left chance after 100 steps" in only(length.length(config, 100, 120))[1]
    assert chance.measured("QUICKSTARTED") is None
    config.architecture = "PAPER"
    assert only(length.length(config, 5, 120))[0] == "ok"


@pytest.mark.parametrize(("fewest", "level"), [(732, "ok"), (731, "warning")])
def test_the_classes_of_imagenet(fewest, level):
    found = only(checks.classes(labelled("train", [0] * 1300 + [1] * fewest), 2, None, imagenet=True))
    assert found[0] == level


def imagenet(names, values, synsets=None, **changes):
    """ImageNet with images of these file names and labels, in both splits."""
    splits = [in_memory(len(names), names=names) for _ in range(2)]
    for split in splits:
        split.labels[:] = values
    return Dataset(*splits, 1000, synsets or labels.synsets(), None)


TRUE = {  # the first and the last class, and what the rest of the world has for the first validation images
    "n01440764_10026.JPEG": 0,
    "n15075141_7.JPEG": 999,
    "ILSVRC2012_val_00000001.JPEG": 65,
    "ILSVRC2012_val_00000002.JPEG": 970,
    "ILSVRC2012_val_00000003.JPEG": 230,
}


def test_the_label_order_of_imagenet():
    names, values = list(TRUE), list(TRUE.values())
    config = config_for("imagenet2012")

    def found(data):
        return only(checks.label_order(config, data, seen("train", data.train), seen("evaluation", data.evaluation)))

    assert found(imagenet(names, values)) == (
        "ok",
        "TFDS's 1,000 synsets in order; 10 images have the label that their file name says",
    )
    level, text = found(imagenet(names, [0, 999, 66, 970, 230]))
    assert level == "problem"
    assert "ILSVRC2012_val_00000001.JPEG has label 66, n01753488, and is a n01751748" in text
    swapped = labels.synsets()[:]
    swapped[3], swapped[4] = swapped[4], swapped[3]
    level, text = found(imagenet(names, values, swapped))
    assert level == "problem"
    assert f"label 3 is {swapped[3]}, not {swapped[4]}" in text


def test_file_names_that_tell_nothing():
    assert len(labels.synsets()) == 1000
    assert [labels.synset_of(name) for name in ("1.JPEG", "ILSVRC2012_val_00050001.JPEG", "n01440764.JPEG")] == [
        None
    ] * 3


def photographs(mean, values, count=64):
    """Images of one colour each, with these means and these independent variances of pixels in [0, 1]."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(count, 3))
    draws = (draws - draws.mean(0)) / draws.std(0)
    colours = np.clip(np.round(mean + 255 * np.sqrt(values) * draws), 0, 255).astype(np.uint8)
    return InMemory(np.broadcast_to(colours[:, None, None], (count, 16, 16, 3)), np.zeros(count, np.int32))


def statistics_of(source):
    sums = Sums(16)
    sums.add(source.pixels)
    return sums.statistics()


def changed(statistics, mean=lambda image: image, values=lambda values: values):
    pca = ColorPCA(statistics.pca.eigenvectors, values(np.asarray(statistics.pca.eigenvalues)))
    return Statistics(mean(np.asarray(statistics.mean_image)), pca)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"mean": lambda image: image + 7.9, "values": lambda v: v * 1.9}, ""),
        ({"mean": lambda image: image + 8.1}, "The means differ by 8 levels; accepted are 8."),
        ({"mean": lambda image: image[..., ::-1]}, "The channels are swapped: BGR instead of RGB."),
        ({"mean": lambda image: image / 255}, "The pixels were in 0..1; accepted is 0..255."),
        ({"values": lambda v: v / [1, 1, 2.1]}, "The colour variances differ by a factor 2.1; accepted is 2."),
    ],
)
def test_stored_statistics_that_are_not_those_of_the_images(change, why):
    source = photographs((120, 100, 60), (0.02, 0.01, 0.005))
    data = Dataset(source, source, 1, None, changed(statistics_of(source), **change))
    level, text = only(checks.colours(config_for("any"), data, seen("train", source)))
    assert level == ("problem" if why else "ok")
    assert why in text
    assert ("The stored statistics are not of these images" in text) == bool(why)


@pytest.mark.parametrize("whole", [True, False])
def test_colours_that_are_not_those_of_imagenet(whole, monkeypatch):
    # Nothing is stored here, so the images' own are compared with the known ones.
    monkeypatch.setattr(checks, "is_all_of_imagenet", lambda config, data: whole)
    monkeypatch.setattr(checks, "IMAGENET_EIGENVALUES", (0.01, 0.006, 0.003))

    def found(source):
        data = Dataset(source, source, 1000, None, None)
        return only(checks.colours(config_for("imagenet2012"), data, seen("train", source)))

    assert found(photographs((123.7, 116.8, 103.9), (0.01, 0.006, 0.003)))[0] == "ok"
    level, text = found(photographs((103.9, 116.8, 123.7), (0.01, 0.006, 0.003)))
    assert level == ("problem" if whole else "warning")
    assert "BGR instead of RGB" in text
    assert "ImageNet's are mean RGB (123.7, 116.8, 103.9)" in text
    assert "by a factor 3.0" in found(photographs((123.7, 116.8, 103.9), (0.03, 0.006, 0.003)))[1]


# Duplicates


def test_images_in_both_splits(examine, folder):
    # Another compression of the same pixels is the same image.
    Image.open(folder / "train/cat/3.png").save(folder / "val/cat/again.png", compress_level=0)
    found = examine()["duplicates, across"]
    assert found.level == "problem"
    assert found.text.startswith("1 images to evaluate on are also in the training split, 10.00%; accepted is 0.1% ")
    assert f"{folder}/val/cat/again.png = {folder}/train/cat/3.png" in found.text


def test_images_that_are_in_a_split_twice(examine, folder):
    shutil.copy(folder / "train/cat/3.png", folder / "train/cat/copy.png")
    shutil.copy(folder / "train/cat/4.png", folder / "train/dog/copy.png")
    found = examine()
    assert found["duplicates, train"].level == "warning"
    text = found["duplicates, train"].text
    assert text.startswith(
        "2 have exactly the same pixels as another (all 26 compared), 1 of them with another label: "
    )
    assert f"{folder}/train/cat/3.png" in text
    assert f"{folder}/train/cat/copy.png" in text
    assert found["duplicates, evaluation"].level == found["duplicates, across"].level == "ok"


@pytest.mark.parametrize(("evaluated", "level"), [(999, "problem"), (1001, "warning")])
def test_a_few_images_in_both_splits_are_a_warning(evaluated, level):
    train, evaluation = in_memory(20, size=4), in_memory(evaluated, size=4)
    evaluation.pixels[5] = train.pixels[2]
    found = only(checks.twice_across(seen("train", train, size=4), seen("evaluation", evaluation, size=4)))
    assert found[0] == level
    assert "5 of in memory, split train = 2 of in memory, split train" in found[1]


def test_a_sample_says_so_and_stands_for_the_whole(monkeypatch):
    train, evaluation = in_memory(400), in_memory(100)
    evaluation.pixels[:] = train.pixels[:100]
    monkeypatch.setattr(checks, "SAMPLE", 100)
    a, b = seen("train", train, "sample"), seen("evaluation", evaluation, "sample")
    assert (a.count, a.whole, b.whole) == (100, False, True)
    assert a.labels.keys() == a.digests.keys() == seen("train", train, "sample").digests.keys()
    text = only(checks.twice_across(a, b))[1]
    share = float(text.split("about ")[1].split("%")[0])
    assert 60 < share <= 100  # 100% in truth, from some 25 pairs that a sample of a quarter has seen
    assert "with a sample of 100 of 400 to train on" in text
    assert "--duplicates=all compares all" in only(checks.twice_across(a, seen("evaluation", in_memory(9))))[1]


def test_looking_at_a_sample_ends_in_time(monkeypatch):
    monkeypatch.setattr(checks, "SECONDS", 0)
    source = in_memory(300, size=4)
    assert seen("train", source, "sample", size=4).count == 0
    assert seen("train", source, "all", size=4).count == 300
    monkeypatch.setattr(checks, "SECONDS", 60)
    monkeypatch.setattr(checks, "FEW", 30)
    assert seen("train", source, "none", size=4).count == 30


def test_without_duplicates_none_are_looked_for(not_timed, folder, tmp_path):
    found = by_check(doctor.examine(config_for(f"folder:{folder}"), workdir=tmp_path, duplicates="none"))
    assert not [check for check in found if check.startswith("duplicates")]


# Speed


@pytest.fixture
def run_of(monkeypatch):
    """A function that makes a run of the tiny network, on images that take their time."""
    monkeypatch.setattr(speed, "SECONDS", 0.5)
    recipe = tiny.recipe_of(tiny.place())

    def make(sleep):
        config = config_for("any", image_size=16)
        data = Dataset(in_memory(64, sleep=sleep), in_memory(8), 5, None, None)
        return setup.Run(config, Path("none"), recipe, data, tiny.statistics_of(), 1000)

    return make


def test_a_slow_source_is_seen(run_of):
    run = run_of(0.02)
    rates = speed.measure(run)
    # A batch is one part of eight images, and two batches are on their way at a time.
    assert 20 < rates.loader <= 2 * 8 / (8 * 0.02)
    assert rates.step > 3 * rates.loader
    assert rates.together < 3 * rates.loader
    finding = speed.compare(rates, shared=True)
    assert finding.level == "warning"
    assert "accepted is 3%. Prepare the data once" in finding.text
    assert " for 1,000 steps (125 epochs)" in speed.duration(run, rates).text


def test_the_time_of_a_step_that_is_not_counted_is_not_taken(run_of, monkeypatch):
    class Device:
        """Takes a second for each step, one after the other; only who waits for a state sees the time pass."""

        now = done = 0.0

        def step(self, state, batch, statistics, *, recipe):
            self.done = max(self.done, self.now) + 1
            return self, {}

        def block_until_ready(self):
            self.now = max(self.now, self.done)
            return self

        def monotonic(self):
            return self.now

    device = Device()
    monkeypatch.setattr(speed, "time", device)
    monkeypatch.setattr(speed, "train_step", device.step)
    assert speed._together(run_of(0.0), device, None, 4) == 1
    assert device.now == 4


def test_images_that_cannot_be_read_leave_the_speed_unknown(run_of):
    run = run_of(0.0)
    broken = dataclasses.replace(run.data, train=FolderSource("split train", ["/none.png"] * 8, np.zeros(8, np.int32)))
    level, text = only(speed.who_waits(dataclasses.replace(run, data=broken)))
    assert level == "problem"
    assert "/none.png cannot be read" in text


def test_a_training_set_on_the_devices_does_not_wait_for_the_loader(run_of, monkeypatch):
    run = run_of(0.0)
    monkeypatch.setattr(speed, "measure", lambda run: speed.Rates(loader=10, step=1000, together=10, compiling=1))
    monkeypatch.setattr(speed.feed, "free_memory", lambda together: 1e9)
    fast, duration = speed.who_waits(run)
    assert (fast.level, fast.check) == ("ok", "speed")
    assert fast.text == "images/s: 1,000; the training images are decoded once and stay on the devices"
    assert "about 0:00:08 for 1,000 steps" in duration.text
    monkeypatch.setattr(speed.feed, "free_memory", lambda together: 0.0)
    slow, duration = speed.who_waits(run)
    assert slow.level == "warning"
    assert "about 0:13:20 for 1,000 steps" in duration.text


@pytest.mark.parametrize(
    ("loader", "together", "shared", "level", "wanted"),
    [
        (1000, 990, False, "ok", "waits for images 1.0% of the time"),
        (800, 790, False, "warning", "21.0% of the time; accepted is 3%. Prepare the data once"),
        (2000, 900, False, "warning", "10.0% of the time; accepted is 3%. The loader alone is fast enough"),
        (2000, 600, True, "ok", "together 600 (they share the CPU's cores); the network waits for images 0.0%"),
        (900, 450, True, "warning", "10.0% of the time; accepted is 3%. Prepare the data once"),
    ],
)
def test_who_waits_for_whom(loader, together, shared, level, wanted):
    finding = speed.compare(speed.Rates(loader, 1000, together, 1), shared=shared)
    assert finding.level == level
    assert wanted in finding.text


def test_a_step_that_does_not_fit_is_a_problem(run_of, monkeypatch):
    def too_large(run):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nAnd so on"
        )

    monkeypatch.setattr(speed, "measure", too_large)
    level, text = only(speed.who_waits(run_of(0.0)))
    assert level == "problem"
    assert "allocate 9 bytes.). Set --config.accumulate=2 or more" in text


# The sheet


@pytest.mark.parametrize("changes", [{}, {"mean_at": "center", "group": 4, "rescale": True}], ids=["paper", "2012"])
def test_the_sheet_shows_the_pixels_of_the_augmentation(changes, not_timed, folder, tmp_path):
    config = config_for(f"folder:{folder}", mean_at=changes.get("mean_at", "crop"))
    config.augment.update(flip=True, group=changes.get("group", 1), pca_rescale=changes.get("rescale", False))
    config.augment.pca_std = 1.0  # to be seen in 8 bits
    found = by_check(doctor.examine(config, workdir=tmp_path / "run", output=tmp_path))
    assert str(tmp_path / "doctor.png") in found["sheet"].text
    image = np.asarray(Image.open(tmp_path / "doctor.png"))
    data = setup.open_data(config)
    pixels = np.stack([np.asarray(Image.open(path)) for path in data.train.paths])
    statistics = checks.look("train", data.train, image_size=SIDE, seed=0, duplicates="all").sums.statistics()
    cell, scale = 3 * SIDE, 3  # 96 pixels at least
    for row, example in enumerate(Order(24).of_step(0, 8)):
        top = row * (sheet.LABEL + cell + sheet.GAP) + sheet.LABEL
        np.testing.assert_array_equal(image[top : top + cell : scale, :cell:scale], pixels[example])
        assert (image[top - sheet.LABEL : top] < 128).any()  # the name of the label
        for epoch in range(6):
            places = [i for step in range(3 * epoch, 3 * epoch + 3) for i in Order(24).of_step(step, 8)]
            wanted = shown(config, pixels[example], 24 * epoch + places.index(example), statistics)
            left = (1 + epoch) * (cell + sheet.GAP)
            got = image[top : top + scale * len(wanted) : scale, left : left + scale * len(wanted) : scale]
            assert np.abs(got.astype(int) - wanted).max() <= 1  # rounding
            assert (got == wanted).mean() > 0.99


def shown(config, pixels, index, statistics):
    """What an image becomes, the mean added back, by the functions of `augment` alone."""
    size, key = 28, jax.random.split(jax.random.key(config.seed), 3)[1]
    crop, flip, _ = jax.random.split(jax.random.fold_in(key, index // config.augment.group), 3)
    color = jax.random.split(jax.random.fold_in(key, index), 3)[2]
    mean = np.asarray(statistics.mean_image, np.float32)

    def moved(image):
        return augment.random_flip(flip, augment.random_crop(crop, image, size))

    below = moved(mean) if config.mean_at == "crop" else augment.center_crop(mean, size)
    less = moved(pixels.astype(np.float32)) - below
    rescale = config.augment.pca_rescale
    image = augment.pca_jitter(color, less, statistics.pca, config.augment.pca_std, rescale=rescale) + below
    return np.clip(np.round(image), 0, 255).astype(int)


def test_images_that_do_not_decode_are_left_out_of_the_sheet(not_timed, folder, tmp_path):
    for path in folder.glob("train/cat/*.png"):
        path.write_bytes(b"")
    found = by_check(doctor.examine(config_for(f"folder:{folder}"), workdir=tmp_path / "run", output=tmp_path))
    assert "8 images as stored" in found["sheet"].text


def test_where_nothing_decodes_there_is_no_sheet(not_timed, folder, tmp_path):
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"")
    found = by_check(doctor.examine(config_for(f"folder:{folder}"), workdir=tmp_path / "run", output=tmp_path))
    assert "sheet" not in found
    assert found["images, train"].text.startswith("24 of all 24 do not decode: ")
    assert not (tmp_path / "doctor.png").exists()


@pytest.mark.slow
def test_the_digits_are_healthy(tmp_path):
    command = [sys.executable, "-m", "alexnet_jax", "doctor", "--config=configs/quickstart.py", f"--output={tmp_path}"]
    done = subprocess.run([*command, f"--config.data_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       examples: 4,000 to train on (digits, split train), 1,000 to evaluate on" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("0 problems, ")
