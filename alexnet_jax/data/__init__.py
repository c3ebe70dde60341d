"""The data path (paper, section 2). Apart from export.py, only this package imports TensorFlow.

originals    lists and reads the images of tars, folders and TFDS's records
shards       one file of a prepared dataset
workers      many processes that make shards
prepare      originals -> square images in array_record files, once
imagenet     what only ILSVRC-2012 needs
labels       the labels of the images of ILSVRC-2012
sources      datasets by name, read by random access
digits       5,000 MNIST digits that need no download
images       encoded bytes -> square uint8 images
any_format   other formats, and the EXIF orientation, by Pillow
folders      lists the images of class folders
batches      the order of examples, and tf.data
survey       one pass over a split before training: statistics and broken examples
"""


def hide_accelerators_from_tensorflow() -> None:
    """Keeps TensorFlow, which only reads data here, from taking the accelerator's memory."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
