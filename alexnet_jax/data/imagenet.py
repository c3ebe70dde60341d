"""What only ImageNet (ILSVRC-2012) needs: its tars, the classes by file name, and the 23 CMYK and PNG files."""

import functools

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as odd

from alexnet_jax.data.images import ImageError
from alexnet_jax.data.labels import synset_of, synsets
from alexnet_jax.errors import UsageError

NAME = "imagenet2012"
VERSION = "5.1.0"  # TFDS's version of the same images and labels
TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
SPLITS = {"train": "train", "val": "validation", "validation": "validation"}  # folder -> split; test has no labels
IMAGES = {"train": 1_281_167, "validation": 50_000}  # in 1000 classes
WHERE = "https://image-net.org/download-images"


def label_of(file_name: str, synset: str | None, place: str) -> int:
    """Returns the label of an image. `synset` is the class of its folder or tar, `place`.

    If `synset` is None, the file name gives the class, as ILSVRC names files.

    Raises:
      UsageError: if the class is not one of the 1000, if the file name gives another class than `synset`, or if neither
        gives a class.
    """
    named = synset_of(file_name)
    if (synset := synset or named) is None:
        raise UsageError(
            f"{place} holds {file_name}; accepted are ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG. "
            "Move it away."
        )
    if synset not in _labels():
        raise UsageError(
            f"{place} holds {synset!r}, which is not one of the 1000 classes of {NAME}; accepted are WordNet ids such "
            f"as {synsets()[0]}. Move it away, or prepare it as your own data set with --dataset=NAME."
        )
    if named not in (None, synset):
        raise UsageError(
            f"{place} holds {file_name} in the class {synset}, but by its name it belongs to the class {named}. Move "
            f"it to {named}, or unpack the tar again."
        )
    return _labels()[synset]


@functools.cache
def _labels():
    return {synset: label for label, synset in enumerate(synsets())}


def as_tfds_stores(file_name: str, encoded: bytes) -> bytes:
    """Returns the bytes that TFDS stores for a file. The 22 CMYK images and one PNG become RGB JPEGs of quality 100.

    Raises:
      ImageError: if such a file does not decode.
    """
    try:
        if file_name in odd.CMYK_IMAGES:
            return tfds.core.utils.jpeg_cmyk_to_rgb(encoded)
        return tfds.core.utils.png_to_jpeg(encoded) if file_name in odd.PNG_IMAGES else encoded
    except tf.errors.OpError as error:
        raise ImageError(error.message.splitlines()[0][:200]) from error
