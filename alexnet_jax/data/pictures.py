"""From encoded bytes to square uint8 pictures (paper, section 2), in tf.data on the host."""

import tensorflow as tf


def decode_square(encoded, size):
    """Decodes a picture, rescales its shorter side to `size` and cuts out the central square.

    Args:
      encoded: scalar tf.string, a JPEG, PNG, GIF or BMP; grey pictures get three equal channels.
      size: side of the result in pixels.

    Returns:
      (size, size, 3) uint8 tensor.

    Source: paper, section 2. The filter is a triangle as wide as the reduction (antialias).
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)  # (H, W, 3)
    height, width = tf.unstack(tf.shape(image)[:2])
    shorter = tf.minimum(height, width)
    image = tf.cond(shorter == size, lambda: image, lambda: _rescale(image, height, width, shorter, size))
    top, left = (tf.shape(image)[0] - size) // 2, (tf.shape(image)[1] - size) // 2
    return tf.ensure_shape(image[top : top + size, left : left + size], (size, size, 3))


def _rescale(image, height, width, shorter, size):
    def scaled(side):
        return tf.cast(tf.round(side * size / shorter), tf.int32)

    resized = tf.image.resize(image, [scaled(height), scaled(width)], antialias=True)  # float32
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
