"""Reads with Pillow what the fast decoders do not: other formats, and the EXIF orientation."""

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

MAX_PIXELS = 2**27  # an image of more pixels is refused: this many take 400 MB as uint8
MAX_SIDE = 2**20  # OpenCV refuses longer sides
MAX_BYTES = 2**30  # a larger file is refused before it is read

Image.init()
# An EPS file is a program: Pillow would run it with Ghostscript. Pillow has no decoder for the other formats here.
FORMATS = [name for name in Image.OPEN if name not in {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}]
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
"""The endings of the names of image files, in lower case."""


class ImageError(ValueError):
    """The bytes do not decode as an image; the message says why."""


def read_file(path: str | Path) -> bytes:
    """Returns the bytes of an image file.

    Raises:
      ImageError: if it is not a regular file (a device or a pipe may never end), or has more than MAX_BYTES.
      OSError: if it cannot be read.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        there = os.fstat(file.fileno())
        if not stat.S_ISREG(there.st_mode):
            raise ImageError("it is not a regular file")
        if there.st_size > MAX_BYTES:
            raise ImageError(f"it has {there.st_size:,} bytes; accepted are {MAX_BYTES:,} at most")
        return file.read()


def _open_at_once(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would be waited for


def check_sides(height: int, width: int) -> None:
    """Raises ImageError for the sides of an image, in pixels, that are too long or whose product is too large."""
    if not 0 < height * width <= MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise ImageError(f"its header claims {width} x {height} pixels")


def orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation of an image, 1 to 8; 1, which is upright, if it has none or a damaged one."""
    if not _has_exif(encoded):  # so most images are not opened again
        return 1
    try:
        with _open(encoded) as image:
            value = image.getexif().get(Tag.Orientation, 1)
            return value if value in range(1, 9) else 1
    except Exception:  # the image is good, even if its EXIF data is not
        return 1


def _has_exif(encoded):
    if encoded[:2] != b"\xff\xd8":
        return encoded[:4] == b"\x89PNG" and b"eXIf" in encoded  # the other fast formats have no EXIF data
    at = 2
    while encoded[at : at + 1] == b"\xff" and (kind := encoded[at + 1 : at + 2]) != b"\xda":  # until the pixels begin
        if kind == b"\xe1" and encoded[at + 4 : at + 9] == b"Exif\0":
            return True
        # Bytes of 255 may fill the space before a segment.
        at += 1 if kind == b"\xff" else 2 + int.from_bytes(encoded[at + 2 : at + 4])
    return False


def as_bmp(encoded: bytes, upright: bool) -> bytes | None:
    """Returns the first image of a file as an RGB BMP; None if the file has none of FORMATS.

    Transparent images are put on white, and of 16-bit images the upper 8 bits are used.

    Args:
      encoded: the bytes of a file.
      upright: whether to turn the image as its EXIF orientation says.

    Raises:
      ImageError: if the file is damaged, or has more pixels than MAX_PIXELS or Pillow's limit.
    """
    try:
        with _open(encoded) as image:
            check_sides(image.height, image.width)
            rgb = _rgb(ImageOps.exif_transpose(image) if upright else image)
    except Image.UnidentifiedImageError:
        return None
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
