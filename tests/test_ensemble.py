"""Ensembles: averages and errors against NumPy, weights by hand, files and data that do not fit together."""

import argparse
import dataclasses
import json
import shutil

import flax
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import statistics_of

from alexnet_jax import AlexNet
from alexnet_jax import config as config_lib
from alexnet_jax.cli import ensemble as command
from alexnet_jax.data import sources
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import ensemble, saved
from alexnet_jax.evaluation.ensemble import Member, Predictions
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.network.architectures import with_classes
from alexnet_jax.network.networks import QUICKSTART
from alexnet_jax.training import loop
from alexnet_jax.training.checkpoint import Checkpoints
from configs import quickstart


def predictions_of(probabilities, labels, network="a", views=1, convolutions=5, **changes):
    probabilities = np.asarray(probabilities, np.float32)
    facts = {"split": "made up", "classes": tuple(map(str, range(probabilities.shape[1]))), **changes}
    member = Member(network=network, digest=network, convolutions=convolutions, examples=len(probabilities), **facts)
    return Predictions(member, views, probabilities, np.asarray(labels, np.int32))


def random_members(seed, members=3, examples=20, classes=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, examples)
    made = rng.dirichlet(np.ones(classes), (members, examples))
    return [predictions_of(p, labels, network=f"network {k}") for k, p in enumerate(made)]


def members_of(*rows_of_labels, labels):
    """Members by the probabilities that they give the labels of two classes."""
    rows = [np.stack([np.where(np.array(labels) == k, p, 1 - np.array(p)) for k in (0, 1)], 1) for p in rows_of_labels]
    return [predictions_of(row, labels, network=f"network {k}") for k, row in enumerate(rows)]


# Averages and errors


@given(st.integers(0, 2**32), st.integers(2, 7))
def test_averages_are_numpys(seed, count):
    members = random_members(seed, count)
    stacked = np.stack([member.probabilities for member in members]).astype(np.float64)
    np.testing.assert_allclose(ensemble.average(members), stacked.mean(0), rtol=1e-12)
    weights = np.random.default_rng(seed).dirichlet(np.ones(count))
    np.testing.assert_allclose(ensemble.average(members, weights), np.average(stacked, 0, weights), rtol=1e-12)


@given(st.integers(0, 2**32), st.integers(2, 9))
def test_errors_are_counted_as_in_an_order_of_all_classes(seed, classes):
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 4, (30, classes)) / 10  # many are equal
    labels = rng.integers(0, classes, 30)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    errors = ensemble.errors_of(probabilities, labels, 1)
    assert errors.top1_error == pytest.approx(100 * np.mean(order[:, 0] != labels))
    assert errors.top5_error == pytest.approx(100 * np.mean((order[:, :5] != labels[:, None]).all(1)))
    assert errors.loss == pytest.approx(
        -np.mean(np.log([row[k] for row, k in zip(probabilities, labels, strict=True)]))
    )
    assert (errors.examples, errors.views) == (30, 1)


def test_what_is_not_a_number_is_wrong_and_what_underflows_has_a_loss():
    errors = ensemble.errors_of(np.full((3, 7), np.nan), np.array([0, 3, 6]), 1)
    assert (errors.top1_error, errors.top5_error) == (100, 100)
    errors = ensemble.errors_of(np.array([[1.0, 0.0]], np.float32), np.array([1]), 1)
    assert errors.loss == pytest.approx(-np.log(np.finfo(np.float32).tiny))


def test_rows_by_hand():
    members = members_of([0.9, 0.9, 0.1, 0.4], [0.2, 0.9, 0.8, 0.3], labels=[0, 1, 0, 1])
    rows = ensemble.compare(members)
    # Averages of the labels' probabilities: 0.55, 0.9, 0.45, 0.35.
    top1 = {name: row.top1_error for name, row in rows.items()}
    assert top1 == {"1. network 0": 50, "2. network 1": 50, "mean of these": 50, "averaged, equal weights": 50}
    assert rows["averaged, equal weights"].loss == pytest.approx(-np.log([0.55, 0.9, 0.45, 0.35]).mean())
    assert {row.examples for row in rows.values()} == {4}
    # From 50.0% each to 25.0% where the errors fall on other examples.
    rows = ensemble.compare(members_of([0.9, 0.9, 0.4, 0.4], [0.2, 0.9, 0.8, 0.45], labels=[0, 1, 0, 1]))
    assert [row.top1_error for row in rows.values()] == [50, 50, 50, 25]


# Weights


def test_weights_are_those_of_the_greatest_likelihood():
    labels = [0, 0, 0]
    np.testing.assert_allclose(ensemble.search(members_of([0.9] * 3, [0.1] * 3, labels=labels)), [1, 0], atol=1e-9)
    np.testing.assert_allclose(
        ensemble.search(members_of([0.8, 0.2], [0.2, 0.8], labels=[0, 1])), [0.5, 0.5], atol=1e-6
    )
    # d/dw [2 log(0.2 + 0.6 w) + log(0.8 - 0.6 w)] = 0 at w = 7/9.
    members = members_of([0.8, 0.8, 0.2], [0.2, 0.2, 0.8], labels=[0, 1, 0])
    np.testing.assert_allclose(ensemble.search(members), [7 / 9, 2 / 9], atol=1e-6)


@given(st.integers(0, 2**32))
def test_no_other_weights_make_the_labels_more_probable(seed):
    members = random_members(seed)

    def likelihood(weights):
        return -ensemble.errors_of(ensemble.average(members, weights), members[0].labels, 1).loss

    found = ensemble.search(members)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    others = np.random.default_rng(seed).dirichlet(np.ones(3), 20)
    assert max(map(likelihood, [*others, *np.eye(3), np.full(3, 1 / 3)])) <= likelihood(found) + 1e-4


def test_weights_are_searched_on_examples_that_are_not_reported():
    # The first is right on the even examples alone, the second on the odd ones.
    members = members_of([0.99, 0.01] * 4, [0.01, 0.99] * 4, labels=[0, 1, 1, 0, 1, 0, 0, 1])
    rows = ensemble.compare(members, searched=True)
    assert {name: row.top1_error for name, row in rows.items()} == {
        "1. network 0": 100,
        "2. network 1": 0,
        "mean of these": 50,
        "averaged, equal weights": rows["averaged, equal weights"].top1_error,
        "averaged, weights 1.00 0.00": 100,
    }
    assert {row.examples for row in rows.values()} == {4}


# The paper's rows


def test_the_papers_rows_are_filled_by_the_networks_that_they_are_of():
    members = random_members(0, 8, classes=8)
    members = [
        dataclasses.replace(one, member=dataclasses.replace(one.member, convolutions=6 if k in (0, 4) else 5))
        for k, one in enumerate(members)
    ]
    plain, starred = [members[k] for k in (1, 2, 3, 5, 6)], [members[k] for k in (0, 4)]
    rows, labels = ensemble.paper_rows(members), members[0].labels

    def error(probabilities):
        return 100 * np.mean(np.argmax(probabilities, 1) != labels)

    def stacked(some):
        return np.stack([one.probabilities.astype(np.float64) for one in some])

    assert rows["1 CNN"].top1_error == pytest.approx(np.mean([error(p) for p in stacked([*plain, members[7]])]))
    assert rows["1 CNN*"].top1_error == pytest.approx(np.mean([error(p) for p in stacked(starred)]))
    assert rows["5 CNNs"].top1_error == error(stacked(plain).mean(0))
    assert rows["7 CNNs*"].top1_error == error(stacked([*plain, *starred]).mean(0))


def test_rows_that_were_not_run_are_empty():
    rows = ensemble.paper_rows(members_of([0.9, 0.1], [0.9, 0.8], labels=[0, 1]))
    assert [name for name, row in rows.items() if row] == ["1 CNN"]
    assert ensemble.paper_table(rows, "made up").splitlines() == [
        "          paper, ILSVRC-2012          made up",
        "               top-1   top-5    top-1   top-5",
        "1 CNN          40.7%   18.2%    25.0%    0.0%",
        "5 CNNs         38.1%   16.4%",
        "1 CNN*         39.0%   16.6%",
        "7 CNNs*        36.7%   15.4%",
    ]


# What does not fit together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "another"},
            "network 0 and network 1 differ in the split: the first has made up, the second has another",
        ),
        ({"examples": 19}, "differ in the number of examples: the first has 20, the second has 19"),
        ({"classes": ("0", "1")}, "differ in the number of classes: the first has 8, the second has 2"),
        ({"classes": tuple("abcdefgh")}, "differ in the classes: the first has 0, 1, 2, .*, the second has a, b, c"),
        ({"digest": "network 0"}, "are the same network"),
    ],
)
def test_networks_that_are_not_asked_the_same_are_refused(changes, message):
    first, second = (one.member for one in random_members(0, 2))
    ensemble.check([first, second])
    with pytest.raises(UsageError, match=message):
        ensemble.check([first, dataclasses.replace(second, **changes)])


def test_one_network_is_no_ensemble():
    with pytest.raises(UsageError, match="at least 2 networks, but 1 was given"):
        ensemble.check([random_members(0)[0].member])


def test_labels_that_differ_are_refused():
    first, second = random_members(0, 2)
    second.labels[3] += 1
    for function in (ensemble.compare, ensemble.paper_rows):
        with pytest.raises(UsageError, match="the labels of network 0 and of network 1 differ"):
            function([first, second])


# Files


def test_predictions_are_read_as_they_were_written(tmp_path):
    made = random_members(0)[1]
    ensemble.save(made, tmp_path / "1.npz")
    again = ensemble.load(tmp_path / "1.npz")
    assert (again.member, again.views) == (made.member, made.views)
    np.testing.assert_array_equal(again.probabilities, made.probabilities)
    np.testing.assert_array_equal(again.labels, made.labels)
    assert again.probabilities.dtype == np.float32


def test_files_that_hold_no_predictions_are_refused(tmp_path):
    path = tmp_path / "x.npz"

    def refused(message=""):
        with pytest.raises(UsageError, match=rf"x\.npz is not a complete file of predictions .*{message}"):
            ensemble.load(path)

    refused("No such file")
    path.write_text("This is a text.")
    refused()
    np.savez(path, a=1)
    refused("member")
    ensemble.save(random_members(0)[0], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused()
    one = random_members(0)[0]
    ensemble.save(dataclasses.replace(one, probabilities=one.probabilities[:5]), path)
    refused("shapes")


# The command


@flax.struct.dataclass
class State:
    step: np.ndarray
    params: dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images of five classes, and two of a sixth in another data set."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for k in range(32):
        path = root / ("five" if k < 30 else "other") / "val" / f"class{k % 5 if k < 30 else k}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def workdirs(folder, tmp_path_factory):
    """Three runs as main.py leaves them: two on the same data, one on another."""
    made = []
    for seed, (data, classes) in enumerate([("five", 5), ("five", 5), ("other", 2)]):
        workdir = tmp_path_factory.mktemp(f"run_{seed}_")
        config = quickstart.get_config()
        config.dataset = f"folder:{folder / data}"
        config_lib.save(config, workdir / "config.json")
        statistics_of(32).save(workdir / "statistics.npz")
        network = AlexNet(with_classes(QUICKSTART, classes))
        params = network.init(jax.random.key(seed), np.zeros((1, 28, 28, 3), np.float32))["params"]
        params = jax.tree.map(lambda p: 3 * p, params)  # so that the outputs are not nearly equal
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(State(jax.numpy.int32(3), params), error=1.0, notes={"num_classes": classes})
        made.append(workdir)
    return made


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    options = parser.parse_args(["ensemble", *map(str, arguments)])
    options.run(options)


def tables_of(shown):
    return shown[shown.index("\n\n") :]


def test_runs_are_evaluated_saved_and_used_again(workdirs, tmp_path, capsys):
    two = [f"--workdir={workdir}" for workdir in workdirs[:2]]
    run(*two, f"--save={tmp_path}", "--paper", "--json")
    shown = capsys.readouterr().out
    rows = json.loads(shown.splitlines()[-1])
    assert list(rows) == ["1", "5"]  # quickstart's classes have no mirror images
    for k, workdir in enumerate(workdirs[:2], 1):
        errors = saved.evaluate_weights(workdir, dataset=config_lib.load(workdir / "config.json").dataset)
        for views, name in (("1", "one_view"), ("5", "ten_views")):
            own = rows[views][f"{k}. step 3 of the run {workdir.name} (QUICKSTART)"]
            wanted = dataclasses.asdict(errors[name])
            assert own.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-5)
            assert own == wanted
            assert 0 < own["top1_error"] < 100
    capsys.readouterr()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    run(*[f"--predictions={path}" for path in files if path.name.startswith("run_0")], two[1], "--paper", "--json")
    assert tables_of(capsys.readouterr().out) == tables_of(shown)
    run(*[f"--predictions={path}" for path in files if path.name.endswith("-1.npz")], "--average=searched")
    shown = capsys.readouterr().out
    assert "averaged, weights " in shown
    assert "These are errors on 15 of the 30 images. The weights were searched on the others." in shown
    for arguments, message in (
        ([f"--predictions={files[0]}", two[0]], "are the same network"),
        ([f"--predictions={path}" for path in files[:3]], "but 1 was given"),
        ([f"--predictions={files[0]}", two[1], "--views=5"], "--views is 5, but --predictions have"),
    ):
        with pytest.raises(UsageError, match=message):
            run(*arguments)


def test_a_label_of_no_class_is_refused_by_the_name_of_its_image(folder, workdirs):
    trained = Trained.read(workdirs[0], batch_size=8)
    opened = sources.open_dataset(f"folder:{folder}/five", "", image_size=32, train_split=None, eval_split="val")
    labels = np.where(np.arange(30) == 21, -1, opened.evaluation.labels)
    source = dataclasses.replace(opened.evaluation, labels=labels)
    with pytest.raises(UsageError, match=f"{source.describe(21)} has the label -1; accepted are 0 to 4"):
        ensemble.predict(trained, source, None, 1)


def test_what_does_not_fit_is_told_before_anything_runs(workdirs, tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "predict", None)
    first, second, other = (f"--workdir={workdir}" for workdir in workdirs)
    with pytest.raises(
        UsageError, match=r"step 3 of the run run_0_.* differ in the split: the first has folder:.*five"
    ):
        run(first, other)
    with pytest.raises(UsageError, match="at least 2 networks, but 0 was given"):
        run()
    with pytest.raises(UsageError, match="are the same network"):
        run(first, first)
    with pytest.raises(UsageError, match="--views is 10"):
        run(first, second, "--views=10")
    with pytest.raises(UsageError, match=r"has no split 'none'.*Set --split=NAME"):
        run(first, second, "--split=none")
    with pytest.raises(UsageError, match="this folder does not exist"):
        run(first, second, f"--save={tmp_path}/none")
    with pytest.raises(UsageError, match="holds no run"):
        run(first, f"--workdir={tmp_path}")
    for names, wanted in (
        (
            "bee0 class1 class2 class3 class4",
            "trained on other classes than folder:.*five has now: class 0 was bee0, and is class0",
        ),
        (None, "was trained on 2 classes, but folder:.*five now has 5"),
    ):
        changed = shutil.copytree(workdirs[0 if names else 2], tmp_path / f"changed_{names}")
        (changed / "config.json").write_bytes((workdirs[0] / "config.json").read_bytes())
        if names:
            (changed / "classes.json").write_text(json.dumps(names.split()))
        with pytest.raises(UsageError, match=wanted):
            run(first, f"--workdir={changed}")
    (tmp_path / "config.json").write_bytes((workdirs[0] / "config.json").read_bytes())
    (tmp_path / "statistics.npz").write_bytes((workdirs[0] / "statistics.npz").read_bytes())
    with pytest.raises(UsageError, match="holds no checkpoint"):
        run(first, f"--workdir={tmp_path}")


@pytest.mark.slow
def test_three_seeds_together_beat_the_mean_of_each_alone(tmp_path, monkeypatch, capsys):
    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *arguments: devices(*arguments)[:1])
    for seed in range(3):
        config = quickstart.get_config()
        config.update(seed=seed, num_epochs=4)
        loop.train(config, tmp_path / str(seed))
    capsys.readouterr()
    shown = []
    for _ in range(2):
        run(*[f"--workdir={tmp_path / str(seed)}" for seed in range(3)], "--json")
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    for rows in json.loads(shown[0].splitlines()[-1]).values():
        assert rows["averaged, equal weights"]["top1_error"] < rows["mean of these"]["top1_error"]
        assert rows["averaged, equal weights"]["loss"] < rows["mean of these"]["loss"]
