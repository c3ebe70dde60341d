"""Test images with their most probable classes, and their nearest training images (paper, Figure 4)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from alexnet_jax.data.sources import Source
from alexnet_jax.evaluation import predict
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.inspection.report import figures

SHOWN, BARS, NEAREST = 8, 5, 6  # test images; classes and training images for each


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a source, which together are a source again."""

    source: Source
    indices: np.ndarray  # (n,) int64, indices in the source

    @property
    def name(self) -> str:
        """The name of the whole source."""
        return self.source.name

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        """As Source.read, with indices in this part."""
        return self.source.read(self.indices[indices])

    def describe(self, index):
        """As Source.describe, with an index in this part."""
        return self.source.describe(self.indices[index])


def part(source: Source, limit: int, seed: int) -> Part:
    """Returns all examples of a source, or `limit` of them, drawn by a seed; in stored order."""
    count = len(source)
    if count <= limit:
        return Part(source, np.arange(count))
    return Part(source, np.sort(np.random.default_rng(seed).choice(count, limit, replace=False)))


def through(trained: Trained, source: Source, make: Callable) -> tuple[np.ndarray, np.ndarray]:
    """The results of make, such as trained.probabilities, for a whole source, (n, ...); and its labels (n,) int32."""
    rows, labels = zip(*trained.over(source, make), strict=True)
    return np.concatenate(rows), np.concatenate(labels)


def read(trained: Trained, source: Source, indices: np.ndarray) -> np.ndarray:
    """The images of a source with these indices, (n, S, S, 3) uint8."""
    return through(trained, Part(source, np.asarray(indices)), lambda images: images)[0]


def choose(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Draws eight images by a seed, half of them classified wrongly if possible, and returns their indices.

    Args:
      probabilities: (n, K).
      labels: (n,).
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    wrong = probabilities.argmax(1)[order] != labels[order]
    wrong, right = order[wrong], order[~wrong]
    few = min(len(wrong), max(SHOWN // 2, SHOWN - len(right)))
    return np.concatenate([right[: SHOWN - few], wrong[:few]])


@dataclasses.dataclass(frozen=True)
class Bar:
    """A class, its probability in %, and whether it is the true one."""

    name: str
    percent: float
    true: bool


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A test image: its number in the split, its label, and the five most probable classes."""

    image: str
    example: int
    label: str
    bars: list[Bar]


def predictions(
    images: np.ndarray,
    examples: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    folder: Path,
) -> list[Prediction]:
    """Makes the left part of Figure 4, and writes predictions.png and predictions.csv.

    Args:
      images: (R, S, S, 3) uint8.
      examples: (R,) their numbers in the split.
      probabilities: (R, K).
      labels: (R,).
      names: names of the classes.
      folder: for the files.
    """
    made = []
    for image, example, row, label in zip(images, examples, probabilities, labels, strict=True):
        bars = [Bar(names[k], 100 * float(row[k]), bool(k == label)) for k in predict.best(row, BARS)]
        made.append(Prediction(figures.image_uri(image), int(example), names[label], bars))
    figures.save_png(lambda figure: _draw(figure, images, made), (10, 7), folder / "predictions.png")
    rows = [
        [p.example, p.label, rank, bar.name, bar.percent / 100, bar.true]
        for p in made
        for rank, bar in enumerate(p.bars, 1)
    ]
    header = ["example", "label", "rank", "class", "probability", "is_label"]
    figures.write_csv(folder / "predictions.csv", header, rows)
    return made


def _draw(figure, images, made):
    columns = SHOWN // 2
    axes = figure.subplots(4, columns, height_ratios=(3, 2, 3, 2), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for k, (image, prediction) in enumerate(zip(images, made, strict=True)):
        row, column = 2 * (k // columns), k % columns
        figures.show(axes[row, column], image, prediction.label)
        axis, bars = axes[row + 1, column], prediction.bars
        axis.set_axis_on()
        widths, colours = [bar.percent for bar in bars], ["C0" if bar.true else "C2" for bar in bars]
        axis.barh(range(len(bars)), widths, color=colours, hatch=["//" if bar.true else "" for bar in bars])
        axis.set(xlim=(0, 100), yticks=range(len(bars)), yticklabels=[bar.name[:24] for bar in bars])
        axis.set_xlabel("probability (%); hatched: the label", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A training image: its number in the split, its label, its distance, and whether it has the test image's label."""

    image: str
    example: int
    label: str
    distance: float
    same: bool


def nearest(query: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows by Euclidean distance, nearest first.

    Args:
      query: (R, D) float32.
      features: (n, D) float32, n at least 1.

    Returns:
      Their indices (R, m) and distances (R, m); m is 6, or n if there are fewer.
    """
    distances = np.stack([np.linalg.norm(features - row, axis=1) for row in query])  # (R, n)
    places = np.argsort(distances, 1, kind="stable")[:, :NEAREST]
    return places, np.take_along_axis(distances, places, 1)


def neighbours(
    shown: list[Prediction],
    images: np.ndarray,
    neighbour_images: np.ndarray,
    examples: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    names: list[str],
    folder: Path,
) -> list[list[Neighbour]]:
    """Makes the right part of Figure 4, a row for each test image, and writes neighbours.png and neighbours.csv.

    Args:
      shown: R test images.
      images: (R, S, S, 3) uint8, their pixels.
      neighbour_images: (R, m, S, S, 3) uint8, the training images.
      examples: (R, m) their numbers in the training split.
      labels, distances: (R, m).
      names: names of the classes.
      folder: for the files.
    """
    made = [
        [
            Neighbour(figures.image_uri(i), int(e), names[k], float(d), names[k] == test.label)
            for i, e, k, d in zip(*row, strict=True)
        ]
        for test, *row in zip(shown, neighbour_images, examples, labels, distances, strict=True)
    ]
    rows = [
        [test.example, test.label, rank, n.example, n.label, n.distance]
        for test, row in zip(shown, made, strict=True)
        for rank, n in enumerate(row, 1)
    ]
    header = ["test_example", "test_label", "rank", "train_example", "train_label", "distance"]
    figures.write_csv(folder / "neighbours.csv", header, rows)
    rows = [[image, *row] for image, row in zip(images, neighbour_images, strict=True)]
    titles = [
        [f"test:\n{test.label}", *(f"{n.label}\n{n.distance:.1f}" for n in row)]
        for test, row in zip(shown, made, strict=True)
    ]
    figures.save_gallery(rows, titles, folder / "neighbours.png")
    return made
