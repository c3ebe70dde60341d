"""Before the first step: checks the config, opens the data, makes the recipe and the statistics."""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import convert, hosts
from alexnet_jax.data import batches, sources, survey
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import Errors
from alexnet_jax.evaluation.evaluate import evaluate
from alexnet_jax.files import copies, read_json, write_whole
from alexnet_jax.network import architectures, networks, towers
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training.checkpoint import Checkpoints, DamagedError
from alexnet_jax.training.pretrained import check_pretrained
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.schedule import chance_loss
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import TrainState, init_state, state_shardings

STATES_KEPT = 3  # the best, the last, and a new one that is written before the last is removed
CONTENTS = "contents.json"  # in the workdir: what sources.Dataset.contents returned


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

    @property
    def order(self) -> batches.Order:
        """The order of the training examples."""
        return batches.Order.of_run(self.config, len(self.data.train))

    def evaluates(self, step: int) -> bool:
        """Whether the validation error is measured after this step: every eval_every_steps, or if 0, every epoch."""
        if self.config.eval_every_steps:
            return step % self.config.eval_every_steps == 0
        return len({int(self.order.epoch_and_place(s * self.config.batch_size)[0]) for s in (step - 1, step)}) == 2

    def batches_from(self, step: int):
        """The training batches of the steps after `step`."""
        return batches.train_batches(
            self.data.train,
            order=self.order,
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
    return begin(open_run(config, workdir, training=training), training=training)


def open_run(config, workdir: Path, *, training: bool = True) -> Run:
    """The first half of set_up: a run without statistics. It creates the workdir and writes nothing to it."""
    hosts.agree({f"config.{name}": value for name, value in config_lib.flatten(config).items()})
    run = hosts.in_turn(lambda: _open(config, workdir, training))
    hosts.agree({"the contents of the data": run.data.contents()})
    for remark in run.data.remarks:
        hosts.say(remark)
    hosts.share(workdir)
    return run


def begin(run: Run, *, training: bool = True) -> Run:
    """The second half of set_up."""
    config, workdir = run.config, run.workdir
    with Checkpoints(workdir) as checkpoints:
        if (step := checkpoints.latest_step()) is not None:
            with contextlib.suppress(DamagedError if training else ()):  # a resumed run may have an older one
                checkpoints.check(step, run.abstract_state())
    begins = training and step is None
    if begins:
        hosts.together(lambda: _check_space(run))
    pretrained = None
    if begins and config.pretrained:
        pretrained = read_weights(config.pretrained, trunk=True)
        check_pretrained(pretrained.params, run.recipe)
    statistics = _read_statistics(run, training)
    if training and jax.process_index() == 0:
        write_whole(workdir / "classes.json", json.dumps(run.data.class_names))
        write_whole(workdir / CONTENTS, json.dumps(run.data.contents() | {"statistics": statistics.digest}))
        config_lib.save(config, workdir / "config.json")
    _tell_empty_classes(run.data, statistics.label_counts)
    chance = float(chance_loss(statistics.label_counts, run.recipe.network.architecture[-1].units))
    # Converted to float32 before device_put, which compares the values that the processes give with those that they
    # then hold. Sent to every device once, not with each batch.
    statistics = jax.tree.map(np.float32, statistics)
    statistics = jax.device_put(statistics, run.recipe.network.placement.sharding(PartitionSpec()))
    return dataclasses.replace(run, statistics=statistics, chance=chance, pretrained=pretrained)


def state_bytes(recipe: Recipe) -> int:
    """The content of a checkpoint: parameters, velocity and a few numbers."""
    state = jax.eval_shape(functools.partial(init_state, recipe=recipe))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))


def _check_space(run):
    """Raises UsageError if the disk of the workdir cannot hold two checkpoints: the last, and the next one."""
    needed, free = 2 * state_bytes(run.recipe), shutil.disk_usage(run.workdir).free
    (place, remedy), need = copies.disk_of(run.workdir), f"two checkpoints need {needed / 1e6:,.1f} MB"
    if free < needed:
        raise UsageError(f"{place} has {free / 1e6:,.1f} MB free, but {need}. Free some space, or {remedy}.")


def _tell_empty_classes(data, label_counts):
    if label_counts is None or data.remarks:  # for a folder, the remarks have said so
        return
    names = dict(enumerate(data.class_names or ()))  # the network may have more classes than the data
    if empty := [names.get(k, f"class {k}") for k in np.flatnonzero(label_counts == 0)]:
        named = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        hosts.say(
            f"{data.train.name} has no examples of {named}: {len(empty):,} of {len(label_counts):,} classes, which "
            "cannot be learned."
        )


def _open(config, workdir, training):
    """A run without statistics, made from what this process alone can see."""
    config_lib.check(config)
    if (saved := workdir / "config.json").exists():
        config_lib.check_resumable(config, config_lib.load(saved), workdir)
    placement = place(config, batches=("batch_size", "eval_batch_size") if training else ("eval_batch_size",))
    data = open_data(config)
    check_contents(data, config, workdir)
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


def check_contents(data: sources.Dataset, config, workdir: Path) -> None:
    """Raises UsageError if a workdir holds a run on other examples. The folder of the images may have moved."""
    if not (workdir / "config.json").exists():
        return
    if not (path := workdir / CONTENTS).exists():
        if config.dataset.startswith("folder:"):
            raise UsageError(
                f"{workdir} holds a run of an older version of this program, which did not turn images as their EXIF "
                "orientation says and read other files of a folder. Resume or evaluate it with that version, or start "
                "again in another --workdir."
            )
        return
    before, now = _read_contents(path), data.contents()
    if before["classes"] != now["classes"]:
        differ = sorted(set(before["classes"] or ()) ^ set(now["classes"] or ()))
        raise UsageError(
            f"{workdir} holds a run on other classes than {config.dataset} has now: they differ in "
            f"{', '.join(differ[:5]) or 'their order'}. Give the same images, or another --workdir."
        )
    for split in ("train", "evaluation"):
        counts = [contents[split]["examples"] for contents in (before, now)]
        if counts[0] != counts[1]:
            what = f"{counts[0]:,} images in its {split} split, and {config.dataset} has {counts[1]:,} now"
        elif before[split]["names"] != now[split]["names"]:
            what = f"images of other names in its {split} split than {config.dataset} has now"
        else:
            continue
        raise UsageError(f"{workdir} holds a run with {what}. Give the same images, or another --workdir.")


def _read_contents(path):
    advice = "Copy it again, or start a new run in another --workdir."
    contents = read_json(path, dict, advice)
    splits = [contents.get(split) for split in ("train", "evaluation")]
    if "classes" not in contents or not all(isinstance(s, dict) and s.keys() >= {"examples", "names"} for s in splits):
        raise UsageError(f"{path} is damaged: it does not describe two splits. {advice}")
    return contents


def recipe_for(config, data: sources.Dataset, placement: towers.Placement) -> Recipe:
    """The recipe that a config describes, for a dataset. Raises UsageError if the number of classes is not accepted."""
    num_classes = config.num_classes or data.num_classes
    if not num_classes:
        raise UsageError(
            f"dataset {config.dataset!r} does not say how many classes it has. Set --config.num_classes=K."
        )
    if num_classes < 2:
        only = f" ({data.class_names[0]})" if data.class_names else ""
        raise UsageError(
            f"dataset {config.dataset!r} has one class only{only}; accepted are two or more. Add images of what is not "
            "of this class, in a class of their own."
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

    order = batches.Order.of_run(config, examples)

    def steps(epochs):
        return round(order.start(epochs) / config.batch_size)

    return Recipe(
        network=AlexNet(architecture, dtype=jnp.dtype(config.dtype), placement=placement),
        seed=config.seed,
        mean_at=config.mean_at,
        pca_steps=math.ceil(order.start(choices.pop("pca_epochs")) / config.batch_size),
        **choices,
        accumulate=config.accumulate,
        learning_rate=scale * config.learning_rate,
        warmup_steps=steps(config.warmup_epochs),
        end=num_steps(config, examples),
        cooldown_steps=round(config.cooldown * num_steps(config, examples)),
        schedule=tuple((steps(epoch), layer, scale * rate) for epoch, layer, rate in config.schedule),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        weight_decays=config.weight_decays,
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


def read_weights(path, trunk: bool = False):
    """Reads weights; all processes must read the same ones. For a workdir, the processes wait for each other."""
    hosts.together(lambda: convert.check_there(path))
    weights = convert.read(path, trunk=trunk)
    if jax.process_count() > 1:
        hosts.agree({f"what is in {path}": weights.digest})
    return weights


def num_steps(config, examples: int) -> int:
    """The number of steps of a run on this number of training examples."""
    return config.num_steps or -(
        -int(batches.Order.of_run(config, examples).start(config.num_epochs)) // config.batch_size
    )


def _read_statistics(run, training):
    """The statistics of the workdir; process 0 computes them if they are missing, or for training if damaged."""
    path, config = run.workdir / "statistics.npz", run.config

    def make():
        # config.json is saved last. If it is missing, a run that never started may have left the statistics of
        # other data.
        begun = (run.workdir / "config.json").exists()
        if jax.process_index() or (begun and path.exists() and _is_whole(path, training)):
            return
        statistics = run.data.statistics
        if statistics is None:
            size = {"image_size": config.image_size, "num_classes": run.recipe.network.architecture[-1].units}
            statistics = survey.survey(run.data.train, **size)
            survey.survey(run.data.evaluation, **size)
        if begun and _read_contents(run.workdir / CONTENTS).get("statistics") != statistics.digest:
            raise UsageError(
                f"{path} cannot be made again: the images are not those that the run began with. Copy the file again, "
                "or give another --workdir."
            )
        statistics.save(path)

    hosts.together(make)
    hosts.exchange(run.workdir)
    return Statistics.load(path)


def _is_whole(path, training):
    try:
        Statistics.load(path)
        return True
    except UsageError as error:
        if not training:
            raise
        print(f"WARNING: {error} It is made again now.")
        return False


def config_of(workdir: Path, *, dataset: str | None = None, data_dir: str | None = None) -> ConfigDict:
    """The config of the run in a workdir.

    Args:
      workdir: folder of the run.
      dataset: where the images of a run on folder:PATH are now, as folder:PATH; or None.
      data_dir: folder of the data, instead of the run's own; or None.

    Raises:
      UsageError: if there is no run, or a run of another program version; or for a dataset of another kind.
    """
    saved = workdir / "config.json"
    if not saved.exists():
        raise UsageError(f"{workdir} holds no run: it has no config.json. Give the --workdir of a run of main.py.")
    config = config_lib.load(saved)
    config.update_from_flattened_dict(config_lib.with_newer(config_lib.flatten(config)))
    if missing := config_lib.FIELDS.keys() - config_lib.flatten(config).keys():
        raise UsageError(
            f"{workdir} holds a run of another version of this program: its config lacks {', '.join(sorted(missing))}. "
            "Evaluate it with the version that trained it."
        )
    if dataset is not None:
        if not all(name.startswith("folder:") for name in (dataset, config.dataset)):
            raise UsageError(
                f"--dataset is {dataset}, but the run in {workdir} is on {config.dataset}; only for a run on a folder "
                "can it be given, as folder:PATH, if the images were moved. Leave it out."
            )
        config.dataset = dataset
    if data_dir is not None:
        config.data_dir = data_dir
    return config
