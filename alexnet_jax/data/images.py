"""Decodes images and makes them square, uint8 (paper, section 2), on the host."""

import struct

import cv2
import numpy as np
import simplejpeg
import tensorflow as tf

from alexnet_jax.data.any_format import ImageError, as_bmp, check_sides, orientation

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF and the other formats that Pillow reads, of at most 134 million pixels"

cv2.setNumThreads(1)  # images are already decoded in parallel, each in one thread
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # broken images raise ImageError instead

_UPRIGHT = {  # EXIF orientation -> the stored square turned upright
    2: lambda square: square[:, ::-1],
    3: lambda square: square[::-1, ::-1],
    4: lambda square: square[::-1],
    5: lambda square: square.transpose(1, 0, 2),
    6: lambda square: np.rot90(square, -1),
    7: lambda square: square.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda square: np.rot90(square),
}


# Warnings of the JPEG library, for which simplejpeg refuses an image: the first come with many images of TFDS's
# cats_vs_dogs, the second with those of some phones.
_HARMLESS = "extraneous bytes", "Invalid SOS parameters"


class _OtherFormatError(ImageError):
    """Not a JPEG, PNG, GIF or BMP."""


def decode_square(
    encoded: bytes, size: int, out: np.ndarray | None = None, *, exact: bool = False, upright: bool = True
) -> np.ndarray:
    """Decodes an image, rescales its shorter side to `size` and cuts out the central square.

    If the shorter side is `size` already, the pixels do not change. Otherwise the JPEG decoder first reduces the image
    by 2, 8/3, 4 or 8. If the image is then still more than 1.5 times too large, a 3x3 Gaussian filter smooths it.
    Bilinear interpolation then gives the final size. This is fast: it takes little longer than the decoding. If `exact`
    is True, only one step rescales the image: a triangle filter, as wide as the reduction, in float32.

    Grey images get three equal channels, and CMYK becomes RGB. Of 16-bit images the upper 8 bits are kept, and of an
    animation the first image. PNG ignores transparency; formats that only Pillow reads put transparent images on white.

    Args:
      encoded: a JPEG, PNG, GIF or BMP, or a file of another of any_format.FORMATS.
      size: side of the result in pixels.
      out: array for the result, (size, size, 3) uint8, C-contiguous; if None, a new one is made.
      exact: whether quality is more important than speed; for data that is prepared once.
      upright: whether to turn the image as its EXIF orientation says.

    Returns:
      `out`, or the new array.

    Raises:
      ImageError: if `encoded` is not an image, is damaged, or has more pixels than MAX_PIXELS by its header.

    Source: paper, section 2.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    try:
        _decode_as_stored(encoded, size, out, exact)
    except _OtherFormatError:
        if (bmp := as_bmp(encoded, upright)) is None:
            raise
        _decode_as_stored(bmp, size, out, exact)
        return out
    if upright and (turn := _UPRIGHT.get(orientation(encoded))):
        out[:] = turn(out.copy())
    return out


def _decode_as_stored(encoded, size, out, exact):
    """As decode_square, but with the orientation of the file, and only for JPEG, PNG, GIF and BMP."""
    height, width, plain = _header(encoded)
    check_sides(height, width)
    if plain and height == width == size:  # as in prepared data: the decoded image is the result
        _decode_plain(encoded, buffer=out)
        return
    reduces = not exact and min(height, width) > size
    image = _decode_plain(encoded, size if reduces else 0) if plain else _decode_other(encoded)  # (H, W, 3)
    if exact and min(image.shape[:2]) != size:
        out[:] = _through_a_triangle(image, size)
    else:
        _through_linear(image, out)


def _header(encoded: bytes) -> tuple[int, int, bool]:
    """Height and width from the header of an image, and whether it is a JPEG that simplejpeg can decode to RGB."""
    try:
        if encoded[:2] == b"\xff\xd8":
            return _jpeg_header(encoded)
        if encoded[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", encoded[16:24])
        elif encoded[:4] == b"GIF8":
            width, height = struct.unpack("<HH", encoded[6:10])
        elif encoded[:2] == b"BM":
            width, height = map(abs, struct.unpack("<ii", encoded[18:26]))  # height < 0: the top row is first
        else:
            raise _OtherFormatError(
                f"it begins with {encoded[:8]!r}, so it is not an image" if encoded else "it is empty"
            )
    except struct.error as error:
        raise ImageError("it ends within its header") from error
    return height, width, False


def _jpeg_header(encoded):
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
        return height, width, colors in ("YCbCr", "Gray", "RGB")
    except ValueError:
        pass  # simplejpeg does not read this kind
    try:
        height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
    except tf.errors.InvalidArgumentError as error:
        raise ImageError("its header is damaged") from error
    return height, width, False


def _decode_plain(encoded, at_least=0, buffer=None):
    """Decodes a JPEG, reduced by 2, 8/3, 4 or 8 so that no side is smaller than `at_least`; 0 means not reduced."""
    reduced = {}
    if at_least:  # colours need no smoothing if the image is reduced afterwards
        reduced = {"min_height": at_least, "min_width": at_least, "min_factor": 2, "fastupsample": True}
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", buffer=buffer, **reduced)
    except ValueError as error:
        if not any(warning in str(error) for warning in _HARMLESS):
            raise ImageError(str(error)) from error
    image = _decode_other(encoded)
    if buffer is None:
        return image
    buffer[:] = image
    return buffer


def _decode_other(encoded):
    if encoded[:2] == b"BM":
        return _decode_bmp(encoded)
    try:
        if encoded[:2] == b"\xff\xd8":
            return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        message = error.message.splitlines()[0].split("}} ")[-1].split(" [Op:")[0]  # without the name of the operation
        raise ImageError(message[:200]) from error


def _decode_bmp(encoded):
    # TensorFlow ignores the palette of a BMP.
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ImageError("Invalid BMP data")
    return image


def _through_linear(image, out):
    size = len(out)
    height, width = image.shape[:2]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    image = image[top : top + shorter, left : left + shorter]
    if shorter == size:
        out[:] = image
        return
    if (whole := shorter // size) > 1:
        image = cv2.resize(image, (shorter // whole,) * 2, interpolation=cv2.INTER_AREA)
    if len(image) > 1.5 * size:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)


def _through_a_triangle(image, size):
    shorter = min(image.shape[:2])
    sides = np.array([round(side * size / shorter) for side in image.shape[:2]])  # of the whole rescaled image
    square = tf.raw_ops.ScaleAndTranslate(  # as tf.image.resize(antialias=True), but only for the square
        images=image[None],
        size=[size, size],
        scale=(sides / image.shape[:2]).astype(np.float32),
        translation=-((sides - size) // 2).astype(np.float32),
        kernel_type="triangle",
        antialias=True,
    )
    return np.clip(np.round(square[0].numpy()), 0, 255).astype(np.uint8)
