"""Images of any format that Pillow reads, with the same pixels that training would give the network."""

import io

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

from alexnet_jax.data.images import MAX_PIXELS, ImageError, decode_square

Image.init()
# EPS is a program that Ghostscript would run. The other formats here are known to Pillow by name only.
FORMATS = [name for name in Image.OPEN if name not in {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
"""How the names of image files end, in lower case."""

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

    If images.decode_square can read the file, the pixels are the same as in training. Otherwise Pillow reads it: the
    first image of several, transparency over white, the upper 8 bits of 16. Unlike in training, the EXIF orientation is
    followed.

    Args:
      encoded: the bytes of a file.
      size: side of the result in pixels.

    Returns:
      (size, size, 3) uint8.

    Raises:
      ImageError: if it is no image, is damaged, or has more pixels than images.MAX_PIXELS or Pillow's limit.

    Source: paper, section 2.
    """
    try:
        square = decode_square(encoded, size)
    except ImageError as error:
        return decode_square(_as_bmp(encoded, error), size)
    turn = _UPRIGHT.get(_orientation(encoded))
    return square if turn is None else np.asarray(Image.fromarray(square).transpose(turn))


def _orientation(encoded):
    if b"Exif\0" not in encoded and b"eXIf" not in encoded:  # most images need not be opened a second time
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
    except Exception as error:  # of many types: each format has its own parser
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
            raise ImageError(f"its numbers, from {numbers.min()} to {numbers.max()}, are not those of 16 bits")
        return Image.fromarray((numbers // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("its pixels are floating-point numbers, which do not say what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
