"""Before the first step: checks the config, opens the data, makes the recipe and the statistics."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from alexnet_jax import config as config_lib
from alexnet_jax import convert, hosts
from alexnet_jax.data import batches, sources, survey
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import Errors
from alexnet_jax.evaluation.evaluate import evaluate
from alexnet_jax.files import write_whole
from alexnet_jax.network import architectures, networks, towers
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.pretrained import check_pretrained
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.schedule import chance_loss
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import TrainState, init_state, state_shardings


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that the loop needs, checked and opened before the first step."""

    config: object
    workdir: Path
    recipe: Recipe
    data: sources.Dataset
    statistics: Statistics | None  # None only within set_up
    stop: int  # the last step
    chance: float | None = None  # the loss at chance in nats; None only within set_up
    pretrained: convert.Weights | None = None  # initial weights of all layers but the last

    def evaluates(self, step: int) -> bool:
        """Whether the validation error is measured after this step: every eval_every_steps, or if 0, every epoch."""
        if self.config.eval_every_steps:
            return step % self.config.eval_every_steps == 0
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
        """Errors on the whole evaluation split; None if `interrupted()` becomes true before the end."""
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
        """State and notes of a checkpoint, with each array placed on this run's mesh."""
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
      UsageError: for anything that would stop the run later; all processes raise it.
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
        pretrained = read_weights(config.pretrained)
        check_pretrained(pretrained.params, run.recipe)
    statistics = _read_statistics(run)
    if training and jax.process_index() == 0:
        write_whole(workdir / "classes.json", json.dumps(run.data.class_names))
        config_lib.save(config, workdir / "config.json")
    chance = float(chance_loss(statistics.label_counts, run.recipe.network.architecture[-1].units))
    # Sent to every device once, not with each batch.
    statistics = jax.device_put(statistics, run.recipe.network.placement.sharding(PartitionSpec()))
    return dataclasses.replace(run, statistics=statistics, chance=chance, pretrained=pretrained)


def _open(config, workdir, training):
    """A run without statistics, made from what this process alone can see."""
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
    """The recipe that a config describes, for a dataset. Raises UsageError if the number of classes is not accepted."""
    num_classes = config.num_classes or data.num_classes
    if not num_classes:
        raise UsageError(
            f"dataset {config.dataset!r} does not say how many classes it has. Set --config.num_classes=K."
        )
    if data.statistics is not None and num_classes < data.num_classes:  # no survey will check the labels
        raise UsageError(
            f"num_classes is {num_classes}, but dataset {config.dataset!r} has {data.num_classes} classes; "
            f"accepted are {data.num_classes} or more. Set --config.num_classes=0 for the dataset's own number."
        )
    return recipe_from_config(config, num_classes, len(data.train), placement)


def recipe_from_config(config, num_classes: int, examples: int, placement: towers.Placement) -> Recipe:
    """The recipe that a config describes, for a number of training examples, on a placement that `place` made for it.

    Raises:
      UsageError: if the architecture does not accept this number of classes.
    """
    try:
        architecture = architectures.with_classes(networks.named(config.architecture), num_classes)
    except ValueError as error:
        raise UsageError(str(error).replace("the output layer", f"{config.architecture}'s output layer")) from error
    architectures.check(architecture)
    choices = dict(config.augment)
    scale = config.batch_size / (config.rate_batch_size or config.batch_size)

    def steps(epochs):
        return round(epochs * examples / config.batch_size)

    return Recipe(
        network=AlexNet(architecture, dtype=jnp.dtype(config.dtype), placement=placement),
        seed=config.seed,
        mean_at=config.mean_at,
        pca_steps=math.ceil(choices.pop("pca_epochs") * examples / config.batch_size),
        **choices,
        accumulate=config.accumulate,
        learning_rate=scale * config.learning_rate,
        warmup_steps=steps(config.warmup_epochs),
        schedule=tuple((steps(epoch), layer, scale * rate) for epoch, layer, rate in config.schedule),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        update_rule=config.update_rule,
        plateau=tuple(config.plateau.items()),
    )


def place(config, batches: tuple[str, ...]) -> towers.Placement:
    """The placement that a config asks for, over all devices.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      batches: names of the config's fields that hold a batch size.

    Raises:
      UsageError: if the towers, the devices or a batch do not divide evenly.
    """
    architecture = networks.named(config.architecture)
    try:
        placement = towers.place(architecture, config.mesh.placement, config.mesh.tower)
        for name in batches:
            parts = config.accumulate if name == "batch_size" else 1
            placement.check_batch(f"config.{name}", config[name], parts)
    except ValueError as error:
        raise UsageError(str(error).replace("the architecture", config.architecture)) from error
    return placement


def read_weights(path):
    """Reads weights; all processes must read the same ones. For a workdir, the processes wait for each other."""
    hosts.together(lambda: convert.check_there(path))
    weights = convert.read(path)
    if jax.process_count() > 1:
        hosts.agree({f"what is in {path}": weights.digest})
    return weights


def num_steps(config, examples: int) -> int:
    """The number of steps of a run on this number of training examples."""
    return config.num_steps or -(-config.num_epochs * examples // config.batch_size)


def _read_statistics(run):
    """The statistics of the workdir; process 0 computes them if they are missing."""
    path, config = run.workdir / "statistics.npz", run.config

    def make():
        # config.json is saved last. If it is missing, a run that never started may have left the statistics of
        # other data.
        if jax.process_index() or (path.exists() and (run.workdir / "config.json").exists()):
            return
        statistics = run.data.statistics
        if statistics is None:
            size = {"image_size": config.image_size, "num_classes": run.recipe.network.architecture[-1].units}
            statistics = survey.survey(run.data.train, **size)
            survey.survey(run.data.evaluation, **size)
        statistics.save(path)

    hosts.together(make)
    # Converted to float32 before device_put, which compares the values that the processes give with those that
    # they then hold.
    return jax.tree.map(np.float32, Statistics.load(path))


def config_of(workdir: Path) -> config_lib.ml_collections.ConfigDict:
    """The config of the run in a workdir. Raises UsageError if there is no run, or a run of another program version."""
    saved = workdir / "config.json"
    if not saved.exists():
        raise UsageError(f"{workdir} holds no run: it has no config.json. Give the --workdir of a run of main.py.")
    config = config_lib.load(saved)
    for name, value in config_lib.NEWER.items():
        if name not in config_lib.flatten(config):
            config.update_from_flattened_dict({name: value})
    if missing := config_lib.FIELDS.keys() - config_lib.flatten(config).keys():
        raise UsageError(
            f"{workdir} holds a run of another version of this program: its config lacks {', '.join(sorted(missing))}. "
            "Evaluate it with the version that trained it."
        )
    return config
