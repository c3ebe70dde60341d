"""A sheet of images as the network will see them, for a person to look at."""

import dataclasses
import functools
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.data.images import decode_square
from alexnet_jax.doctor.data import Seen
from alexnet_jax.doctor.findings import Findings, ok
from alexnet_jax.files import local_folder, write_whole
from alexnet_jax.training.setup import Run
from alexnet_jax.training.step import augmented

ROWS, EPOCHS = 8, 6
SMALLEST = 96  # pixels of a cell: small images are enlarged by a whole number
GAP, LABEL = 8, 24  # pixels between cells, and above a row for the name of its label
NAME = "doctor.png"


def write(run: Run, train: Seen, folder: Path) -> Findings:
    """Writes the sheet: one row for each training image, as stored and as its first epochs will show it."""
    examples = first_examples(run, train)
    if not examples:
        return  # no image decodes, as reported already
    names, path = run.data.class_names, local_folder(folder, "--output") / NAME
    titles = [f"{names[label] if names else label}" for label in (train.labels[i] for i in examples)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = paint(*images(run, examples), titles)
    write_whole(path, cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    yield ok(
        "sheet",
        f"{path}: {len(examples)} images as stored, then as in epochs 1 to {EPOCHS} of training (mean added back). "
        "Check its labels, colours and crops.",
    )


def first_examples(run: Run, train: Seen) -> list[int]:
    """The first examples of training, among those that were examined and decode."""
    order = run.order.of_epoch(0)
    return [int(i) for i in order if int(i) in train.digests][:ROWS]


def images(run: Run, examples: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images as stored, (R, S, S, 3) uint8, and as the first epochs show them, (R, EPOCHS, C, C, 3) uint8."""
    encoded, _ = run.data.train.read(np.array(examples))
    stored = np.stack(
        [p if isinstance(p, np.ndarray) else decode_square(p, run.config.image_size) for p in encoded]
    )  # (R, S, S, 3)
    order, shown = run.order, []
    without_colours = dataclasses.replace(run.recipe, pca_std=0.0)
    for epoch in range(EPOCHS):
        places = np.argsort(order.of_epoch(epoch))[examples]
        index = ((order.start(epoch) + places) % 2**32).astype(np.uint32)  # as train_batches counts
        batch = {"image": stored, "index": index}
        black = {"image": np.zeros_like(stored), "index": index}
        # A black image becomes minus the mean that was subtracted at the place of its crop.
        image = _augmented(run.recipe, batch, run.statistics) - _augmented(without_colours, black, run.statistics)
        shown.append(np.clip(np.round(image), 0, 255).astype(np.uint8))
    return stored, np.stack(shown, 1)


@functools.partial(jax.jit, static_argnums=0)
def _augmented(recipe, batch, statistics):
    return augmented(recipe, batch, statistics, jnp.zeros((), jnp.int32))


def paint(stored: np.ndarray, shown: np.ndarray, titles: list[str]) -> np.ndarray:
    """One RGB image of all of them, each row below its title; smaller ones at the top left of their cell."""
    side = stored.shape[1]
    scale = -(-SMALLEST // side)
    cell, rows, columns = scale * side, len(stored), 1 + shown.shape[1]
    canvas = np.full((rows * (LABEL + cell + GAP), columns * (cell + GAP), 3), 255, np.uint8)
    for row, (first, others, title) in enumerate(zip(stored, shown, titles, strict=True)):
        top = row * (LABEL + cell + GAP) + LABEL
        text = title.encode("ascii", "replace").decode()
        cv2.putText(canvas, text, (2, top - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        for column, image in enumerate([first, *others]):
            image = image.repeat(scale, 0).repeat(scale, 1)
            left = column * (cell + GAP)
            canvas[top : top + len(image), left : left + len(image)] = image
    return canvas
