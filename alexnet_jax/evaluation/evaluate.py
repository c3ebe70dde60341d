"""Errors over a whole split: each example exactly once (paper, section 6)."""

import collections
import contextlib
import math

import jax

from alexnet_jax.data import batches, survey
from alexnet_jax.evaluation.errors import Errors, count_errors


def evaluate(
    params, source, statistics, *, network, batch_size, views=1, mean_at="crop", interrupted=lambda: False
) -> Errors | None:
    """Evaluates a network on each example of a source exactly once.

    Args:
      params: tree of parameters, towers first.
      source: a split (data/sources.py).
      statistics: Statistics of the training split; its mean image is subtracted.
      network: AlexNet with a placement on real devices.
      batch_size: images at a time, over all devices; a multiple of the number of devices that share a batch.
      views, mean_at: as in predict.
      interrupted: called before each batch; if it returns True, the evaluation stops and the result is None.

    Raises:
      UsageError: if a label is none of the network's classes.
      FloatingPointError: if the loss is not finite.
    """
    image_size = statistics.mean_image.shape[0]
    total, running = collections.Counter(), []
    placement = network.placement
    rows = placement.rows_here(batch_size)
    read = batches.eval_batches(source, batch_size=batch_size, image_size=image_size, rows=rows)
    with contextlib.closing(read):  # an error, too, stops its threads
        for batch in read:
            if interrupted():
                return None
            labels, at = batch["label"][batch["mask"]], batch["index"][batch["mask"]]
            survey.check_labels(labels, network.architecture[-1].units, lambda i, at=at: source.describe(int(at[i])))
            batch = placement.put(batch, batch_size)
            running.append(
                count_errors(params, batch, statistics.mean_image, network=network, views=views, mean_at=mean_at)
            )
            if len(running) > 1:  # fetched one batch late, so that the device does not wait
                total.update(_numbers(running.pop(0)))
    for counts in running:
        total.update(_numbers(counts))
    examples = total["examples"]
    assert examples == len(source), f"evaluated {examples} of {len(source)} examples"
    if not math.isfinite(total["loss"]):
        raise FloatingPointError(
            f"the loss on {source.name} is not finite: the parameters, or what the network computes from them, are "
            "not. Give an earlier checkpoint, or train again with a smaller --config.learning_rate."
        )
    return Errors(
        top1_error=100 * total["top1_wrong"] / examples,
        top5_error=100 * total["top5_wrong"] / examples,
        loss=total["loss"] / examples,
        examples=examples,
        views=views,
    )


def _numbers(counts):
    return {name: value.item() for name, value in jax.device_get(counts).items()}
