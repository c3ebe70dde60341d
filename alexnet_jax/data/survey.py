"""Reads a split once before training, computes its statistics, and finds broken examples."""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from alexnet_jax.data.batches import eval_batches
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.training.statistics import Statistics, Sums


def survey(source: Source, *, image_size: int, num_classes: int) -> Statistics:
    """Reads a split once and returns its statistics.

    Raises:
      UsageError: if an image does not decode, or its label is not in 0..num_classes-1; the message names the first one.
    """
    sums, label_counts = Sums(image_size), np.zeros(num_classes, np.int64)
    batches = eval_batches(source, batch_size=min(64, len(source)), image_size=image_size)
    with (
        contextlib.closing(batches),  # stops its threads here, not where an error's traceback is collected
        tqdm(total=len(source), desc=f"Reading {source.name}", unit=" images", mininterval=1) as bar,
    ):
        for batch in batches:
            kept = batch["mask"]
            check_labels(batch["label"][kept], num_classes, lambda i, b=batch: source.describe(int(b["index"][i])))
            label_counts += np.bincount(batch["label"][kept], minlength=num_classes)
            sums.add(batch["image"][kept])
            bar.update(int(kept.sum()))
    return dataclasses.replace(sums.statistics(), label_counts=label_counts)


def check_labels(labels: np.ndarray, num_classes: int, describe: Callable[[int], str]) -> None:
    """Raises UsageError if a label is outside 0..num_classes-1; `describe(i)` names the i-th example."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UsageError(
            f"{describe(wrong[0])} has the label {labels[wrong[0]]}; accepted are 0 to {num_classes - 1}. "
            "Set --config.num_classes to the number of classes, or choose a split that has labels (-1 means none)."
        )
