"""Images of every format and mode: colours by hand, the right side up, and errors for what is none."""

import contextlib
import io

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base as Tag

from alexnet_jax.data.any_format import SUFFIXES
from alexnet_jax.data.images import ImageError, decode_square

RED, WHITE = (255, 0, 0), (255, 255, 255)

OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 does not read back the YCbCr TIFF that it writes"
)


def encode(image, form, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height, width):
    """Four plain quarters, each of its own colour."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = (200, 30, 30), (30, 200, 30)
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = (30, 30, 200), (220, 220, 220)
    return image


@pytest.mark.parametrize("form", ["TIFF", "PPM", "TGA", "PCX", "SGI"])
@pytest.mark.parametrize("sides", [(16, 16), (32, 48), (48, 32)])
def test_what_only_pillow_reads_is_rescaled_as_in_training(form, sides):
    image = noise(*sides)
    np.testing.assert_array_equal(decode_square(encode(image, form), 16), decode_square(encode(image, "BMP"), 16))


def test_lossless_webp_and_its_first_image_of_several():
    images = [Image.new("RGB", (20, 20), colour) for colour in ((1, 2, 3), RED, WHITE)]
    for form, options in (("WEBP", {"lossless": True}), ("TIFF", {})):
        encoded = encode(images[0], form, save_all=True, append_images=images[1:], **options)
        assert (decode_square(encoded, 8) == (1, 2, 3)).all()


def test_the_first_image_of_an_animated_gif():
    images = [Image.new("P", (20, 20), index) for index in (1, 2)]
    for image in images:
        image.putpalette([0, 0, 0, *RED, *WHITE])
    assert (decode_square(encode(images[0], "GIF", save_all=True, append_images=images[1:]), 8) == RED).all()


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("RGBA", (200, 100, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),  # a fifth of red, four fifths of white
        ("LA", (0, 51), (204, 204, 204)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        pytest.param("YCbCr", (77, 128, 128), (77, 77, 77), marks=OLD_PILLOW),
    ],
)
def test_colours_of_a_tiff_are_those_that_a_person_sees(mode, colour, wanted):
    square = decode_square(encode(Image.new(mode, (9, 7), colour), "TIFF"), 4)
    assert square.shape == (4, 4, 3)
    assert (square == wanted).all()


def test_the_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    image.paste(0, (0, 0, 4, 8))
    image.info["transparency"] = 0
    square = decode_square(encode(image.convert("RGBA"), "WEBP", lossless=True), 8)
    assert (square[:, :4] == WHITE).all()
    assert (square[:, 4:] == RED).all()


@pytest.mark.parametrize("form", ["TIFF", "PPM", "PNG"])
def test_of_sixteen_bits_the_upper_eight_are_kept(form):
    image = Image.fromarray(np.full((5, 5), 0x4FFF, np.uint16))
    assert (decode_square(encode(image, form), 5) == 0x4F).all()


def test_numbers_that_do_not_tell_what_is_white_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        decode_square(encode(Image.new("F", (4, 4), 0.5), "TIFF"), 4)
    for value in (-1, 200, 2**16):
        with pytest.raises(ImageError, match="not those of a 16-bit image"):
            decode_square(encode(Image.new("I", (4, 4), value), "TIFF"), 4)


# What a camera writes for an image whose quarters are those of `smooth`, once it is turned as the note says.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image),
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_stands_as_its_exif_note_says(form, orientation):
    exif = Image.Exif()
    exif[Tag.Orientation] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    stored = np.ascontiguousarray(STORED[orientation](smooth(32, 48)))
    square = decode_square(encode(stored, form, exif=exif, **options), 32)
    np.testing.assert_allclose(square.astype(int), smooth(32, 48)[:, 8:40], atol=5)


def test_a_note_that_is_damaged_leaves_the_image_as_it_is():
    encoded = encode(noise(16, 16), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_square(encoded, 16), decode_square(encoded, 16, upright=False))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "it is empty"),
        (b"This is a text.", "it begins with b'This is '"),
        (encode(noise(20, 20), "PNG")[:100], None),
        (encode(noise(20, 20), "JPEG")[:300], None),
        (encode(noise(20, 20), "TIFF")[:300], None),
        (encode(noise(20, 20), "WEBP")[:300], None),
        (b"P6\n30000 30000\n255\n", "decompression bomb"),
        (b"P6\n13000 13000\n255\n", "decompression bomb|13000 x 13000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "it begins with b'%!PS-Ado'"),
    ],
    ids=["empty", "text", "PNG", "JPEG", "TIFF", "WebP", "bomb", "smaller bomb", "program"],
)
def test_what_is_no_whole_image_says_why(encoded, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_square(encoded, 16)
    assert str(caught.value)


@given(st.sampled_from(["TIFF", "WEBP", "PPM", "TGA", "JPEG2000"]), st.data())
def test_a_damaged_image_is_an_image_or_an_error(form, data):
    encoded = bytearray(encode(noise(9, 9), form))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):  # and no other
        assert decode_square(bytes(encoded), 8).shape == (8, 8, 3)


def test_names_of_image_files():
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"} <= SUFFIXES
    assert not {".txt", ".pdf", ".eps", ".json"} & SUFFIXES
