"""Predictions for files: the evaluation's numbers, every way to name images and classes, and submissions by hand."""

import argparse
import io
import json
import os
import sys

import flax
import jax
import numpy as np
import pytest
import scipy.io
from PIL import Image
from tiny import TINY, statistics_of

from alexnet_jax import AlexNet, convert
from alexnet_jax import config as config_lib
from alexnet_jax.cli import predict as commands
from alexnet_jax.convert.weights import ILSVRC_2012
from alexnet_jax.data import labels
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import predict, saved, submission
from alexnet_jax.evaluation.predict import Prediction
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.network.architectures import with_classes
from alexnet_jax.network.networks import QUICKSTART
from alexnet_jax.training.checkpoint import Checkpoints
from configs import quickstart

FILES = 30


def weights_of(architecture=TINY, size=16, **changes):
    first = architecture[0]
    params = AlexNet(architecture).init(jax.random.key(1), np.zeros((1, first.size, first.size, 3), np.float32))
    facts = {"pca": None, "mean_at": "crop", "views": 10, "classes": "classes of tests", "source": "tests"}
    mean_image = np.full((size, size, 3), 127.5, np.float32)
    return convert.Weights(architecture, jax.tree.map(np.asarray, params["params"]), mean_image, **{**facts, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty files in five classes, of several sides, modes and formats."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(FILES):
        sides = ((16, 16), (40, 23), (9, 31))[k % 3]
        image = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8)).convert(("RGB", "L", "P")[k // 3 % 3])
        path = root / "val" / f"class{k % 5}" / f"{k}.{('png', 'jpg')[k % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.convert("RGB") if k % 2 else image).save(path)
    return root


@pytest.fixture(scope="module")
def file_of_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    convert.write(weights_of(), path)
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers())
    options = parser.parse_args([str(argument) for argument in arguments])
    options.run(options)


# The numbers


@pytest.mark.parametrize(("views", "name"), [(1, "one_view"), (10, "ten_views")])
def test_the_files_of_a_folder_give_exactly_the_errors_of_its_evaluation(folder, file_of_weights, views, name):
    wanted = saved.evaluate_weights(file_of_weights, dataset=f"folder:{folder}")[name]
    trained = Trained.read(file_of_weights, batch_size=7)
    files = predict.find([str(folder / "val")])
    wrong, loss = 0, 0.0
    for made in predict.predictions(trained, files, views):
        label = int(made.name.rpartition("class")[2][0])
        wrong += predict.best(made.probabilities, 1)[0] != label
        loss -= np.log(made.probabilities[label]) / FILES
    assert len(files) == wanted.examples == FILES
    assert 0 < wrong < FILES
    assert 100 * wrong / FILES == wanted.top1_error
    assert loss == pytest.approx(wanted.loss, rel=1e-5)


def test_files_that_are_no_images_leave_the_others_as_they_are(folder, file_of_weights, tmp_path):
    (tmp_path / "text.jpg").write_text("This is a text.")
    trained = Trained.read(file_of_weights, batch_size=8)
    good = predict.find([str(folder)])
    mixed = [*good[:9], str(tmp_path / "text.jpg"), *good[9:], str(tmp_path / "gone.jpg")]
    made = list(predict.predictions(trained, mixed))
    assert [one.name for one in made] == mixed
    alone = predict.predictions(trained, good)
    for one, other in zip([one for one in made if not one.error], alone, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
    errors = [one.error for one in made if one.error]
    assert errors == [
        "it begins with b'This is ', so it is not an image",
        "it cannot be read: No such file or directory",
    ]
    assert all(one.probabilities is None for one in made if one.error)


def test_what_is_no_file_is_told_and_the_others_are_predicted(folder, file_of_weights, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [str(tmp_path / "pipe.jpg"), "/dev/zero", predict.find([str(folder)])[0]]
    made = list(predict.predictions(Trained.read(file_of_weights, batch_size=8), names))
    assert [one.error for one in made] == ["it is not a regular file", "it is not a regular file", ""]
    with pytest.raises(UsageError, match="an image has an empty name"):
        predict.find([""])


def test_the_best_classes_are_in_order_and_the_earlier_of_two_equal_ones_is_first():
    probabilities = np.array([0.1, 0.3, 0.05, 0.3, 0.25], np.float32)
    assert predict.best(probabilities, 4).tolist() == [1, 3, 4, 0]
    assert predict.best(probabilities, 9).tolist() == [1, 3, 4, 0, 2]


# Which images


def test_folders_are_searched_to_the_bottom_and_files_are_taken_as_they_are(tmp_path):
    for name in ("b/2.PNG", "b/c/1.jpeg", "a.webp", "notes.txt", "b/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = predict.find([str(tmp_path / "notes.txt"), str(tmp_path), "-"])
    assert found == [*(str(tmp_path / name) for name in ("notes.txt", "a.webp", "b/2.PNG", "b/c/1.jpeg")), "-"]


def test_paths_without_images_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"gone does not exist\. Give image files"):
        predict.find([str(tmp_path / "gone")])
    with pytest.raises(UsageError, match="holds no images"):
        predict.find([str(tmp_path)])
    with pytest.raises(UsageError, match=r"given twice\. Give it once"):
        predict.find(["-", "-"])


# Names of classes


def test_classes_are_called_by_the_file_then_by_the_weights_then_by_numbers(tmp_path):
    own = ("a", "b", "c", "d", "e")
    assert predict.class_names(weights_of()) == ("0", "1", "2", "3", "4")
    assert predict.class_names(weights_of(class_names=own)) == own
    (tmp_path / "names").write_text("tench\ngoldfish, Carassius auratus\n3\n4\n5\n")
    names = predict.class_names(weights_of(class_names=own), str(tmp_path / "names"))
    assert names == ("tench", "goldfish, Carassius auratus", "3", "4", "5")


def test_the_thousand_of_ilsvrc_are_called_by_their_synsets():
    names = predict.class_names(weights_of(with_classes(TINY, 1000), classes=ILSVRC_2012))
    assert (len(names), names[0], names[-1]) == (1000, "n01440764", "n15075141")


def test_names_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "few").write_text("a\nb\n")
    with pytest.raises(UsageError, match="few has 2 lines, but the network has 5 classes"):
        predict.class_names(weights_of(), str(tmp_path / "few"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes", "gone"):
        with pytest.raises(UsageError, match=rf"--names=.*{name} cannot be read as text"):
            predict.class_names(weights_of(), str(tmp_path / name))


def test_mirrored_views_are_refused_where_a_mirrored_image_is_none():
    predict.check_views(weights_of(views=5), 5)
    with pytest.raises(UsageError, match=r"--views is 10; .* Give --views=5"):
        predict.check_views(weights_of(views=5), 10)


# Submissions


def test_a_line_has_the_ids_of_the_five_best_classes_best_first():
    rows = [[0.1, 0.2, 0.3, 0.05, 0.25, 0.1], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02]]
    made = [Prediction("x", np.array(row, np.float32)) for row in rows]
    lines = list(submission.lines(iter(made), [100, 7, 30, 4, 50, 6]))
    assert lines == ["30 50 7 100 6", "100 7 30 4 50"]


def test_lines_are_in_the_order_of_the_names_of_the_files():
    names = ["z/test_00000001.JPEG", "a/test_00000003.JPEG", "m/test_00000002.JPEG", "-"]
    assert submission.by_file_name(names) == ["-", names[0], names[2], names[1]]


def test_ids_of_ilsvrc_are_read_from_the_development_kit(tmp_path):
    names = tuple(labels.synsets())
    with pytest.raises(UsageError, match=r"--mapping is missing: .*ILSVRC2012_devkit_t12\.tar\.gz"):
        submission.class_ids(names)
    wanted = np.random.default_rng(0).permutation(1000) + 1
    order = np.argsort(wanted)
    (tmp_path / "ids.txt").write_text("".join(f"{wanted[k]} {names[k]} some words\n" for k in order))
    assert submission.class_ids(names, str(tmp_path / "ids.txt")) == wanted.tolist()
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.array(
        [[(float(wanted[k]), names[k], "some words")] for k in order] + [[(1001.0, "n00001740", "")]], kind
    )
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": synsets})
    assert submission.class_ids(names, str(tmp_path / "meta.mat")) == wanted.tolist()


def test_other_classes_have_the_numbers_of_their_order_unless_a_mapping_has_others(tmp_path):
    assert submission.class_ids(("b", "a", "c")) == [0, 1, 2]
    (tmp_path / "ids").write_text("3 a\n9 b\n\n12 c\n")
    assert submission.class_ids(("b", "a", "c"), str(tmp_path / "ids")) == [9, 3, 12]


def test_mappings_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "few").write_text("3 a\n")
    with pytest.raises(UsageError, match=r"no number for 2 of the 3 classes, for example 'b'"):
        submission.class_ids(("b", "a", "c"), str(tmp_path / "few"))
    (tmp_path / "other").write_text("a 3\n")
    with pytest.raises(UsageError, match="has a line that is not 'ILSVRC2012_ID WordNet-id'"):
        submission.class_ids(("a",), str(tmp_path / "other"))
    (tmp_path / "meta.mat").write_text("This is a text.")
    with pytest.raises(UsageError, match=r"is not a meta\.mat"):
        submission.class_ids(("a",), str(tmp_path / "meta.mat"))


def test_submit_writes_a_line_an_image(folder, file_of_weights, tmp_path, capsys):
    output = tmp_path / "test.txt"
    run("submit", folder, f"--weights={file_of_weights}", "--views=10", f"--output={output}")
    assert f"Wrote: {output} (30 lines)" in capsys.readouterr().out
    trained = Trained.read(file_of_weights, batch_size=30)
    names = sorted(folder.rglob("*.*g"), key=lambda path: path.name)
    made = predict.predictions(trained, [str(name) for name in names], 10)
    wanted = [np.argsort(-one.probabilities).tolist() for one in made]
    assert [list(map(int, line.split())) for line in output.read_text().splitlines()] == wanted


def test_submit_writes_nothing_if_a_file_is_no_image(file_of_weights, tmp_path):
    (tmp_path / "text.jpg").write_text("This is a text.")
    with pytest.raises(
        UsageError, match=r"text\.jpg is not an image: it begins with .* A submission needs one line for each"
    ):
        run("submit", tmp_path, f"--weights={file_of_weights}", f"--output={tmp_path}/out.txt")
    with pytest.raises(UsageError, match="none does not exist"):
        run("submit", tmp_path, f"--weights={file_of_weights}", f"--output={tmp_path}/none/out.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


# The command


@pytest.fixture
def named(tmp_path):
    """A file of weights that names its classes."""
    convert.write(weights_of(class_names=("a", "b", "c", "d", "e")), tmp_path / "named.safetensors")
    return tmp_path / "named.safetensors"


def png():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_others_are_done_when_a_file_is_none_and_the_end_is_an_error(named, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("This is a text.")
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "same.png").write_bytes(png())
    with pytest.raises(UsageError, match="1 of 3 files"):
        run("predict", tmp_path, f"--weights={named}", "--top=2")
    shown = capsys.readouterr()
    (probabilities,) = (one.probabilities for one in predict.predictions(Trained.read(named), [f"{tmp_path}/good.png"]))
    k, other = np.argsort(-probabilities)[:2]
    told = f"{'abcde'[k]} {probabilities[k]:.1%}, {'abcde'[other]} {probabilities[other]:.1%}"
    assert shown.out.splitlines() == [f"{tmp_path}/good.png: {told}", f"{tmp_path}/same.png: {told}"]
    assert f"error: {tmp_path}/text.jpg: it begins with b'This is '" in shown.err


def test_json_is_an_object_an_image_and_stdin_is_one(named, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.jpg").write_text("")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(png())))
    with pytest.raises(UsageError, match="1 of 2 files"):
        run("predict", tmp_path / "text.jpg", "-", f"--weights={named}", "--json", "--top=9")
    error, made = map(json.loads, capsys.readouterr().out.splitlines())
    assert error == {"image": f"{tmp_path}/text.jpg", "error": "it is empty"}
    assert made["image"] == "-"
    assert sorted(best["name"] for best in made["top"]) == ["a", "b", "c", "d", "e"]
    assert all("abcde"[best["class"]] == best["name"] for best in made["top"])
    assert sum(best["probability"] for best in made["top"]) == pytest.approx(1)
    assert made["top"] == sorted(made["top"], key=lambda best: -best["probability"])


def test_on_a_terminal_each_class_has_a_bar_that_the_line_has_room_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "37")
    shown = commands._as_bars("cat.jpg", [(3, "a cat", 1.0), (1, "dog", 0.5), (2, "a bird of prey with a name", 0.001)])
    assert shown.splitlines() == [
        "cat.jpg",
        "  a cat              100.0% ████████",
        "  dog                 50.0% ████",
        "  a bird of prey wit   0.1%",
    ]
    monkeypatch.setenv("COLUMNS", "5")
    assert commands._as_bars("x", [(0, "cat", 1.0)]).splitlines() == ["x", "  ca 100.0% █"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=best"], "is only for --workdir"),
        (["--names=none.txt"], "--names=none.txt cannot be read"),
    ],
)
def test_wrong_flags_are_told(folder, file_of_weights, arguments, message):
    with pytest.raises(UsageError, match=message):
        run("predict", folder, f"--weights={file_of_weights}", *arguments)


# Runs


@flax.struct.dataclass
class State:
    step: np.ndarray
    params: dict


@pytest.fixture
def workdir(tmp_path):
    """A workdir as main.py leaves it, of ten classes."""
    config_lib.save(quickstart.get_config(), tmp_path / "config.json")
    statistics_of(32).save(tmp_path / "statistics.npz")
    params = jax.tree.map(jax.numpy.asarray, weights_of(with_classes(QUICKSTART, 10), 32).params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(State(jax.numpy.int32(3), params), error=1.0, notes={"num_classes": 10})
    return tmp_path


def test_a_run_predicts(workdir, folder, capsys):
    run("predict", folder / "val/class0/0.png", f"--workdir={workdir}", "--views=5", "--checkpoint=best", "--json")
    assert len(json.loads(capsys.readouterr().out)["top"]) == 5
    with pytest.raises(UsageError, match="--views is 10"):
        run("predict", folder, f"--workdir={workdir}", "--views=10")


@pytest.mark.parametrize("part", ["notes/metadata", "state/_METADATA"])
def test_a_checkpoint_that_was_not_copied_to_its_end_is_told(workdir, folder, part):
    path = workdir / "checkpoints" / "3" / part
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"checkpoint 3 in .* is damaged, or was not copied completely \("):
        run("predict", folder, f"--workdir={workdir}")


def test_a_workdir_without_a_checkpoint_is_told(workdir, folder):
    (workdir / "checkpoints" / "3").rename(workdir / "elsewhere")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        run("predict", folder, f"--workdir={workdir}")
