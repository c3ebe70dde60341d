"""Reads images of any format that Pillow reads. The pixels are the same as in training."""

import io

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

from alexnet_jax.data.images import MAX_PIXELS, ImageError, decode_square

Image.init()
# An EPS file is a program: Pillow would run it with Ghostscript. Pillow has no decoder for the other formats here.
FORMATS = [name for name in Image.OPEN if name not in {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
"""The endings of the names of image files, in lower case."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_square(encoded: bytes, size: int) -> np.ndarray:
    """Decodes an image of any format, rescales its shorter side to `size` and cuts out the central square.

    If images.decode_square can read the file, the pixels are the same as in training. Otherwise Pillow reads it. If a
    file has several images, the first is used; transparent images are put on white; of 16-bit images the upper 8 bits
    are used. Unlike in training, the image is turned as its EXIF orientation says.

    Args:
      encoded: the bytes of a file.
      size: side of the result in pixels.

    Returns:
      (size, size, 3) uint8.

    Raises:
      ImageError: if the file is not an image, is damaged, or has more pixels than images.MAX_PIXELS or Pillow's limit.

    Source: paper, section 2.
    """
    try:
        square = decode_square(encoded, size)
    except ImageError as error:
        return decode_square(_as_bmp(encoded, error), size)
    turn = _UPRIGHT.get(_orientation(encoded))
    return square if turn is None else np.asarray(Image.fromarray(square).transpose(turn))


def _orientation(encoded):
    if b"Exif\0" not in encoded and b"eXIf" not in encoded:  # no EXIF data; so most images are not opened again
        return 1
    try:
        with _open(encoded) as image:
            return image.getexif().get(Tag.Orientation, 1)
    except Exception:  # the image is good, even if its EXIF data is not
        return 1


def _as_bmp(encoded, refused):
    """Reads a file with Pillow and returns it as a BMP for decode_square; `refused` is the error of decode_square."""
    try:
        with _open(encoded) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"its header claims {image.width} x {image.height} pixels")
            rgb = _rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise refused from None
    except ImageError:
        raise
    except Exception as error:  # it can have many types, because each format has its own parser
        raise ImageError(str(error) or type(error).__name__) from error
    file = io.BytesIO()
    rgb.save(file, "BMP")
    return file.getvalue()


def _open(encoded):
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def _rgb(image):
    if image.mode.startswith("I"):
        numbers = np.asarray(image)
        if numbers.min() < 0 or numbers.max() >= 2**16 or (image.mode == "I" and numbers.max() < 2**8):
            raise ImageError(f"its pixel values, {numbers.min()} to {numbers.max()}, are not those of a 16-bit image")
        return Image.fromarray((numbers // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("its pixels are floating-point numbers, and the value of white is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
