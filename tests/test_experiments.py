"""Sets of runs: made once, resumed, shared; and the tables that come of them, checked by hand."""

import contextlib
import csv
import errno
import fcntl
import itertools
import json
import math
import signal
import types

import jax
import numpy as np
import pytest

from alexnet_jax import cli, config, experiments, hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import ensemble
from alexnet_jax.experiments import (
    ablations,
    baseline,
    cifar,
    ensembles,
    figure1,
    lrn_cifar,
    runs,
    seeds,
    specialisation,
    tables,
)
from alexnet_jax.experiments.runs import Setting
from alexnet_jax.network import networks
from alexnet_jax.training import loop
from configs import alexnet, cifar10, quickstart
from tests.test_loop import config_for, folder  # noqa: F401


def setting_for(path, config=None, **fields):
    base = quickstart.get_config() if config is None else config
    return Setting(**{"name": "test", "config": base, "seeds": 2, "folder": path, **fields})


# ml_collections reads config files so.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")


def rows_of(path):
    return list(csv.reader(path.read_text().splitlines()))


def errors(top1, top5=0.0):
    return {"top1_error": top1, "top5_error": top5}


# Sets of runs


@pytest.fixture
def trained(monkeypatch):
    """Lets loop.train only note its run and save its config; gives the runs, and what their outcomes will be."""
    made = types.SimpleNamespace(runs=[], outcomes={})

    def train(config_of_run, workdir, *, until):
        made.runs.append(workdir.name)
        workdir.mkdir(exist_ok=True)
        config.save(config_of_run, workdir / "config.json")
        outcome = made.outcomes.get(workdir.name, {"steps": 1})
        if isinstance(outcome, Exception):
            raise outcome
        return outcome() if callable(outcome) else dict(outcome)

    monkeypatch.setattr(loop, "train", train)
    return made


def plan_of(*names):
    return lambda setting, done: [setting.trial(name, seed=seed) for name in names for seed in range(setting.seeds)]


def test_each_run_is_made_once_and_told(trained, tmp_path):
    told = []

    def write(_, done):
        told.append(sorted(done))
        return "table"

    assert runs.carry_out(setting_for(tmp_path), plan_of("a", "b"), write) == "table"
    assert trained.runs == ["a-seed0", "a-seed1", "b-seed0", "b-seed1"]
    assert told == [trained.runs[:n] for n in (1, 2, 3, 4, 4)]
    assert runs.carry_out(setting_for(tmp_path), plan_of("a", "b"), write) == "table"
    assert len(trained.runs) == 4
    assert [config.load(tmp_path / name / "config.json").seed for name in trained.runs] == [0, 1, 0, 1]
    assert json.loads((tmp_path / runs.OUTCOMES).read_text()) == {name: {"steps": 1} for name in trained.runs}


def test_an_experiment_that_is_stopped_goes_on_where_it_was(trained, tmp_path):
    def stopped():  # as loop.train, when SIGTERM comes on the way
        signal.raise_signal(signal.SIGTERM)
        return {}

    trained.outcomes["a-seed1"] = stopped
    assert runs.carry_out(setting_for(tmp_path), plan_of("a", "b"), lambda *_: "table") is None
    assert not (tmp_path / "a-seed1" / runs.OUTCOME).exists()
    trained.outcomes.clear()
    assert runs.carry_out(setting_for(tmp_path), plan_of("a", "b"), lambda *_: "table") == "table"
    assert trained.runs == ["a-seed0", "a-seed1", "a-seed1", "b-seed0", "b-seed1"]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_run_took_too_late_stops_the_experiment_behind_it(by, trained, tmp_path):
    def late():
        with hosts.Sigterm():
            signal.raise_signal(by)
        return {"steps": 1}

    trained.outcomes["a-seed0"] = late
    stop = contextlib.nullcontext() if by == signal.SIGTERM else pytest.raises(KeyboardInterrupt)
    with stop:
        assert runs.carry_out(setting_for(tmp_path), plan_of("a"), lambda *_: "table") is None
    assert trained.runs == ["a-seed0"]
    assert runs.outcomes(tmp_path).keys() == {"a-seed0"}


def test_a_second_ctrl_c_ends_at_once_and_an_ignored_one_stays_ignored():
    with hosts.Sigterm() as sigterm:
        signal.raise_signal(signal.SIGINT)
        assert sigterm.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hosts.Sigterm() as sigterm:
            signal.raise_signal(signal.SIGINT)
            assert not sigterm.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_diverges_is_an_outcome_and_not_the_end(trained, tmp_path, capsys):
    trained.outcomes["a-seed0"] = FloatingPointError("loss is not finite at step 7. Start again.")
    done = runs.carry_out(setting_for(tmp_path), plan_of("a"), lambda _, done: done)
    assert done["a-seed0"] == {"diverged": "loss is not finite at step 7"}
    assert trained.runs == ["a-seed0", "a-seed1"]
    assert f"recorded as diverged. To run it again, delete {tmp_path / 'a-seed0'}." in capsys.readouterr().out
    assert runs.results(done, ["a-seed0", "a-seed1", "a-seed2"]) == ([{"steps": 1}], "1, 1 diverged")


def test_a_plan_may_grow_with_what_has_ended(trained, tmp_path):
    def plan(setting, done):
        return [setting.trial(f"r{n}", seed=0) for n in range(min(3, len(done) + 1))]

    runs.carry_out(setting_for(tmp_path), plan, lambda *_: "table")
    assert trained.runs == ["r0-seed0", "r1-seed0", "r2-seed0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "with --config.learning_rate=0.01, but this one has --config.learning_rate=0.5"),
        ({"num_epochs": 3}, "with --config.num_epochs=7, but this one has --config.num_epochs=3"),
    ],
)
def test_an_experiment_of_another_config_is_refused(changes, message, trained, tmp_path):
    runs.carry_out(setting_for(tmp_path), plan_of("a"), lambda *_: "table")
    other = quickstart.get_config()
    other.update(changes)
    with pytest.raises(UsageError, match=message):
        runs.carry_out(setting_for(tmp_path, other), plan_of("a"), lambda *_: "table")
    with pytest.raises(UsageError, match="with experiment=test, but this one has experiment=other"):
        runs.carry_out(setting_for(tmp_path, name="other"), plan_of("a"), lambda *_: "table")
    other = quickstart.get_config()
    other.data_dir = str(tmp_path)  # data may move
    runs.carry_out(setting_for(tmp_path, other, seeds=3), plan_of("a"), lambda *_: "table")
    assert trained.runs == ["a-seed0", "a-seed1", "a-seed2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"architecture": "QUICKSTART_VGG"}, "architecture"), ({"dataset": "folder:/none"}, "/none")],
)
def test_all_runs_are_checked_before_the_first(changes, message, trained, tmp_path):
    def plan(setting, done):
        return [setting.trial("a", seed=0), setting.trial("b", changes, seed=0)]

    with pytest.raises(UsageError, match=message):
        runs.carry_out(setting_for(tmp_path), plan, lambda *_: "table")
    assert trained.runs == []


def test_a_run_that_another_process_is_at_is_left_to_it_and_waited_for(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "a-seed0").mkdir()
    other = (tmp_path / "a-seed0" / ".claim").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    slept = []

    def sleep(_):  # meanwhile the other ends its run
        slept.append(list(trained.runs))
        (tmp_path / "a-seed0" / runs.OUTCOME).write_text("{}")
        other.close()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    assert runs.carry_out(setting_for(tmp_path), plan_of("a"), lambda *_: "table") == "table"
    assert trained.runs == ["a-seed1"]
    assert slept == [["a-seed1"]]
    assert "Other processes work on the remaining runs" in capsys.readouterr().out


def test_a_trial_differs_from_the_config_in_what_it_names(tmp_path):
    base = quickstart.get_config()
    base.seed = 5
    trial = setting_for(tmp_path, base).trial("a", {"augment.flip": True}, seed=2)
    changed = {n: v for n, v in config.flatten(trial.config).items() if v != config.flatten(base)[n]}
    assert changed == {"augment.flip": True, "seed": 7}
    assert trial.name == "a-seed2"
    assert base.augment.flip is False


# Tables


def test_means_and_standard_errors():
    mean = tables.Mean.of([1.0, 2.0, 3.0])
    assert (mean.mean, mean.error) == (2, pytest.approx(1 / math.sqrt(3)))
    assert str(mean) == "2.00 ± 0.58"
    assert str(tables.Mean.of([1.5, 1.5], "+.1f")) == "+1.5 ± 0.0"
    assert math.isnan(tables.Mean.of([1.5]).error)
    assert str(tables.Mean.of([1.5])) == "1.50"


def test_a_table_is_text_and_csv(tmp_path):
    rows = [["a", tables.Mean(1.0, 0.25), "x"], ["long name", "", ""], ["b", tables.Mean(2.0), ""]]
    text = tables.write(tmp_path / "t", ["name", "n", "remark"], rows, "below\n")
    assert text == (tmp_path / "t.txt").read_text()
    assert text.splitlines() == [
        "name                 n  remark",
        "a          1.00 ± 0.25  x",
        "long name",
        "b                 2.00",
        "",
        "below",
    ]
    assert rows_of(tmp_path / "t.csv") == [
        ["name", "n", "n, s.e.", "remark"],
        ["a", "1.0", "0.25", "x"],
        ["long name", "", "", ""],
        ["b", "2.0", "", ""],
    ]


# Figure 1


def lines_of(errors_by_epoch):
    """metrics.jsonl of epochs of 40 steps, each with two lines whose mean is its error."""
    lines = []
    for n, error in enumerate(errors_by_epoch):
        lines += [{"step": 40 * n + 20, "train_error": error + 3}, {"step": 40 * n + 40, "train_error": error - 3}]
        lines.append({"step": 40 * n + 40, "eval_top1_error": 50})
    return "".join(json.dumps(line) + "\n" for line in lines)


def ended(path, name, errors_by_epoch):
    """Notes a run as one that has ended."""
    (path / name).mkdir(parents=True, exist_ok=True)
    (path / name / "metrics.jsonl").write_text(lines_of(errors_by_epoch))
    epochs = len(errors_by_epoch)
    (path / name / runs.OUTCOME).write_text(json.dumps({"steps": 40 * epochs, "epochs": epochs}))


def test_the_step_of_the_goal_lies_between_the_middles_of_two_epochs(tmp_path):
    for errors_by_epoch, step in (
        ([80, 30, 20], 80),
        ([80, 25], 60),
        ([25], 20),
        ([80, 25.5], math.inf),
        ([], math.inf),
    ):
        (tmp_path / "metrics.jsonl").write_text(lines_of(errors_by_epoch))
        assert figure1.steps_to_goal(tmp_path) == pytest.approx(step)


def test_figure_1_searches_rates_until_the_quickest_is_between_two_that_are_slower(tmp_path):
    def search():
        return figure1.search("tanh", tmp_path, runs.outcomes(tmp_path))

    assert search() == ([0.004, 0.008], None)
    ended(tmp_path, "tanh-rate0.004-seed0", [80, 60, 40, 25])
    assert search() == ([0.004, 0.008], None)
    ended(tmp_path, "tanh-rate0.008-seed0", [80, 50, 24])
    assert search() == ([0.004, 0.008, 0.016], None)
    ended(tmp_path, "tanh-rate0.016-seed0", [90, 90, 90])  # never there
    assert search() == ([0.004, 0.008, 0.016], 0.008)
    ended(tmp_path, "relu-rate0.004-seed0", [80, 60, 40, 25])
    ended(tmp_path, "relu-rate0.008-seed0", [80, 60, 50])
    assert figure1.search("relu", tmp_path, runs.outcomes(tmp_path)) == ([0.004, 0.008, 0.002], None)


def test_figure_1_looks_at_six_rates_before_it_gives_up(tmp_path):
    rates = [0.004, 0.008, 0.002, 0.001, 0.0005, 0.00025]
    for k, rate in enumerate(rates):
        assert figure1.search("relu", tmp_path, runs.outcomes(tmp_path)) == (rates[: max(2, k + 1)], None)
        ended(tmp_path, f"relu-rate{rate:g}-seed0", [80, 70])
    assert figure1.search("relu", tmp_path, runs.outcomes(tmp_path)) == (rates, None)
    text = figure1.write(setting_for(tmp_path, cifar10.get_config()), runs.outcomes(tmp_path))
    assert "relu: the fastest learning rate is not known yet\n" in text
    assert "times as many" not in text


def test_figure_1_says_which_seeds_did_not_get_there(tmp_path):
    for network in ("relu", "tanh"):
        for rate, epochs in (("0.004", 2), ("0.008", 4), ("0.002", 4)):
            ended(tmp_path, f"{network}-rate{rate}-seed0", [80] * (epochs - 1) + [25])
        ended(tmp_path, f"{network}-rate0.004-seed1", [80, 70] if network == "tanh" else [80, 25])
    text = figure1.write(setting_for(tmp_path, cifar10.get_config()), runs.outcomes(tmp_path))
    assert "relu: 1.5 ± 0.0 epochs\ntanh: 1.5 epochs; 1 of 2 seeds did not reach it\n" in text
    assert "times as many" not in text


def test_figure_1_has_no_ratio_where_relu_did_not_get_there(tmp_path):
    for network in ("relu", "tanh"):
        for rate, epochs in (("0.004", 2), ("0.008", 4), ("0.002", 4)):
            ended(tmp_path, f"{network}-rate{rate}-seed0", [80] * (epochs - 1) + [25])
        ended(tmp_path, f"{network}-rate0.004-seed1", [80, 70] if network == "relu" else [80, 25])
    text = figure1.write(setting_for(tmp_path, cifar10.get_config()), runs.outcomes(tmp_path))
    assert "relu: 1.5 epochs; 1 of 2 seeds did not reach it" in text
    assert "times as many" not in text


def test_figure_1_needs_lines_in_each_epoch(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 12, "eval_top1_error": 50}\n')
    with pytest.raises(UsageError, match="has no training error in an epoch of 12 steps"):
        figure1.errors_of_epochs(tmp_path)


def test_a_run_of_figure_1_ends_at_the_goal_or_when_another_rate_was_there_sooner(tmp_path):
    setting = setting_for(tmp_path, cifar10.get_config())

    def trial(name):
        return next(t for t in figure1.plan(setting, runs.outcomes(tmp_path)) if t.name == name)

    slow = trial("relu-rate0.008-seed0")
    (tmp_path / slow.name).mkdir()
    for errors_so_far, over in (([80, 70], False), ([80, 70, 25], True), ([80, 60, 50], False)):
        (tmp_path / slow.name / "metrics.jsonl").write_text(lines_of(errors_so_far))
        assert slow.until() is over
    ended(tmp_path, "tanh-rate0.004-seed0", [25])  # another network
    ended(tmp_path, "relu-rate0.004-seed0", [50, 40, 30, 25])
    assert slow.until() is False  # it is at step 100 of 140
    ended(tmp_path, "relu-rate0.002-seed0", [50, 40, 25])
    assert slow.until() is True


def test_figure_1s_table_has_the_ratio_of_epochs(tmp_path):
    setting = setting_for(tmp_path, cifar10.get_config())
    for network, times in (("relu", 1), ("tanh", 3)):
        for rate, epochs in (("0.004", 2), ("0.008", 4), ("0.002", 4)):
            ended(tmp_path, f"{network}-rate{rate}-seed0", [80] * (epochs * times - 1) + [25])
    ended(tmp_path, "relu-rate0.004-seed1", [80, 80, 80, 25])
    done = runs.outcomes(tmp_path)
    assert [t.name for t in figure1.plan(setting, done)][-1] == "tanh-rate0.004-seed1"
    ended(tmp_path, "tanh-rate0.004-seed1", [80] * 6 + [25])
    text = figure1.write(setting, runs.outcomes(tmp_path))
    # ReLU: 1.5 and 3.5 epochs; tanh: 5.5 and 6.5.
    assert "relu: 2.5 ± 1.0 epochs\ntanh: 6.0 ± 0.5 epochs\n" in text
    assert (
        "tanh takes 2.4 times as many epochs as ReLU (1.9 to 3.7 times for single seeds). In the paper: 6 times."
        in text
    )
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["remark"] for row in rows] == ["quickest rate", "", "", "quickest rate"] * 2
    assert rows[1]["epochs to 25% training error"] == "3.5"
    points = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert points[0] == {
        "network": "relu",
        "learning_rate": "0.004",
        "seed": "0",
        "epoch": "0.500",
        "train_error": "83.000",
    }
    assert (tmp_path / "figure1.png").stat().st_size > 10_000


# Ablations


def test_each_ablation_changes_what_it_says_and_nothing_else(tmp_path):
    base = alexnet.get_config()
    trials = {trial.name: trial.config for trial in ablations.plan(setting_for(tmp_path, base, seeds=1), {})}
    # The paper's own config has decoupled decay, so that this row would be the whole.
    assert trials.keys() == {f"{name}-seed0" for name in ablations.ROWS if name != "decoupled"}
    flat = config.flatten(base)
    for name, changed in trials.items():
        row = ablations.ROWS[name.removesuffix("-seed0")]
        different = {field: value for field, value in config.flatten(changed).items() if value != flat[field]}
        expected = {"architecture": f"PAPER_{row.change}"} if row.change else {}
        assert different == {**expected, **{name: value for name, value in row.fields if flat[name] != value}}
        config.check(changed)


def test_rows_that_change_nothing_are_left_out():
    base = cifar10.get_config()  # no norm, dropout, towers, augmentation or decay
    rows = {name for name in ablations.ROWS if ablations.applies(name, base)}
    assert rows == {"whole", "tanh", "no_overlap", "no_conv2", "no_conv3", "std_half", "std_double"}
    base = quickstart.get_config()  # no flips
    assert ablations.applies("no_crops", base)
    assert not ablations.applies("no_crops_flips", base)
    assert ablations.applies("paper_rule", base)
    assert not ablations.applies("decoupled", base)
    base.update_rule = "lars"
    assert not ablations.applies("paper_rule", base)
    base = cifar10.get_config("18pct")  # a decay for each layer, and none for all
    [trial] = [t for t in ablations.plan(setting_for(None, base, seeds=1), {}) if t.name == "no_decay-seed0"]
    assert trial.config.weight_decays == ()


@pytest.mark.parametrize("variant", alexnet.VARIANTS)
def test_no_two_rows_are_the_same_run(variant, tmp_path):
    trials = ablations.plan(setting_for(tmp_path, alexnet.get_config(variant), seeds=1), {})
    if variant == "six_conv_finetune":  # its schedule names fc9, which is another layer where one is left out
        with pytest.raises(UsageError, match=r"config\.schedule names the layer 'fc9'"):
            ablations.run(setting_for(tmp_path, alexnet.get_config(variant), seeds=1))
        return
    made = []
    for trial in trials:
        config.check(trial.config)
        made.append((networks.named(trial.config.architecture), {**config.flatten(trial.config), "architecture": ""}))
    assert not [(a, b) for a, b in itertools.combinations(range(len(made)), 2) if made[a] == made[b]]


def test_the_ablations_table_by_hand(tmp_path):
    setting = setting_for(tmp_path)
    done = {
        "whole-seed0": {"one_view": errors(12, 3), "ten_views": errors(10, 2)},
        "whole-seed1": {"one_view": errors(12, 3), "ten_views": errors(11, 2)},
        "no_lrn-seed0": {"ten_views": errors(13, 4)},
        "no_lrn-seed1": {"ten_views": errors(14, 4)},
        "no_conv3-seed0": {"ten_views": errors(9, 1)},
        "no_conv3-seed1": {"ten_views": errors(9.5, 1)},
        "no_conv4-seed0": {"diverged": "at step 3"},
        "no_conv5-seed0": {"ten_views": errors(20, 1)},
        "no_dropout-seed0": {"ten_views": errors(4, 1)},
        "no_dropout-seed1": {"ten_views": errors(3.5, 1)},
        "no_cross-seed0": {"ten_views": errors(4, 1)},
        "no_cross-seed1": {"ten_views": errors(3.5, 1)},
    }
    text = ablations.write(setting, done)
    rows = {row["left out"]: row for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}

    def of(row, *names):
        return [rows[row][name] for name in names]

    numbers = ("top-1", "top-1, s.e.", "costs top-1", "costs top-1, s.e.", "costs top-5", "costs top-5, s.e.")
    assert of("nothing", "seeds", *numbers) == ["2", "10.5", "0.5", "", "", "", ""]
    # sqrt(0.5^2 + 0.5^2) = 0.707107
    assert of("normalization", "paper: costs", *numbers) == [
        "1.4 / 1.2",
        "13.5",
        "0.5",
        "3.0",
        "0.707107",
        "2.0",
        "0.0",
    ]
    assert "+3.00 ± 0.71" in text
    assert of("conv3", "costs top-1", "beside the paper") == ["-1.25", "not distinguished from 0"]  # two seeds are few
    # 7 lower, s.e. sqrt(0.25^2 + 0.5^2) = 0.56; of the sight of both towers the paper says nothing.
    assert of("dropout", "paper: costs", "beside the paper") == ["above 0", "contradicts"]
    assert of("conv3's sight of both towers", "paper: costs", "beside the paper") == ["", ""]
    assert of("conv4", "seeds", "top-1") == ["0, 1 diverged", ""]
    assert of("conv5", "seeds", "costs top-1", "costs top-1, s.e.", "beside the paper") == ["1", "9.5", "", ""]
    # Of the same runs: 2 and 1, where 12 and 12 beside 10 and 11 would have the standard error 0.5 as well.
    assert of("all views but the central", "top-1", "costs top-1", "costs top-1, s.e.") == ["12.0", "1.5", "0.5"]
    assert (tmp_path / "table.png").exists()


def test_the_ablations_table_has_no_row_that_was_not_asked_for(tmp_path):
    done = {"whole-seed0": {"one_view": errors(12), "ten_views": errors(10)}, "no_fc6-seed0": {"ten_views": errors(9)}}
    ablations.write(setting_for(tmp_path, only=("whole", "no_lrn")), done)
    names = [row[0] for row in rows_of(tmp_path / "table.csv")[1:]]
    assert names == ["nothing", "normalization", "fc6", "all views but the central"]


def test_costs_of_views_are_differences_within_runs(tmp_path):
    done = {
        f"whole-seed{n}": {"one_view": errors(11 + n, 3), "ten_views": errors(10 + n + 0.1 * n, 2)} for n in range(3)
    }
    ablations.write(setting_for(tmp_path, seeds=3), done)
    row = rows_of(tmp_path / "table.csv")[-1]
    assert row[5:7] == ["0.9", "0.057735"]  # of 1.0, 0.9 and 0.8
    assert float(row[7]) < 0.9
    assert row[-1] == "agrees"


@pytest.mark.parametrize(
    ("without", "whole", "paired", "says"),
    [
        ([13.0, 14.0, 13.5], [10.0, 11.0, 10.2], False, "agrees"),
        ([10.0, 11.0, 10.2], [13.0, 14.0, 13.5], False, "contradicts"),
        ([10.0, 12.0, 14.0], [10.5, 12.5, 13.0], False, "not distinguished from 0"),
        ([11.0, 13.0, 15.1], [10.0, 12.0, 14.0], False, "not distinguished from 0"),
        ([11.0, 13.0, 15.1], [10.0, 12.0, 14.0], True, "agrees"),
        ([11.0, 11.0], [10.0, 10.0], False, "agrees"),
        ([11.0], [10.0], False, ""),
    ],
)
def test_a_cost_beside_the_papers(without, whole, paired, says):
    assert ablations.verdict(np.array(without), np.array(whole), paired) == says


@pytest.mark.parametrize(("seeds", "paired"), [(3, False), (5, False), (3, True)])
def test_four_of_five_experiments_see_the_smallest_visible_cost(seeds, paired):
    spread = np.linspace(-1, 1, seeds) / np.linspace(-1, 1, seeds).std(ddof=1)
    visible = ablations.visible_from(spread, 0 * spread if paired else spread, paired)
    draw = np.random.default_rng(0)
    groups = zip(draw.normal(visible, 1, (400, seeds)), draw.normal(0, 0 if paired else 1, (400, seeds)), strict=True)
    seen = [ablations.verdict(*group, paired) == "agrees" for group in groups]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.06)  # three standard errors of 400 experiments


def test_the_smallest_visible_cost_of_few_or_equal_seeds():
    assert math.isnan(ablations.visible_from(np.array([11.0]), np.array([10.0, 11.0])))
    assert ablations.visible_from(np.array([11.0, 11.0]), np.array([10.0, 10.0])) == 0
    # One degree of freedom: the limit of t is 12.706, and |normal| < 1.2816 in 80% of cases; the standard error is 0.5.
    visible = ablations.visible_from(np.array([11.0, 12.0]), np.array([10.0, 10.0]), paired=True)
    assert visible == pytest.approx(0.5 * 12.706 * 1.2816, rel=0.01)


# Ensembles


def test_six_convolutions_are_pretrained_first_and_then_fine_tuned(tmp_path):
    setting = setting_for(tmp_path, seeds=5, pretrain="folder:/many")
    plain = [f"cnn-seed{n}" for n in range(5)]
    assert [t.name for t in ensembles.plan(setting_for(tmp_path, seeds=5), {})] == plain
    assert [t.name for t in ensembles.plan(setting, {})] == [*plain, "pretrain-seed0", "pretrain-seed1"]
    some = ensembles.plan(setting, {"pretrain-seed0": {"diverged": "at step 3"}, "pretrain-seed1": {}})
    assert [t.name for t in some][7:] == ["finetune-seed1"]
    last = some[-1]
    assert (last.name, last.config.seed, last.config.architecture) == ("finetune-seed1", 1, "QUICKSTART_SIX_CONV")
    assert last.config.pretrained == str(tmp_path / "pretrain-seed1")
    assert last.config.learning_rate == pytest.approx(0.001)
    assert last.config.dataset == "digits"
    first = ensembles.plan(setting, {})[5]
    assert (first.config.dataset, first.config.architecture) == ("folder:/many", "QUICKSTART_SIX_CONV")


def test_ensembles_are_of_the_papers_number(tmp_path):
    with pytest.raises(UsageError, match=r"--seeds is 3; accepted is 5"):
        ensembles.run(setting_for(tmp_path, seeds=3))
    with pytest.raises(UsageError, match=r"with 3 convolutions; accepted is a network with five"):
        ensembles.run(setting_for(tmp_path, cifar10.get_config(), seeds=5, pretrain="many"))


def test_the_table_of_ensembles_averages_probabilities(tmp_path, monkeypatch):
    draw, labels = np.random.default_rng(0), np.arange(40) % 4
    members = {}
    for n, name in enumerate([*(f"cnn-seed{n}" for n in range(5)), "finetune-seed0", "finetune-seed1"]):
        member = ensemble.Member(name, f"digest{n}", 5 + (n >= 5), "test", 40, ("a", "b", "c", "d"))
        members[name] = ensemble.Predictions(member, 10, draw.dirichlet(np.ones(4), 40).astype(np.float32), labels)
    monkeypatch.setattr(ensembles, "_predictions", lambda workdir, data, views: members[workdir.name])
    setting = setting_for(tmp_path, seeds=5, pretrain="many")
    done = {name: {} for name in [*members, "pretrain-seed0", "pretrain-seed1"]}
    assert "finetune-seed1" in ensembles.write(setting, {**done, "finetune-seed1": {"diverged": "at step 3"}})
    assert not rows_of(tmp_path / "table.csv")[-1][-1]  # no seven
    ensembles.write(setting, done)
    rows = {row[0]: row[1:] for row in rows_of(tmp_path / "table.csv")}
    probabilities = [one.probabilities.astype(np.float64) for one in members.values()]
    wrong = [100 * np.mean(p.argmax(1) != labels) for p in probabilities]
    assert rows["1 CNN"][:3] == ["40.7", "18.2", f"{np.mean(wrong[:5]):.2f}"]
    assert rows["1 CNN*"][2] == f"{np.mean(wrong[5:]):.2f}"
    assert rows["5 CNNs"][2] == f"{100 * np.mean(sum(probabilities[:5]).argmax(1) != labels):.2f}"
    assert rows["7 CNNs*"][2] == f"{100 * np.mean(sum(probabilities).argmax(1) != labels):.2f}"


# Seeds, and the command


def test_with_and_without_normalization_stand_beside_the_papers_numbers(tmp_path):
    base, pair = cifar10.get_config("conv_local_13pct"), lrn_cifar.NETWORKS
    done = {f"{name}-seed{n}": {"one_view": errors(10 + n, 1)} for name in pair for n in (0, 1)}
    trials = seeds.plan(setting_for(tmp_path, base), {}, networks=pair)
    assert done.keys() == {trial.name for trial in trials}
    for trial in trials:  # the weight decays of the one fit the layers of the other
        config.check(trial.config)
    seeds.write(setting_for(tmp_path, base), done, networks=pair)
    rows = {row[0]: row[1:] for row in rows_of(tmp_path / "table.csv")}
    assert rows["CONV_LOCAL_11PCT_FIRST"] == ["one view", "11.0", "2", "10.5", "0.5", "1.0", "0.0", "10.00 11.00"]
    assert rows["CONV_LOCAL_13PCT"][1] == "13.0"
    seeds.write(setting_for(tmp_path, base), {"CONV_LOCAL_13PCT-seed0": {"diverged": ""}}, networks=pair)
    assert rows_of(tmp_path / "table.csv")[1][3] == "0, 1 diverged"


def test_each_network_of_cuda_convnet_has_its_recipe_and_its_published_error(tmp_path):
    setting = setting_for(tmp_path, cifar10.get_config("80sec"))
    trials = {trial.name: trial.config for trial in cifar.plan(setting, {})}
    assert len(trials) == 12
    for name, given in trials.items():
        variant, _, seed = name.partition("-seed")
        wanted = cifar10.get_config(variant)
        wanted.update(seed=int(seed))
        assert given == wanted, name
    done = {f"18pct-seed{n}": {"one_view": errors(18 + n)} for n in (0, 1)}
    done["conv_local_13pct-seed0"] = {"one_view": errors(14), "ten_views": errors(13.5)}
    cifar.write(setting, done)
    rows = {row[0]: row[1:] for row in rows_of(tmp_path / "table.csv")}
    assert rows["18pct"] == ["one view", "18.0", "2", "18.5", "0.5", "18.00 19.00"]
    assert rows["conv_local_13pct"] == ["ten views", "13.0", "1", "13.5", "", "13.50"]
    assert rows["80sec"][2] == "0"


def test_a_field_that_each_recipe_sets_is_refused(tmp_path, monkeypatch):
    base = cifar10.get_config("80sec")
    base.num_epochs = 3
    with pytest.raises(UsageError, match=r"config\.num_epochs is 3, but each network of this experiment has its own"):
        cifar.run(setting_for(tmp_path, base))
    monkeypatch.setattr(config, "CHECKOUT", tmp_path)
    with pytest.raises(UsageError, match=r"configs/cifar10.py, which has the recipes, is not part of an installed"):
        cifar.run(setting_for(tmp_path, cifar10.get_config("80sec")))


def one_device(monkeypatch):
    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *arguments: devices(*arguments)[:1])


def test_the_command_makes_runs_and_their_table(folder, tmp_path, monkeypatch, capsys):  # noqa: F811
    one_device(monkeypatch)
    few = [f"--config.dataset=folder:{folder}", "--config.num_steps=2", "--config.batch_size=16", "--seeds=2"]
    command = ["experiment", "specialisation", f"--workdir={tmp_path}", "--config=configs/quickstart.py", *few]
    cli.main(command)
    assert f"Wrote: {tmp_path}" in capsys.readouterr().out
    rows = rows_of(tmp_path / "table.csv")[1:]
    assert [row[0] for row in rows] == ["QUICKSTART-seed0", "QUICKSTART-seed1"]
    for name, shares, by_chance, _, score in rows:
        first, second = map(float, shares.split())
        assert float(score) == pytest.approx(abs(first - second), abs=2e-3)
        assert 0.01 < float(by_chance) < 0.04  # kernels of 5 x 5, 16 a tower
        assert (tmp_path / name / "kernels.png").exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda *_, **__: pytest.fail("it had ended"))
        cli.main(command)
    with pytest.raises(SystemExit, match=r"--config.num_steps=2, but this one has --config.num_steps=3"):
        cli.main([*command[:-3], "--config.num_steps=3", *command[-2:]])


@pytest.mark.parametrize("name", experiments.ALL)
def test_each_experiment_has_a_config_that_is_accepted(name, tmp_path, monkeypatch):
    import importlib

    module, asked = importlib.import_module(f"alexnet_jax.experiments.{experiments.ALL[name][0]}"), []
    monkeypatch.setattr(module, "run", lambda setting: asked.append(setting) or "table")
    pretrain = ["--pretrain=digits"] if name == "six_conv" else []
    cli.main(["experiment", name, f"--workdir={tmp_path}", *pretrain, "--config.num_epochs=7"])
    assert asked[0].config.num_epochs == 7
    assert asked[0].seeds == module.SEEDS
    config.check(asked[0].config)


def test_a_tuple_given_replaces_the_experiments_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(lrn_cifar, "run", lambda setting: asked.append(setting.config.schedule) or "table")
    for given in ([], ["--config.schedule=((1,'*',0.5),)"], ["-config.schedule=((1,'*',0.5),)"]):
        cli.main(["experiment", "lrn_cifar", f"--workdir={tmp_path}", *given])
    assert [len(schedule) for schedule in asked] == [2, 1, 1]


def test_without_a_checkout_the_command_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CHECKOUT", tmp_path)
    with pytest.raises(SystemExit, match=r"configs/cifar10.py is not part of an installed package. Give --config=FILE"):
        cli.main(["experiment", "figure1", f"--workdir={tmp_path}"])


def test_only_some_runs_are_made(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runs, "make", lambda trial, _: made.append(trial.name))
    monkeypatch.setattr(runs, "_check", lambda setting, trials: made.append(sorted(trial.name for trial in trials)))
    monkeypatch.setattr(runs, "outcomes", lambda _: {name: {} for name in made[1:]})
    setting = setting_for(tmp_path, only=("no_lrn", "whole"))
    runs.carry_out(setting, ablations.plan, lambda setting, done: "table")
    expected = ["whole-seed0", "no_lrn-seed0", "whole-seed1", "no_lrn-seed1"]
    assert made == [sorted(expected), *expected]


def test_only_may_name_runs_that_are_known_later(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runs, "make", lambda trial, _: made.append(trial.name))
    monkeypatch.setattr(runs, "_check", lambda setting, trials: None)
    monkeypatch.setattr(runs, "outcomes", lambda _: {name: {} for name in made})
    setting = setting_for(tmp_path, pretrain="digits", only=("pretrain", "finetune"))
    runs.carry_out(setting, ensembles.plan, lambda setting, done: "table", later={"finetune": "pretrain"})
    assert made == ["pretrain-seed0", "pretrain-seed1", "finetune-seed0", "finetune-seed1"]
    made.clear()
    setting = setting_for(tmp_path, pretrain="digits", only=("cnn", "finetune"))
    with pytest.raises(UsageError, match="--only names finetune, but this experiment has the runs cnn, pretrain"):
        runs.carry_out(setting, ensembles.plan, lambda setting, done: "table", later={"finetune": "pretrain"})


def test_where_nothing_can_be_locked_an_experiment_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with runs.alone(tmp_path / "run") as mine:
        assert mine
    assert "cannot be locked (No locks available). Start no second process there." in capsys.readouterr().out


def test_only_names_runs_and_baseline_has_none(tmp_path):
    with pytest.raises(UsageError, match=r"--only names norm, but this experiment has the runs bias_0, .*whole"):
        ablations.run(setting_for(tmp_path, only=("norm", "whole")))
    with pytest.raises(SystemExit, match="--only chooses runs, but baseline has none"):
        cli.main(["experiment", "baseline", "--only=whole", f"--workdir={tmp_path}"])


@pytest.mark.parametrize("arguments", [["six_conv"], ["six_conv", "--pretrain="], ["ablations", "--pretrain=digits"]])
def test_pretrain_goes_with_six_conv_alone(arguments, tmp_path):
    with pytest.raises(SystemExit, match="six_conv needs --pretrain=DATASET"):
        cli.main(["experiment", *arguments, f"--workdir={tmp_path}"])


# The system that the paper beat


@pytest.fixture
def stripes(tmp_path):
    """Two classes: lines from left to right, and from top to bottom."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 10)):
        for n in range(count):
            wave = 127 + 100 * np.sin(2 * np.pi * (np.arange(32) / draw.uniform(6, 9) + draw.uniform()))
            lines = np.tile(wave, (32, 1)) + draw.normal(0, 8, (32, 32))
            pixels = np.clip(lines.T if n % 2 else lines, 0, 255).astype(np.uint8)
            path = tmp_path / "stripes" / split / "ab"[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert("RGB").save(path)
    return tmp_path / "stripes"


def test_the_baseline_tells_stripes_apart_and_is_resumed_at_its_blocks(stripes, tmp_path, monkeypatch):
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    monkeypatch.setattr(baseline, "COMPONENTS", 4)
    monkeypatch.setattr(baseline, "BLOCK", 10)
    base = quickstart.get_config()
    base.dataset = f"folder:{stripes}"
    of_image, made = baseline.fisher_vector, []

    def counted(image, vocabulary):
        made.append(image)
        if len(made) == 15:
            raise KeyboardInterrupt
        return of_image(image, vocabulary)

    monkeypatch.setattr(baseline, "fisher_vector", counted)
    setting = setting_for(tmp_path / "out", base, seeds=1)
    with pytest.raises(KeyboardInterrupt):
        baseline.run(setting)
    before = len(made)
    text = baseline.run(setting)
    assert len(made) - before == 24 - 10 + 10  # the first block was there
    result = json.loads((tmp_path / "out" / "seed0" / "result.json").read_text())
    assert (result["top1_error"], result["examples"]) == (0.0, 10)
    assert "45.7" in text
    with np.load(tmp_path / "out" / "seed0" / "train" / "00000000.npz") as file:
        assert file["vectors"].shape == (10, 4 * (4 + 2 * 4 * baseline.DIMENSIONS))
        # Four vectors of length 1, of the image and of its stripes.
        np.testing.assert_allclose(np.square(file["vectors"]).sum(1), 4, rtol=1e-4)
    with runs.alone(tmp_path / "out" / "seed0"), pytest.raises(UsageError, match="another process works in"):
        baseline.run(setting)
    base.seed = 1
    with pytest.raises(UsageError, match="seed=0"):
        baseline.run(setting_for(tmp_path / "out", base, seeds=1))


def test_the_baseline_asks_for_room_before_it_begins(tmp_path):
    # 33,024 numbers of 4 bytes for each of a million images, twice
    with pytest.raises(UsageError, match=r"1010000 images need 264 GB of memory, but there are \d+ GB"):
        baseline._check_room(1_000_000, 10_000, tmp_path)


def test_dense_sift_is_of_points_all_over_the_image():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    descriptors, heights = baseline.dense_sift(image)
    assert descriptors.shape == (13**2 + 11**2 + 9**2, 128)  # patches of 16, 24, 32 on 64 pixels, 4 apart
    np.testing.assert_allclose(np.square(descriptors).sum(1), 1, rtol=1e-5)
    assert (heights.min(), heights.max()) == (8 / 64, 56 / 64)


def test_the_baseline_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(baseline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'skimage is not installed.*pip install "alexnet-jax\[experiments\]"'):
        baseline.run(setting_for(tmp_path))


@pytest.mark.parametrize("architecture", ["LENET5", "ONE_GPU"])
def test_specialisation_is_of_towers_that_see_colours(architecture, tmp_path):
    base = quickstart.get_config()
    base.architecture = architecture
    with pytest.raises(UsageError, match=r"accepted are at least 2 towers and 3 channels"):
        specialisation.run(setting_for(tmp_path, base))


def test_specialisation_is_told_for_runs_that_have_ended(tmp_path):
    assert "QUICKSTART" not in specialisation.write(setting_for(tmp_path), {})
