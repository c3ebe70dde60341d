"""The data path (paper, section 2): the only place that imports TensorFlow.

originals    tars, folders and TFDS's records, as images that can be listed and read
shards       one file of a prepared dataset
workers      many processes that make them
prepare      originals -> square images in array_record files, once
imagenet     what is special about ILSVRC-2012
labels       the labels that ILSVRC-2012 itself gives its images
sources      datasets by name, read by random access
digits       the digits that need no download
images       encoded bytes -> square uint8 images
any_format   files of any format that Pillow reads -> the same
batches      the order of examples, and tf.data
survey       one pass before training that finds what is broken
"""


def hide_accelerators_from_tensorflow() -> None:
    """Keeps TensorFlow, which only reads data here, from taking the accelerator's memory."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
