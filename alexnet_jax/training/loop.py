"""The loop (paper, section 5): starts or resumes a run, takes its steps, and evaluates and saves on the way."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
from absl import logging
from clu import parameter_overview, periodic_actions

from alexnet_jax import hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import Errors
from alexnet_jax.training import chance, outputs
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.conclude import conclude, write_report
from alexnet_jax.training.feed import feed
from alexnet_jax.training.outputs import Journal
from alexnet_jax.training.pretrained import changes, copied_in_words, copy_pretrained
from alexnet_jax.training.setup import Run, begin, open_run
from alexnet_jax.training.step import TrainState, adjust_rate, gradient_norm, init_state


def train(config, workdir, *, until: Callable[[], bool] = lambda: False) -> dict:
    """Trains, evaluates and writes all outputs; continues where an earlier run in workdir stopped.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      workdir: folder for all outputs, or an address gs://... or s3://...; created if it does not exist.
      until: called after each evaluation, when its lines are in metrics.jsonl. If it returns True, the run ends.

    Returns:
      The contents of result.json; empty if SIGTERM stopped the run (its state is saved).

    Raises:
      UsageError: before any work, if the config, the data or the workdir are not accepted; later, if a disk is full, or
        the workdir is gone (what was saved is kept).
      FloatingPointError: if the loss or the gradient is not finite; the message names the step.
      KeyboardInterrupt: if Ctrl-C stopped the run (its state is saved).
    """
    with hosts.workdir(workdir, "run") as folder:
        try:
            run = open_run(config, folder)
            with hosts.alone(folder):
                return _train(begin(run), until)
        except OSError as error:
            raise UsageError(
                f"{error.filename or workdir}: {error.strerror or error}. Correct that. What was saved is kept; the "
                "same command resumes the run."
            ) from error


def _train(run: Run, until: Callable[[], bool]) -> dict:
    config, workdir = run.config, run.workdir
    with Checkpoints(workdir) as checkpoints, hosts.Sigterm() as sigterm:
        found = checkpoints.restore_newest(run.abstract_state())
        if found is None:
            state, notes = init_state(recipe=run.recipe), {"seconds": 0.0, "validation_due": False, "begun": ()}
            if run.pretrained is not None:
                state = copy_pretrained(state, run.pretrained.params, run.recipe)
                copied = copied_in_words(run.recipe, run.pretrained.params)
                hosts.say(f"Copied {copied} from {config.pretrained}.")
                if changed := changes(run.pretrained.architecture, run.recipe.network.architecture):
                    hosts.say(f"The pretrained network differs: {changed}.")
                run = dataclasses.replace(run, pretrained=None)  # frees the memory of the weights
            if jax.process_index() == 0:
                overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
                logging.info("Parameters:\n%s", overview)
        else:
            state, notes = found
            hosts.say(f"Resuming {workdir} after step {int(state.step)}.")
        began = time.monotonic() - notes["seconds"]
        state = fit(run, state, checkpoints, sigterm, notes=notes, began=began, until=until)
        result = {} if sigterm.came else conclude(run, state, time.monotonic() - began, sigterm)
    # The checkpoints are closed: what was saved is on disk.
    if not result:
        hosts.say(f"Stopped: saved {workdir} after step {int(state.step)}; the same command resumes it.")
    elif config.report:
        write_report(run)
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
    """The loop: takes steps until the run's last, and evaluates and saves on the way.

    Args:
      run: as set_up made it.
      state: of the step to continue from.
      checkpoints: of the workdir.
      sigterm: says when the loop must save and return.
      notes: of the checkpoint: `validation_due`, whether `state` must still be evaluated; `begun`,
        the losses and errors of the steps that are not yet in metrics.jsonl.
      began: time.monotonic() minus the seconds that the run has already taken.
      until: as in train.
    """
    start, config = int(state.step), run.config
    progress = outputs.Progress(start=start, stop=run.stop, batch_size=config.batch_size)
    writer = outputs.make_writer(run.workdir, start)
    tell = functools.partial(chance.tell, config, run.chance, progress.say, writer.write_scalars)
    journal = Journal(progress, writer, config.log_every_steps, config.batch_size, notes.get("begun", ()), look_at=tell)
    profile = _profile(run.workdir, start)
    with contextlib.closing(progress), contextlib.closing(writer):
        if notes["validation_due"]:
            state, _ = validate(run, state, progress, writer, sigterm)
            if sigterm.came:  # stopped again; the checkpoint still says that validation is due
                return state
        if start and run.evaluates(start) and until():  # it was evaluated
            return state
        batches = feed(run, start)
        for step, batch in journal.take(iter(batches)):
            state, metrics = batches.advance(state, batch)
            metrics["gradient_norm"] = gradient_norm(metrics.pop("gradient_squares"))
            journal.add(step, metrics)
            if config.profile and jax.process_index() == 0:
                profile(step)
            errors, regular = None, run.evaluates(step)
            due = regular or step == run.stop
            if sigterm.check() or due or step % config.checkpoint_every_steps == 0:
                journal.catch_up()  # raises if a number is not finite, before such a state is saved
                if due:
                    # A last step between two regular evaluations does not change the rate. So a run that is extended
                    # later takes the same steps as a run that had the full length from the start.
                    state, errors = validate(run, state, progress, writer, sigterm, adjust=regular)
                notes = {
                    "seconds": time.monotonic() - began,
                    "validation_due": regular and errors is None,
                    "begun": list(journal.begun),
                    "num_classes": run.recipe.network.architecture[-1].units,
                }
                checkpoints.save(state, error=errors and errors.top1_error, notes=notes)
            if sigterm.came or (regular and until()):
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
    """Evaluates a state. With `adjust`, it also updates the learning rate. Returns the state and the errors.

    If it is stopped before the end, it returns the unchanged state and None.
    """
    errors = run.evaluate(state.params, views=1, interrupted=sigterm.check)
    if errors is None:
        return state, None
    step = int(state.step)
    writer.write_scalars(step, {f"eval_{name}": value for name, value in dataclasses.asdict(errors).items()})
    progress.say(f"step {step}: validation top-1 {errors.top1_error:.2f}%, top-5 {errors.top5_error:.2f}%")
    if adjust:
        after = adjust_rate(state, errors.top1_error, recipe=run.recipe)
        _tell_drop(run, state, after, progress)
        state = state.replace(schedule=after)
    return state, errors


def _tell_drop(run, state, after, progress):
    before, now = (float(schedule.scale) for schedule in (state.schedule, after))
    if now < 0.99 * before:  # the least rate is rounded
        waited = int(state.step) - int(state.schedule.since)
        progress.say(
            f"step {int(state.step)}: the learning rate is multiplied by {now / before:.3g}: the validation error has "
            f"not improved on {float(after.best):.2f}% (evaluations waited: {int(state.schedule.evaluations) + 1}, "
            f"steps: {waited})"
        )
