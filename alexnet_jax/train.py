"""Training (paper, section 5): the state, one step, and the loop around it."""

import collections
import contextlib
import dataclasses
import functools
import signal
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from clu import parameter_overview, periodic_actions
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax import architectures, augment, optimizer, outputs, towers
from alexnet_jax import config as config_lib
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import UsageError
from alexnet_jax.data import batches, sources, survey
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.evaluate import Errors, cross_entropy, evaluate, process_rows, put
from alexnet_jax.model import AlexNet


@flax.struct.dataclass
class TrainState:
    """All that changes in training.

    step: () int32, steps done. params: tree of float32, towers first. opt_state: the
    velocity. schedule: state of the plateau schedule, whose `scale` multiplies the rate.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    schedule: optax.contrib.ReduceLROnPlateauState


STATE_SPECS = TrainState(step=P(), params=P(towers.TOWER), opt_state=P(towers.TOWER), schedule=P())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that does not change in training; static to the compiler."""

    network: AlexNet
    mesh: jax.sharding.Mesh
    seed: int
    crop: bool
    flip: bool
    pca_std: float
    pca_scale: str
    learning_rate: float
    momentum: float
    weight_decay: float
    weight_decay_form: str
    plateau: tuple[tuple[str, float], ...]  # arguments of optimizer.plateau_schedule

    @classmethod
    def from_config(cls, config, num_classes: int) -> "Recipe":
        """The recipe that a config describes, for a number of classes and the devices there are."""
        architecture = architectures.with_classes(architectures.NAMED[config.architecture], num_classes)
        architectures.check(architecture)
        if architectures.towers_of(architecture) % config.mesh.tower:
            raise UsageError(
                f"mesh.tower is {config.mesh.tower}, but {config.architecture} has "
                f"{architectures.towers_of(architecture)} tower(s); accepted are its divisors. "
                "Set --config.mesh.tower=1."
            )
        return cls(
            network=AlexNet(architecture, dtype=jnp.dtype(config.dtype), devices=config.mesh.tower),
            mesh=_make_mesh(config),
            seed=config.seed,
            **config.augment,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            weight_decay_form=config.weight_decay_form,
            plateau=tuple(config.plateau.items()),
        )

    def key(self, use: str) -> jax.Array:
        """The random key for "init", "augment" or "dropout"."""
        return jax.random.split(jax.random.key(self.seed), 3)[("init", "augment", "dropout").index(use)]

    def update_rule(self, scale=1.0) -> optax.GradientTransformation:
        """The update rule at the learning rate times `scale`."""
        return optimizer.update_rule(
            self.weight_decay_form,
            self.learning_rate * scale,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def _make_mesh(config):
    try:
        mesh = towers.make_mesh(config.mesh.tower)
    except ValueError as error:
        raise UsageError(str(error)) from error
    data = mesh.shape[towers.DATA]
    for name in ("batch_size", "eval_batch_size"):
        if config[name] % data:
            raise UsageError(
                f"{name} is {config[name]}; accepted are multiples of {data}, the devices that share a batch. "
                f"Set --config.{name}={-(-config[name] // data) * data}."
            )
    return mesh


@functools.partial(jax.jit, static_argnames="recipe")
def init_state(*, recipe: Recipe) -> TrainState:
    """The state before the first step; the same numbers on every mesh."""
    whole = recipe.network.clone(devices=1)
    size, channels = whole.architecture[0].size, whole.architecture[0].channels
    params = whole.init(recipe.key("init"), jnp.zeros((1, size, size, channels)))["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.update_rule().init(params),
        schedule=optimizer.plateau_schedule(**dict(recipe.plateau)).init(params),
    )
    return lax.with_sharding_constraint(state, state_shardings(state, recipe))


def state_shardings(state: TrainState, recipe: Recipe) -> TrainState:
    """The sharding of each array of a state."""
    specs = jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part),
        STATE_SPECS, state, is_leaf=lambda x: isinstance(x, P),
    )  # fmt: skip
    return towers.shardings(recipe.mesh, specs)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def train_step(state: TrainState, batch, statistics: Statistics, *, recipe: Recipe):
    """One step of gradient descent.

    Args:
      state: donated.
      batch: image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32; N over "data".
      statistics: of the training set.
      recipe: static.

    Returns:
      The next state, and metrics: loss in nats, error (top-1, in %), learning_rate, and
      gradient_squares, the sum of the squared gradients on each device of "tower".
    """
    metric_specs = {"loss": P(), "error": P(), "learning_rate": P(), "gradient_squares": P(towers.TOWER)}
    return towers.spread(
        functools.partial(_step_on_device, recipe),
        recipe.mesh,
        in_specs=(STATE_SPECS, P(towers.DATA), P()),
        out_specs=(STATE_SPECS, metric_specs),
    )(state, batch, statistics)


def _step_on_device(recipe, state, batch, statistics):
    images = _augment(recipe, batch, statistics)  # (N, H, W, 3)

    def loss_of(params):
        logits = recipe.network.apply(
            {"params": params}, images, train=True, index=batch["index"], rngs={"dropout": recipe.key("dropout")}
        )  # (N, K)
        loss = cross_entropy(logits, batch["label"]).mean()
        # Each device of "tower" holds the same loss, and the transpose of a join adds
        # up over them: without the division the gradient would be that many times too large.
        return loss / recipe.network.devices, (loss, logits)

    gradients, (loss, logits) = jax.grad(loss_of, has_aux=True)(state.params)
    error = 100 * jnp.mean(logits.argmax(-1) != batch["label"])
    gradients, loss, error = lax.pmean((gradients, loss, error), towers.DATA)
    updates, opt_state = recipe.update_rule(state.schedule.scale).update(gradients, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "error": error,
        "learning_rate": recipe.learning_rate * state.schedule.scale,
        "gradient_squares": optax.tree.norm(gradients, squared=True)[None],
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _augment(recipe, batch, statistics):
    """Crop, flip, mean and colour of each picture, by numbers drawn from its index alone."""
    size = recipe.network.architecture[0].size

    def one(index, image):
        crop, flip, color = jax.random.split(jax.random.fold_in(recipe.key("augment"), index), 3)
        image = image.astype(jnp.float32) - statistics.mean_image  # before the crop: the mean at the crop's place
        image = augment.random_crop(crop, image, size) if recipe.crop else augment.center_crop(image, size)
        image = augment.random_flip(flip, image) if recipe.flip else image
        if recipe.pca_std:
            image = augment.pca_jitter(color, image, statistics.pca, recipe.pca_std, scale=recipe.pca_scale)
        return image

    return jax.vmap(one)(batch["index"], batch["image"])


@functools.partial(jax.jit, static_argnames="recipe")
def adjust_rate(state: TrainState, error, *, recipe: Recipe) -> optax.contrib.ReduceLROnPlateauState:
    """The schedule after one more validation error (in %)."""
    _, schedule = optimizer.plateau_schedule(**dict(recipe.plateau)).update({}, state.schedule, value=error)
    return schedule


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop works on: everything checked, opened and measured before the first step."""

    config: object
    workdir: Path
    recipe: Recipe
    data: sources.Dataset
    statistics: Statistics
    stop: int  # steps

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends within this step, or training does."""
        epoch = lambda s: s * self.config.batch_size // len(self.data.train)  # noqa: E731
        return epoch(step) > epoch(step - 1) or step == self.stop

    @property
    def many_views(self) -> int:
        """The paper's ten views; five where a mirrored picture is no picture of its class."""
        return 10 if self.recipe.flip else 5

    def batches_from(self, step: int):
        """The training batches of the steps after `step`."""
        return batches.train_batches(
            self.data.train,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            image_size=self.config.image_size,
            start=step,
            stop=self.stop,
            rows=process_rows(self.config.batch_size),
        )

    def evaluate(self, params, *, views: int, interrupted=()) -> Errors | None:
        """Errors on the whole evaluation split; None if `interrupted` fills up on the way."""
        return evaluate(
            params,
            self.data.evaluation,
            self.statistics,
            network=self.recipe.network,
            mesh=self.recipe.mesh,
            batch_size=self.config.eval_batch_size,
            views=views,
            interrupted=interrupted,
        )

    def restore(self, checkpoints: Checkpoints, step: int) -> tuple[TrainState, dict]:
        """State and notes of a checkpoint, each array where this run's mesh wants it."""
        like = jax.eval_shape(functools.partial(init_state, recipe=self.recipe))
        like = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, state_shardings(like, self.recipe)
        )
        return checkpoints.restore(step, like)


def set_up(config, workdir: Path, *, save: bool = True) -> Run:
    """Checks a config, opens its data and reads the statistics; writes statistics.npz and, with `save`, config.json.

    Raises:
      UsageError: for anything that would stop the run later.
    """
    config_lib.check(config)
    saved = workdir / "config.json"
    if saved.exists():
        config_lib.check_resumable(config, config_lib.load(saved), workdir)
    _make_mesh(config)
    data = sources.open_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        train_split=config.train_split,
        eval_split=config.eval_split,
    )
    num_classes = config.num_classes or data.num_classes
    if not num_classes:
        raise UsageError(
            f"dataset {config.dataset!r} does not say how many classes it has. Set --config.num_classes=K."
        )
    recipe = Recipe.from_config(config, num_classes)
    run = Run(config, workdir, recipe, data, None, _num_steps(config, len(data.train)))
    with Checkpoints(workdir) as checkpoints:
        if (step := checkpoints.latest_step()) is not None:
            run.restore(checkpoints, step)
    statistics = _read_statistics(config, data, num_classes, workdir)
    if save:
        config_lib.save(config, saved)
    return dataclasses.replace(run, statistics=statistics)


def _num_steps(config, examples):
    return config.num_steps or -(-config.num_epochs * examples // config.batch_size)


def _read_statistics(config, data, num_classes, workdir):
    path = workdir / "statistics.npz"
    if not path.exists():
        statistics = data.statistics
        if statistics is None:
            size = {"image_size": config.image_size, "num_classes": num_classes}
            statistics = survey.survey(data.train, **size)
            survey.survey(data.evaluation, **size)
        statistics.save(path)
    return Statistics.load(path)


def train(config, workdir) -> dict:
    """Trains, evaluates and writes all outputs; goes on where an earlier run in workdir stopped.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      workdir: folder for all outputs; made if it is not there.

    Returns:
      What result.json holds; empty if SIGTERM stopped the run, whose state is saved.

    Raises:
      UsageError: before any work, if the config, the data or the workdir do not fit.
      FloatingPointError: if the loss or the gradient is not finite; names the step.
    """
    workdir = Path(workdir).expanduser()
    workdir.mkdir(parents=True, exist_ok=True)
    run = set_up(config, workdir)
    with Checkpoints(workdir) as checkpoints, _stop_on_sigterm() as stopped:
        start = checkpoints.latest_step()
        if start is None:
            state, notes = init_state(recipe=run.recipe), {"seconds": 0.0, "validation_due": False}
            logging.info("Parameters:\n%s", parameter_overview.get_parameter_overview(state.params))
        else:
            state, notes = run.restore(checkpoints, start)
            print(f"Resuming {workdir} after step {start}.", flush=True)
        began = time.monotonic() - notes["seconds"]
        state = fit(run, state, checkpoints, stopped, validation_due=notes["validation_due"], began=began)
        if stopped:
            print(f"SIGTERM: saved {workdir} after step {int(state.step)}; the same command resumes it.", flush=True)
            return {}
    return report(run, state, time.monotonic() - began)


@contextlib.contextmanager
def _stop_on_sigterm():
    """Gives a list that holds something once SIGTERM has come."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def fit(
    run: Run, state: TrainState, checkpoints: Checkpoints, stopped: list, *, validation_due: bool, began: float
) -> TrainState:
    """The loop: steps until the run's last, evaluating and saving on the way.

    Args:
      run: as set_up made it.
      state: of the step to go on from.
      checkpoints: of the workdir.
      stopped: no longer empty when the loop shall save and return.
      validation_due: whether the epoch that `state` ends has yet to be evaluated.
      began: time.monotonic() less the seconds that the run has already taken.
    """
    start, config = int(state.step), run.config
    progress = outputs.Progress(start=start, stop=run.stop, batch_size=config.batch_size)
    writer = outputs.make_writer(run.workdir, start)
    journal = Journal(progress, writer, config.log_every_steps)
    profile = periodic_actions.Profile(logdir=str(run.workdir), num_profile_steps=5, first_profile=start + 10)
    with contextlib.closing(progress), contextlib.closing(writer):
        if validation_due:
            state, _ = validate(run, state, progress, writer, stopped)
        for step, batch in enumerate(run.batches_from(start), start + 1):
            state, metrics = train_step(state, put(batch, run.recipe.mesh), run.statistics, recipe=run.recipe)
            journal.add(step, metrics)
            if config.profile:
                profile(step)
            errors, ends_epoch = None, run.ends_epoch(step)
            if ends_epoch:
                journal.catch_up()
                state, errors = validate(run, state, progress, writer, stopped)
            if ends_epoch or stopped or step % config.checkpoint_every_steps == 0:
                journal.catch_up()  # a state that came of numbers that are not finite is never saved
                notes = {"seconds": time.monotonic() - began, "validation_due": ends_epoch and errors is None}
                checkpoints.save(state, error=errors and errors.top1_error, notes=notes)
            if stopped:
                break
    return state


def validate(run: Run, state: TrainState, progress, writer, stopped: list) -> tuple[TrainState, Errors | None]:
    """Evaluates a state and lets the rate follow: the state with its new schedule, and the errors.

    When `stopped` fills up on the way, the state is returned as it was, and None.
    """
    errors = run.evaluate(state.params, views=1, interrupted=stopped)
    if errors is None:
        return state, None
    step = int(state.step)
    writer.write_scalars(step, {f"eval_{name}": value for name, value in dataclasses.asdict(errors).items()})
    progress.say(f"step {step}: validation top-1 {errors.top1_error:.2f}%, top-5 {errors.top5_error:.2f}%")
    return state.replace(schedule=adjust_rate(state, errors.top1_error, recipe=run.recipe)), errors


class Journal:
    """Metrics on their way from the device: fetched one step late, so that the device never waits for it."""

    def __init__(self, progress, writer, every_steps):
        self._pending = collections.deque()
        self._progress, self._writer, self._every_steps = progress, writer, every_steps
        self._losses, self._since = [], time.monotonic()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running; looks at those of the step before.

        Raises FloatingPointError if those are not finite.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > 1:
            self._look(*self._pending.popleft())

    def catch_up(self) -> None:
        """Waits for all steps that were added."""
        while self._pending:
            self._look(*self._pending.popleft())

    def _look(self, step, metrics):
        metrics = jax.device_get(metrics)
        if name := outputs.first_not_finite(metrics):
            raise FloatingPointError(
                f"{name} is not finite at step {step}. The last good checkpoint is kept; start again with a smaller "
                "--config.learning_rate, in another --workdir."
            )
        self._losses.append(float(metrics["loss"]))
        self._progress.update(step, float(metrics["loss"]))
        if step % self._every_steps == 0:
            scalars = {
                "train_loss": np.mean(self._losses),
                "train_error": metrics["error"],
                "learning_rate": metrics["learning_rate"],
                "gradient_norm": np.sqrt(metrics["gradient_squares"].sum()),
                "steps_per_second": len(self._losses) / (time.monotonic() - self._since),
            }
            self._writer.write_scalars(step, scalars)
            self._losses, self._since = [], time.monotonic()


def report(run: Run, state: TrainState, seconds: float) -> dict:
    """Evaluates a state with one view and with many, writes result.json and prints a table."""
    errors = {"one_view": run.evaluate(state.params, views=1)}
    if run.config.ten_views:
        errors["ten_views"] = run.evaluate(state.params, views=run.many_views)
    result = {
        **{name: dataclasses.asdict(e) for name, e in errors.items()},
        "examples": errors["one_view"].examples,
        "examples_seen_in_training": int(state.step) * run.config.batch_size,
        "steps": int(state.step),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "seconds": round(seconds, 1),
    }
    if jax.process_index() == 0:
        outputs.write_result(run.workdir, result)
        print(outputs.errors_table(f"{run.config.architecture}, {run.data.evaluation.name}", errors), flush=True)
    return result


def evaluate_workdir(workdir, *, which="last", data_dir=None, batch_size=None) -> dict[str, Errors]:
    """Evaluates a checkpoint of a finished or running run again.

    Args:
      workdir: folder of the run.
      which: "last" or "best" checkpoint.
      data_dir, batch_size: instead of the run's own, or None.

    Returns:
      Errors by "one_view" and "ten_views".

    Raises:
      UsageError: if workdir holds no run or no checkpoint, or its data is not there.
    """
    workdir = Path(workdir).expanduser()
    saved = workdir / "config.json"
    if not saved.exists():
        raise UsageError(f"{workdir} holds no run: it has no config.json. Give the --workdir of a run of main.py.")
    config = config_lib.load(saved)
    if data_dir is not None:
        config.data_dir = data_dir
    if batch_size is not None:
        config.eval_batch_size = batch_size
    run = set_up(config, workdir, save=False)
    with Checkpoints(workdir) as checkpoints:
        state, _ = run.restore(checkpoints, checkpoints.step_of(which))
    print(f"Step {int(state.step)} of {workdir}", flush=True)
    views = {"one_view": 1, "ten_views": run.many_views}
    errors = {name: run.evaluate(state.params, views=count) for name, count in views.items()}
    print(outputs.errors_table(f"{config.architecture}, {run.data.evaluation.name}", errors), flush=True)
    return errors
