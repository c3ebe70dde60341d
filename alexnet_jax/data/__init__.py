"""The data path (paper, section 2): the only place that imports TensorFlow.

originals    tars, folders and TFDS's records, as pictures that can be listed and read
prepare      originals -> square pictures in array_record files, once
imagenet     what is special about ILSVRC-2012
labels       the labels that ILSVRC-2012 itself gives its pictures
sources      datasets by name, read by random access
digits       the digits that need no download
pictures     encoded bytes -> square uint8 pictures
any_picture  files of any format that Pillow reads -> the same
batches      the order of examples, and tf.data
statistics   mean image and colour PCA
survey       one pass before training that finds what is broken
"""


def hide_accelerators_from_tensorflow() -> None:
    """Keeps TensorFlow, which only reads data here, from taking the accelerator's memory."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
