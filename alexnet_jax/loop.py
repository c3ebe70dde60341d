"""A run (paper, section 5): checked and opened, trained step by step, saved, resumed, evaluated."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import parameter_overview, periodic_actions
from jax.sharding import PartitionSpec

from alexnet_jax import config as config_lib
from alexnet_jax import convert, hosts, outputs, towers
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import UsageError
from alexnet_jax.data import batches, sources, survey
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.evaluate import Errors, evaluate
from alexnet_jax.files import write_whole
from alexnet_jax.model import AlexNet, param_specs
from alexnet_jax.outputs import Journal
from alexnet_jax.train import (
    Recipe,
    TrainState,
    adjust_rate,
    changes,
    check_pretrained,
    copy_pretrained,
    gradient_norm,
    init_state,
    place,
    state_shardings,
    train_step,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop works on: everything checked, opened and measured before the first step."""

    config: object
    workdir: Path
    recipe: Recipe
    data: sources.Dataset
    statistics: Statistics | None  # None only within set_up
    stop: int  # steps
    pretrained: convert.Weights | None = None  # to begin with, but for the last layer

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends within this step."""
        epoch, before = (s * self.config.batch_size // len(self.data.train) for s in (step, step - 1))
        return epoch > before

    def batches_from(self, step: int):
        """The training batches of the steps after `step`."""
        return batches.train_batches(
            self.data.train,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            image_size=self.config.image_size,
            start=step,
            stop=self.stop,
            rows=self.recipe.network.placement.rows_here(self.config.batch_size),
        )

    def evaluate(self, params, *, views: int, interrupted=lambda: False) -> Errors | None:
        """Errors on the whole evaluation split; None if `interrupted` says so on the way."""
        return evaluate(
            params,
            self.data.evaluation,
            self.statistics,
            network=self.recipe.network,
            batch_size=self.config.eval_batch_size,
            views=views,
            mean_at=self.recipe.mean_at,
            interrupted=interrupted,
        )

    def restore(self, checkpoints: Checkpoints, step: int) -> tuple[TrainState, dict]:
        """State and notes of a checkpoint, each array where this run's mesh wants it."""
        return checkpoints.restore(step, self.abstract_state())

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of this run's state."""
        like = jax.eval_shape(functools.partial(init_state, recipe=self.recipe))
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, state_shardings(like, self.recipe)
        )


def set_up(config, workdir: Path, *, training: bool = True) -> Run:
    """Checks a config, opens its data and reads the statistics; writes statistics.npz and, for training, config.json.

    Raises:
      UsageError: for anything that would stop the run later; on all processes alike.
    """
    hosts.agree({f"config.{name}": value for name, value in config_lib.flatten(config).items()})
    run = hosts.in_turn(lambda: _open(config, workdir, training))
    hosts.agree({"examples to train on": len(run.data.train), "examples to evaluate": len(run.data.evaluation)})
    hosts.share(workdir)
    with Checkpoints(workdir) as checkpoints:
        if (step := checkpoints.latest_step()) is not None:
            checkpoints.check(step, run.abstract_state())
    begins = training and step is None
    pretrained = None
    if begins and config.pretrained:
        pretrained = _read_weights(config.pretrained)
        check_pretrained(pretrained.params, run.recipe)
    statistics = _read_statistics(run)
    if training and jax.process_index() == 0:
        write_whole(workdir / "classes.json", json.dumps(run.data.class_names))
        config_lib.save(config, workdir / "config.json")
    # Once and for all on every device, not anew with each batch.
    statistics = jax.device_put(statistics, run.recipe.network.placement.sharding(PartitionSpec()))
    return dataclasses.replace(run, statistics=statistics, pretrained=pretrained)


def _open(config, workdir, training):
    """A run without statistics, from what this process sees."""
    config_lib.check(config)
    if (saved := workdir / "config.json").exists():
        config_lib.check_resumable(config, config_lib.load(saved), workdir)
    placement = place(config, batches=("batch_size", "eval_batch_size") if training else ("eval_batch_size",))
    data = open_data(config)
    recipe = recipe_for(config, data, placement)
    return Run(config, workdir, recipe, data, None, num_steps(config, len(data.train)))


def open_data(config) -> sources.Dataset:
    """The dataset that a config names; errors as in sources.open_dataset."""
    return sources.open_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        train_split=config.train_split,
        eval_split=config.eval_split,
    )


def recipe_for(config, data: sources.Dataset, placement: towers.Placement) -> Recipe:
    """The recipe that a config describes, for a dataset. Raises UsageError where the classes do not fit."""
    num_classes = config.num_classes or data.num_classes
    if not num_classes:
        raise UsageError(
            f"dataset {config.dataset!r} does not say how many classes it has. Set --config.num_classes=K."
        )
    if data.statistics is not None and num_classes < data.num_classes:  # no survey will look at the labels
        raise UsageError(
            f"num_classes is {num_classes}, but dataset {config.dataset!r} has {data.num_classes} classes; "
            f"accepted are {data.num_classes} or more. Set --config.num_classes=0 for the dataset's own number."
        )
    return Recipe.from_config(config, num_classes, len(data.train), placement)


def _read_weights(path):
    """Weights that are the same on all processes, which wait for each other to read a workdir."""
    hosts.together(lambda: convert.check_there(path))
    weights = convert.read(path)
    if jax.process_count() > 1:
        hosts.agree({f"what is in {path}": weights.digest})
    return weights


def num_steps(config, examples: int) -> int:
    """The steps of a run on so many examples."""
    return config.num_steps or -(-config.num_epochs * examples // config.batch_size)


def _read_statistics(run):
    """The workdir's statistics, which process 0 makes if they are not there."""
    path, config = run.workdir / "statistics.npz", run.config

    def make():
        # Without a config, which is saved last, they may be those of other data, left by a run that never began.
        if jax.process_index() or (path.exists() and (run.workdir / "config.json").exists()):
            return
        statistics = run.data.statistics
        if statistics is None:
            size = {"image_size": config.image_size, "num_classes": run.recipe.network.architecture[-1].units}
            statistics = survey.survey(run.data.train, **size)
            survey.survey(run.data.evaluation, **size)
        statistics.save(path)

    hosts.together(make)
    # Float32 already here: device_put compares what the processes give it with what they hold then.
    return jax.tree.map(np.float32, Statistics.load(path))


def train(config, workdir, *, until: Callable[[], bool] = lambda: False) -> dict:
    """Trains, evaluates and writes all outputs; goes on where an earlier run in workdir stopped.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      workdir: folder for all outputs; made if it is not there.
      until: asked after each epoch, whose lines in metrics.jsonl are then written; True makes it the run's last.

    Returns:
      What result.json holds; empty if SIGTERM stopped the run, whose state is saved.

    Raises:
      UsageError: before any work, if the config, the data or the workdir do not fit.
      FloatingPointError: if the loss or the gradient is not finite; names the step.
      KeyboardInterrupt: if Ctrl-C stopped the run, whose state is saved.
    """
    workdir = Path(workdir).expanduser()
    run = set_up(config, workdir)
    with Checkpoints(workdir) as checkpoints, hosts.Sigterm() as sigterm:
        start = checkpoints.latest_step()
        if start is None:
            state, notes = init_state(recipe=run.recipe), {"seconds": 0.0, "validation_due": False, "begun": ()}
            if run.pretrained is not None:
                state = copy_pretrained(state, run.pretrained.params, run.recipe)
                hosts.say(f"Copied all layers but the last from {config.pretrained}.")
                if changed := changes(run.pretrained.architecture, run.recipe.network.architecture):
                    hosts.say(f"It is another network: {changed}.")
                run = dataclasses.replace(run, pretrained=None)  # let go of the weights
            if jax.process_index() == 0:
                overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
                logging.info("Parameters:\n%s", overview)
        else:
            state, notes = run.restore(checkpoints, start)
            hosts.say(f"Resuming {workdir} after step {start}.")
        began = time.monotonic() - notes["seconds"]
        state = fit(run, state, checkpoints, sigterm, notes=notes, began=began, until=until)
        result = {} if sigterm.came else conclude(run, state, time.monotonic() - began, sigterm)
    # The checkpoints are closed: what was saved is on disk.
    if not result:
        hosts.say(f"Stopped: saved {workdir} after step {int(state.step)}; the same command resumes it.")
    elif config.report:
        _write_report(run)
    if sigterm.interrupted():
        raise KeyboardInterrupt
    return result


def fit(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    sigterm: hosts.Sigterm,
    *,
    notes: dict,
    began: float,
    until: Callable[[], bool],
) -> TrainState:
    """The loop: steps until the run's last, evaluating and saving on the way.

    Args:
      run: as set_up made it.
      state: of the step to go on from.
      checkpoints: of the workdir.
      sigterm: tells when the loop shall save and return.
      notes: of the checkpoint: `validation_due`, whether the epoch that `state` ends has yet to be evaluated; `begun`,
        the losses and errors of the steps that no line of metrics has told yet.
      began: time.monotonic() less the seconds that the run has already taken.
      until: as in train.
    """
    start, config, placement = int(state.step), run.config, run.recipe.network.placement
    progress = outputs.Progress(start=start, stop=run.stop, batch_size=config.batch_size)
    writer = outputs.make_writer(run.workdir, start)
    journal = Journal(progress, writer, config.log_every_steps, config.batch_size, notes.get("begun", ()))
    profile = _profile(run.workdir, start)
    with contextlib.closing(progress), contextlib.closing(writer):
        if notes["validation_due"]:
            state, _ = validate(run, state, progress, writer, sigterm)
            if sigterm.came:  # again before it was done: the checkpoint there still says that it is due
                return state
        if start and run.ends_epoch(start) and until():  # it had ended, but for what comes after its last step
            return state
        for step, batch in enumerate(journal.take(run.batches_from(start)), start + 1):
            batch = placement.put(batch, config.batch_size)
            state, metrics = train_step(state, batch, run.statistics, recipe=run.recipe)
            metrics["gradient_norm"] = gradient_norm(metrics.pop("gradient_squares"))
            journal.add(step, metrics)
            if config.profile and jax.process_index() == 0:
                profile(step)
            errors, ends_epoch = None, run.ends_epoch(step)
            due = ends_epoch or step == run.stop
            if sigterm.check() or due or step % config.checkpoint_every_steps == 0:
                journal.catch_up()  # a state that came of numbers that are not finite is never saved
                if due:
                    # A last step within an epoch leaves the rate alone, so that a run which is extended
                    # later takes the same steps as one that was as long from the start.
                    state, errors = validate(run, state, progress, writer, sigterm, adjust=ends_epoch)
                notes = {
                    "seconds": time.monotonic() - began,
                    "validation_due": ends_epoch and errors is None,
                    "begun": list(journal.begun),
                    "num_classes": run.recipe.network.architecture[-1].units,
                }
                checkpoints.save(state, error=errors and errors.top1_error, notes=notes)
            if sigterm.came or (ends_epoch and until()):
                break
    return state


def _profile(workdir, start):
    """Traces the steps 10 to 15 after the start, for TensorBoard."""
    return periodic_actions.Profile(
        logdir=str(workdir), first_profile=start + 10, num_profile_steps=5, profile_duration_ms=None, every_secs=None
    )


def validate(
    run: Run, state: TrainState, progress, writer, sigterm: hosts.Sigterm, *, adjust: bool = True
) -> tuple[TrainState, Errors | None]:
    """Evaluates a state and, with `adjust`, lets the rate follow: the state with its new schedule, and the errors.

    When it is stopped on the way, the state is returned as it was, and None.
    """
    errors = run.evaluate(state.params, views=1, interrupted=sigterm.check)
    if errors is None:
        return state, None
    step = int(state.step)
    writer.write_scalars(step, {f"eval_{name}": value for name, value in dataclasses.asdict(errors).items()})
    progress.say(f"step {step}: validation top-1 {errors.top1_error:.2f}%, top-5 {errors.top5_error:.2f}%")
    if adjust:
        state = state.replace(schedule=adjust_rate(state, errors.top1_error, recipe=run.recipe))
    return state, errors


def conclude(run: Run, state: TrainState, seconds: float, sigterm: hosts.Sigterm) -> dict:
    """Evaluates a state with one view and with many, writes result.json and prints a table.

    Gives an empty result, and writes nothing, when it is stopped on the way.
    """
    views = _views(run.config.views)
    errors = {name: run.evaluate(state.params, views=n, interrupted=sigterm.check) for name, n in views.items()}
    if sigterm.came:
        return {}
    result = {
        **{name: dataclasses.asdict(e) for name, e in errors.items()},
        "examples": errors["one_view"].examples,
        "examples_seen_in_training": int(state.step) * run.config.batch_size,
        "steps": int(state.step),
        "epochs": round(int(state.step) * run.config.batch_size / len(run.data.train), 4),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "seconds": round(seconds, 1),
    }
    if jax.process_index() == 0:
        outputs.write_result(run.workdir, result)
    hosts.say(outputs.errors_table(f"{run.config.architecture}, {run.data.evaluation.name}", errors))
    return result


def _write_report(run):
    """Writes the page of a run that has ended: process 0 with its own devices, for which the others wait."""
    from alexnet_jax import report  # slow to import, and needed once

    try:
        weights = convert.read(run.workdir)  # on all processes, as Orbax wants it
        if jax.process_index() == 0:
            path = report.write(run.workdir, config=run.config, data=run.data, weights=weights)
            hosts.say(f"Wrote: {path}")
    except Exception:  # the run itself is complete
        logging.exception("The page could not be written; python -m alexnet_jax report tries again.")
    hosts.together(lambda: None)


def evaluate_workdir(workdir, *, which="last", data_dir=None, batch_size=None) -> dict[str, Errors]:
    """Evaluates a checkpoint of a finished or running run again.

    Args:
      workdir: folder of the run.
      which: "last" or "best" checkpoint.
      data_dir, batch_size: instead of the run's own, or None.

    Returns:
      Errors by "one_view" and, with more than one, "ten_views".

    Raises:
      UsageError: if workdir holds no run or no checkpoint, or its data is not there.
    """
    workdir = Path(workdir).expanduser()
    config = hosts.together(lambda: config_of(workdir))
    if data_dir is not None:
        config.data_dir = data_dir
    if batch_size is not None:
        config.eval_batch_size = batch_size
    # This machine need not be the one that trained.
    if len(jax.devices()) % config.mesh.tower:
        config.mesh.tower = 1
    config.eval_batch_size += -config.eval_batch_size % len(jax.devices())
    run = set_up(config, workdir, training=False)
    with Checkpoints(workdir) as checkpoints:
        state, _ = run.restore(checkpoints, checkpoints.step_of(which))
    hosts.say(f"Step {int(state.step)} of {workdir}")
    return _evaluate_and_say(
        run.evaluate, state.params, config.views, f"{config.architecture}, {run.data.evaluation.name}"
    )


def evaluate_weights(path, *, dataset: str, data_dir: str = "", split: str = "", batch_size: int = 128):
    """Evaluates weights of whatever source on a data set, with the preprocessing that they were trained with.

    Args:
      path: as in convert.read.
      dataset, data_dir: as in the config.
      split: as the config's eval_split.
      batch_size: pictures at a time; rounded up to the devices.

    Returns:
      Errors by "one_view" and, with more than one, "ten_views".

    Raises:
      UsageError: if there are no such weights or data, or the data has another number of classes.
    """
    hosts.agree({"--dataset": dataset, "--split": split, "--batch_size": batch_size})
    weights = _read_weights(path)
    size = len(weights.mean_image)
    data = hosts.in_turn(
        lambda: sources.open_dataset(dataset, data_dir, image_size=size, train_split=None, eval_split=split)
    )
    hosts.agree({"examples to evaluate": len(data.evaluation)})
    known = weights.architecture[-1].units
    if data.num_classes not in (None, known):
        raise hosts.AgreedError(
            f"dataset {dataset!r} has {data.num_classes} classes, and {path} knows {weights.classes}; accepted is a "
            "data set with those classes in that order. Give another --dataset."
        )
    placement = towers.place(weights.architecture)
    network = AlexNet(weights.architecture, placement=placement)
    statistics = jax.device_put(Statistics(weights.mean_image, weights.pca), placement.sharding(PartitionSpec()))

    def evaluate_views(params, *, views, interrupted):
        return evaluate(
            params,
            data.evaluation,
            statistics,
            network=network,
            batch_size=batch_size + -batch_size % len(jax.devices()),
            views=views,
            mean_at=weights.mean_at,
            interrupted=interrupted,
        )

    hosts.say(f"Weights: {weights.source}; {weights.classes}")
    params = jax.tree.map(placement.put_whole, weights.params, param_specs(network))
    return _evaluate_and_say(evaluate_views, params, weights.views, data.evaluation.name)


def _evaluate_and_say(evaluate_views, params, views, title):
    """Errors from one view and from many, printed as a table."""
    with hosts.Sigterm() as sigterm:
        errors = {name: evaluate_views(params, views=n, interrupted=sigterm.check) for name, n in _views(views).items()}
    if sigterm.came:
        raise hosts.AgreedError("stopped before the evaluation was done. Start it again.")
    hosts.say(outputs.errors_table(title, errors))
    return errors


def _views(most):
    """Numbers of views to test with, by the names that result.json has for them."""
    return {"one_view": 1} if most == 1 else {"one_view": 1, "ten_views": most}


def config_of(workdir: Path) -> config_lib.ml_collections.ConfigDict:
    """The config of the run in a workdir. Raises UsageError if it holds none, or that of another version."""
    saved = workdir / "config.json"
    if not saved.exists():
        raise UsageError(f"{workdir} holds no run: it has no config.json. Give the --workdir of a run of main.py.")
    config = config_lib.load(saved)
    config.report = config.get("report", True)  # younger than the other fields, and nothing to do with the numbers
    if missing := config_lib.FIELDS.keys() - config_lib.flatten(config).keys():
        raise UsageError(
            f"{workdir} holds a run of another version of this program: its config lacks {', '.join(sorted(missing))}. "
            "Evaluate it with the version that trained it."
        )
    return config
