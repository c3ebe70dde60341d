"""What is special about ImageNet (ILSVRC-2012): its tars, its classes in the names of files, and 23 odd files."""

import functools

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as odd

from alexnet_jax.data.images import ImageError
from alexnet_jax.data.labels import synset_of, synsets
from alexnet_jax.errors import UsageError

NAME = "imagenet2012"
VERSION = "5.1.0"  # TFDS's, of the same images and labels
TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
SPLITS = {"train": "train", "val": "validation", "validation": "validation"}  # folders -> splits; no test: no labels
IMAGES = {"train": 1_281_167, "validation": 50_000}  # of the 1000 classes
WHERE = "https://image-net.org/download-images"


def label_of(file_name: str, synset: str | None, place: str) -> int:
    """The label of an image: of its folder or tar, `synset`; or if None, by its file name, as ILSVRC names files.

    Raises:
      UsageError: if the synset is not a class, if the file's own name has another synset, or if neither names one.
    """
    named = synset_of(file_name)
    if (synset := synset or named) is None:
        raise UsageError(
            f"{place} holds {file_name}; accepted are ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG. "
            "Move it away."
        )
    if synset not in _labels():
        raise UsageError(
            f"{place} holds {synset!r}, which is none of the 1000 classes of {NAME}; accepted are WordNet ids such as "
            f"{synsets()[0]}. Move it away, or prepare a data set of your own with --dataset=NAME."
        )
    if named not in (None, synset):
        raise UsageError(
            f"{place} holds {file_name} as {synset}, but its name says that it is one of {named}. Move it there, or "
            "unpack the tar again."
        )
    return _labels()[synset]


@functools.cache
def _labels():
    return {synset: label for label, synset in enumerate(synsets())}


def as_tfds_stores(file_name: str, encoded: bytes) -> bytes:
    """The bytes that TFDS stores for a file: the few CMYK images and one PNG become RGB JPEGs of quality 100.

    Raises:
      ImageError: if such a file does not decode.
    """
    try:
        if file_name in odd.CMYK_IMAGES:
            return tfds.core.utils.jpeg_cmyk_to_rgb(encoded)
        return tfds.core.utils.png_to_jpeg(encoded) if file_name in odd.PNG_IMAGES else encoded
    except tf.errors.OpError as error:
        raise ImageError(error.message.splitlines()[0][:200]) from error
