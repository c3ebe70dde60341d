"""Predicts the classes of image files."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from alexnet_jax.convert import Weights
from alexnet_jax.convert.weights import ILSVRC_2012
from alexnet_jax.data import labels
from alexnet_jax.data.any_format import MAX_BYTES, SUFFIXES, read_file
from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.trained import Trained

STDIN = "-"


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one file: (K,) float32 probabilities; or None and an error, if the file is not an image."""

    name: str
    probabilities: np.ndarray | None
    error: str = ""


def check_views(weights: Weights, views: int) -> None:
    """Raises UsageError if views is larger than Weights.views."""
    if views > weights.views:
        raise UsageError(
            f"--views is {views}; these weights accept at most {weights.views}, because a mirrored image may be "
            f"of another class. Give --views={weights.views}."
        )


def find(paths: Sequence[str]) -> list[str]:
    """The names of images, in the order of the paths.

    Args:
      paths: files; folders, whose images are found by their suffixes at any depth and sorted by their paths; "-" for
        one image on stdin.

    Raises:
      UsageError: if a path does not exist, a folder has no images, or stdin is given twice.
    """
    found = []
    for path in paths:
        if not path:
            raise UsageError("an image has an empty name. Give image files, folders, or - for an image on stdin.")
        if Path(path).is_dir():
            inside = sorted(f for f in Path(path).rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            if not inside:
                raise UsageError(
                    f"{path} holds no images: no file name ends in .jpg, .png or a similar suffix. Give another folder."
                )
            found += map(str, inside)
        elif path == STDIN or Path(path).exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist. Give image files, folders, or - for an image on stdin.")
    if found.count(STDIN) > 1:
        raise UsageError("- stands for one image on stdin, but it was given twice. Give it once.")
    return found


def predictions(trained: Trained, names: Sequence[str], views: int = 1) -> Iterator[Prediction]:
    """The predictions for files, in their order; files that are not images get an error instead.

    Args:
      trained: the network.
      names: as find returns them.
      views: as in errors.predict.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(names), trained.batch_size):
            part = names[start : start + trained.batch_size]
            read = list(pool.map(lambda name: _read(name, trained.image_size), part))
            squares = [square for square in read if not isinstance(square, str)]
            rows = iter(trained.probabilities(np.stack(squares), views) if squares else ())
            for name, square in zip(part, read, strict=True):
                yield Prediction(name, None, square) if isinstance(square, str) else Prediction(name, next(rows))


def _read(name, size):
    """The square image of a file, or the reason why there is none."""
    try:
        return decode_square(_stdin() if name == STDIN else read_file(name), size)
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _stdin():
    encoded = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(encoded) > MAX_BYTES:
        raise ImageError(f"it has more than {MAX_BYTES:,} bytes")
    return encoded


def best(probabilities: np.ndarray, count: int) -> np.ndarray:
    """(K,) probabilities -> the `count` most probable classes, best first; if two are equal, the lower number first."""
    return np.argsort(-probabilities, kind="stable")[:count]


def class_names(weights: Weights, path: str | None = None) -> tuple[str, ...]:
    """Returns the K class names: from a file, else from the weights, else ILSVRC's WordNet ids, else numbers from 0.

    Args:
      weights: the weights of the network.
      path: a text file with one name in each line, in the order of the classes; or None.

    Raises:
      UsageError: if the file cannot be read, or does not have K lines.
    """
    count = weights.architecture[-1].units
    if path is not None:
        names = text_of(path, "--names").splitlines()
        if len(names) != count:
            raise UsageError(
                f"--names={path} has {len(names)} lines, but the network has {count} classes. Give one "
                f"name in each line; the classes are: {weights.classes}."
            )
        return tuple(names)
    if weights.class_names is not None:
        return weights.class_names
    if weights.classes == ILSVRC_2012:
        return tuple(labels.synsets())
    return tuple(map(str, range(count)))


def text_of(path: str, flag: str) -> str:
    """Returns the content of a text file. If it cannot be read, raises UsageError with the name of the flag."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}={path} cannot be read as text ({error}). Give another file.") from error
