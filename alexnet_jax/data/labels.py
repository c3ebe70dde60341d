"""The labels of the images of ILSVRC-2012, from the lists in the TFDS package."""

import functools
import re
from pathlib import Path

import tensorflow_datasets as tfds


@functools.cache
def synsets() -> list[str]:
    """The WordNet ids of the 1000 classes, in the order of their labels."""
    return _lines("labels.txt")


def synset_of(file_name: str) -> str | None:
    """The class (WordNet id) of an image, by its file name; None if the name does not give the class."""
    if found := re.match(r"(n\d{8})_\d+\.JPEG$", file_name):
        return found[1]
    found = re.match(r"ILSVRC2012_val_(\d{8})\.JPEG$", file_name)
    return _validation()[int(found[1]) - 1] if found and 0 < int(found[1]) <= len(_validation()) else None


@functools.cache
def _validation():
    return _lines("validation_labels.txt")  # in the order of the file names


def _lines(name):
    return Path(tfds.core.tfds_path(f"datasets/imagenet2012/{name}")).read_text().split()
