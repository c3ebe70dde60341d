"""Evaluates a checkpoint of a workdir, or a file of weights."""

import jax
from jax.sharding import PartitionSpec

from alexnet_jax import hosts
from alexnet_jax.data import sources
from alexnet_jax.evaluation.errors import Errors, errors_table, views_by_name
from alexnet_jax.evaluation.evaluate import evaluate
from alexnet_jax.network import towers
from alexnet_jax.network.model import AlexNet, param_specs
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.setup import config_of, read_weights, set_up
from alexnet_jax.training.statistics import Statistics


def evaluate_workdir(workdir, *, which="last", dataset=None, data_dir=None, batch_size=None) -> dict[str, Errors]:
    """Evaluates a checkpoint of a run again. The run may be finished, or still running.

    Args:
      workdir: folder of the run, or its address gs://... or s3://...
      which: "last" or "best" checkpoint.
      dataset: where the images of a run on folder:PATH are now, if they were moved; or None.
      data_dir, batch_size: values to use instead of the run's own, or None.

    Returns:
      Errors by name: "one_view"; and "ten_views", if the network is tested with more than one view.

    Raises:
      UsageError: if workdir holds no run or no checkpoint, or its data is missing.
    """
    with hosts.workdir(workdir) as folder:
        return _evaluate_folder(folder, which, dataset, data_dir, batch_size)


def _evaluate_folder(workdir, which, dataset, data_dir, batch_size):
    config = hosts.together(lambda: config_of(workdir, dataset=dataset, data_dir=data_dir))
    if batch_size is not None:
        config.eval_batch_size = batch_size
    # This machine may have another number of devices than the machine that trained.
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
    """Evaluates weights from any source on a data set, with the preprocessing that they were trained with.

    Args:
      path: as in convert.read.
      dataset, data_dir: as in the config.
      split: as the config's eval_split.
      batch_size: images at a time; rounded up to a multiple of the number of devices.

    Returns:
      Errors by name: "one_view"; and "ten_views", if the network is tested with more than one view.

    Raises:
      UsageError: if there are no such weights or data, or the data has another number of classes.
    """
    hosts.agree({"--dataset": dataset, "--split": split, "--batch_size": batch_size})
    weights = read_weights(path)
    size = len(weights.mean_image)
    data = hosts.in_turn(
        lambda: sources.open_dataset(dataset, data_dir, image_size=size, train_split=None, eval_split=split)
    )
    hosts.agree({"examples to evaluate": len(data.evaluation)})
    known = weights.architecture[-1].units
    if data.num_classes not in (None, known):
        raise hosts.AgreedError(
            f"dataset {dataset!r} has {data.num_classes} classes, but {path} has {weights.classes}. Give a --dataset "
            "that has the same classes in the same order."
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
    """Returns the errors for each number of views, and prints them as a table."""
    with hosts.Sigterm() as sigterm:
        errors = {
            name: evaluate_views(params, views=n, interrupted=sigterm.check) for name, n in views_by_name(views).items()
        }
    if sigterm.came:
        raise hosts.AgreedError("the evaluation was stopped before its end. Start it again.")
    hosts.say(errors_table(title, errors))
    return errors
