"""The labels that ILSVRC-2012 itself gives its images, from the lists that come with TFDS."""

import functools
import re
from pathlib import Path

import tensorflow_datasets as tfds


@functools.cache
def synsets() -> list[str]:
    """The 1000 classes by their WordNet names, in the order of their labels."""
    return _lines("labels.txt")


def synset_of(file_name: str) -> str | None:
    """The class of an image by the name of its file; None where the name does not show it."""
    if found := re.match(r"(n\d{8})_\d+\.JPEG$", file_name):
        return found[1]
    found = re.match(r"ILSVRC2012_val_(\d{8})\.JPEG$", file_name)
    return _validation()[int(found[1]) - 1] if found and 0 < int(found[1]) <= len(_validation()) else None


@functools.cache
def _validation():
    return _lines("validation_labels.txt")  # in the order of the files' names


def _lines(name):
    return Path(tfds.core.tfds_path(f"datasets/imagenet2012/{name}")).read_text().split()
