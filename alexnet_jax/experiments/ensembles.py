"""Ensembles: several networks averaged (paper, section 6, table 2).

ensemble5: five seeds, alone and averaged. six_conv: also two networks with a sixth convolution, which are first trained
on another, larger data set; and all seven averaged.
"""

from pathlib import Path

from alexnet_jax import convert
from alexnet_jax.data.sources import Dataset
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import ensemble
from alexnet_jax.evaluation.ensemble import Predictions
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import Conv
from alexnet_jax.training import setup

CONFIG = "configs/alexnet.py"
DEFAULTS = ("--config.report=false",)
SEEDS = 5
STARRED = 2  # number of networks with six convolutions among the paper's seven
SLOWER = 0.1  # learning rate of fine-tuning / that of training; as in configs/alexnet.py:six_conv_finetune


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped.

    Raises:
      UsageError: if the number of seeds is not five, as in the paper; for six_conv, also if the network does not have
        five convolutions.
    """
    if setting.seeds != SEEDS:
        raise UsageError(
            f"--seeds is {setting.seeds}; accepted is {SEEDS}, because the paper's rows are for five networks. "
            "Leave --seeds out."
        )
    convolutions = sum(isinstance(layer, Conv) for layer in networks.named(setting.config.architecture))
    if setting.pretrain and convolutions != 5:
        raise UsageError(
            f"config.architecture is {setting.config.architecture}, with {convolutions} convolutions; accepted is a "
            "network with five, because six_conv adds a sixth. Give --config.architecture=PAPER, or QUICKSTART."
        )
    return runs.carry_out(setting, plan, write, later={"finetune": "pretrain"} if setting.pretrain else {})


def plan(setting: Setting, done: Outcomes) -> list[Trial]:
    """Five networks. With a data set for pretraining, also two with six convolutions, which are first trained on it."""
    plain = [setting.trial("cnn", seed=seed) for seed in range(SEEDS)]
    if not setting.pretrain:
        return plain
    before = [setting.trial("pretrain", _six(setting, dataset=setting.pretrain), seed=seed) for seed in range(STARRED)]
    after = [
        setting.trial(
            "finetune",
            _six(
                setting,
                pretrained=str(setting.folder / trial.name),
                learning_rate=SLOWER * setting.config.learning_rate,
            ),
            seed=seed,
        )
        for seed, trial in enumerate(before)
        if "diverged" not in done.get(trial.name, {"diverged": ""})
    ]
    return plain + before + after


def _six(setting, **changes):
    return {"architecture": f"{setting.config.architecture}_SIX_CONV", **changes}


def write(setting: Setting, done: Outcomes) -> str:
    """Writes table 2 for the finished networks, beside the paper's; returns it as text."""
    ended = [trial.name for trial in plan(setting, done) if trial.name in done]
    diverged = [name for name in ended if "diverged" in done[name]]
    networks_ended = [name for name in ended if name not in diverged and not name.startswith("pretrain")]
    data = setup.open_data(setting.config)
    members = [_predictions(setting.folder / name, data, setting.config.views) for name in networks_ended]
    if len(members) < 2:
        return "Fewer than two networks are finished.\n"
    ensemble.check([one.member for one in members])
    found = ensemble.paper_rows(members)
    rows, marks = [], []
    for name, paper in ensemble.TABLE_2.items():
        errors = found[name]
        own = ["", ""] if errors is None else [f"{errors.top1_error:.2f}", f"{errors.top5_error:.2f}"]
        rows.append([name, *paper, *own])
        if errors is not None:
            marks.append(tables.Mark(name, tables.Mean(errors.top1_error), paper[0]))
    tables.plot(setting.folder / "table.png", "top-1 error, %", marks)
    header = ["network", "paper: top-1", "paper: top-5", "top-1", "top-5"]
    below = f"Errors in % on {members[0].member.split}, views of each image: {setting.config.views}.\n"
    below += f"Diverged, and left out: {', '.join(diverged)}.\n" if diverged else ""
    return tables.write(setting.folder / "table", header, rows, below)


def _predictions(workdir: Path, data: Dataset, views: int) -> Predictions:
    """A network's probabilities on the evaluation split; computed once, then read from a file."""
    path = workdir / f"predictions-{views}.npz"
    if not path.exists():
        weights = convert.read(workdir)
        member = ensemble.member_of(weights, data.evaluation, data.class_names)
        ensemble.save(ensemble.predict(Trained.of(weights, batch_size=128), data.evaluation, member, views), path)
    return ensemble.load(path)
