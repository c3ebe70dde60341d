"""Images as the paper wants them: against float64, against other decoders, and what is broken in them."""

import collections
import io
import random
import struct
import time
import zlib

import apart
import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet_jax.data.any_format import MAX_PIXELS, MAX_SIDE, ImageError
from alexnet_jax.data.batches import Order, eval_batches, train_batches
from alexnet_jax.data.images import decode_square
from alexnet_jax.data.sources import FolderSource
from alexnet_jax.errors import UsageError

SIZE = 16
BOTH = pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])


def encode(image, form, **options):
    """An array, or an image of Pillow's, in a file format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(image):
    return encode(image, "PNG")


def jpeg(image, **options):
    return encode(image, "JPEG", **({"quality": 95, "subsampling": 0} | options))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def photo(height, width, seed=0):
    """As photographs have it: amplitudes fall as the frequency rises, and the channels are alike."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    white = rng.standard_normal((height, width, 1)) + 0.4 * rng.standard_normal((height, width, 3))
    pink = np.fft.ifft2(np.fft.fft2(white, axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    return np.clip(128 + 50 * pink / pink.std((0, 1)), 0, 255).round().astype(np.uint8)


def ripples(height, width, size):
    """Waves that are 32 pixels long once the shorter side is `size`; neighbours differ by 10 levels there at most."""
    y, x = (np.mgrid[:height, :width] + 0.5) * size / min(height, width) * 2 * np.pi / 32
    return np.stack([128 + 50 * np.sin(x + c) + 50 * np.sin(y + 2 * c) for c in range(3)], 2).round().astype(np.uint8)


def triangle(length, size):
    """(size, length) float64: the weights of a filter that is a triangle as wide as the reduction."""
    scale = length / size
    width = max(scale, 1)
    centers = (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centers[:, None]) / width
    weights = np.maximum(0, 1 - distances)
    return weights / weights.sum(1, keepdims=True)


def reference(image, size):
    """Shorter side to `size`, then the central square, in float64."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    rows, columns = triangle(height, round(height * size / shorter)), triangle(width, round(width * size / shorter))
    resized = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns, optimize=True)
    return central(resized, size)


def central(image, size):
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def squared(difference):
    return np.mean(np.square(difference, dtype=np.float64))


# What both ways have in common


@BOTH
def test_left_and_right_of_the_central_square_are_cut_off_alike(exact):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, :10], image[:, 10:20], image[:, 20:] = 50, 100, 150
    assert (decode_square(png(image), 10, exact=exact) == 100).all()
    assert (decode_square(png(image.transpose(1, 0, 2)), 10, exact=exact) == 100).all()


@BOTH
@pytest.mark.parametrize("sides", [(24, 24), (24, 51), (50, 24)])
def test_an_image_that_has_its_size_already_keeps_its_pixels(sides, exact):
    image = noise(*sides)
    np.testing.assert_array_equal(decode_square(png(image), 24, exact=exact), central(image, 24))


@BOTH
@pytest.mark.parametrize("sides", [(24, 24), (24, 51), (50, 24)])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 2}, {"subsampling": 1, "progressive": True}, {"subsampling": 2, "restart_marker_rows": 1}],
    ids=["4:4:4", "4:2:0", "progressive", "restarts"],
)
def test_a_jpeg_that_has_its_size_already_is_what_the_standard_says(sides, options, exact):
    encoded = jpeg(photo(*sides), **options)
    accurate = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(decode_square(encoded, 24, exact=exact), central(accurate, 24))


@BOTH
def test_an_image_of_one_colour_keeps_it(exact):
    for value in (0, 1, 127, 255):
        for encode_ in (png, jpeg):
            assert (decode_square(encode_(np.full((31, 77, 3), value, np.uint8)), 13, exact=exact) == value).all()


@BOTH
@pytest.mark.parametrize("size", [24, 16])
def test_a_jpeg_with_the_wrong_end_of_its_spectrum_is_read(size, exact):
    clean = jpeg(photo(24, 24))
    end = clean.index(b"\xff\xda") + 4 + 1 + 2 * 3 + 1  # always 63 in a sequential JPEG
    assert clean[end] == 63
    read = decode_square(clean[:end] + b"\0" + clean[end + 1 :], size, exact=exact)
    np.testing.assert_array_equal(read, decode_square(clean, size, exact=exact))


@BOTH
@pytest.mark.parametrize("size", [24, 16])
def test_bytes_between_the_parts_of_a_jpeg_do_no_harm(size, exact):
    clean = jpeg(photo(24, 24))
    at = clean.index(b"\xff\xda")
    out = np.zeros((size, size, 3), np.uint8)
    decode_square(clean[:at] + b"\1\2" + clean[at:], size, out, exact=exact)
    np.testing.assert_array_equal(out, decode_square(clean, size, exact=exact))


@BOTH
@pytest.mark.parametrize("size", [20, 9])
@pytest.mark.parametrize("encode_", [png, jpeg])
def test_a_grey_image_gets_three_equal_channels(encode_, size, exact):
    grey = np.random.default_rng(3).integers(0, 256, (20, 20), np.uint8)
    ours = decode_square(encode_(grey), size, exact=exact)
    assert (ours == ours[..., :1]).all()
    if encode_ is png:
        np.testing.assert_array_equal(ours, decode_square(png(np.stack([grey] * 3, 2)), size, exact=exact))


@BOTH
@pytest.mark.parametrize("encode_", [png, jpeg])
@pytest.mark.parametrize("sides", [(16, 16), (16, 20), (40, 60), (300, 200), (5, 9)])
def test_the_array_that_is_given_is_filled(sides, encode_, exact):
    image = encode_(photo(*sides))
    batch = np.full((3, SIZE, SIZE, 3), 77, np.uint8)
    assert decode_square(image, SIZE, batch[1], exact=exact).base is batch
    np.testing.assert_array_equal(batch[1], decode_square(image, SIZE, exact=exact))
    assert (batch[[0, 2]] == 77).all()


@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    size=st.integers(1, 60),
    exact=st.booleans(),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
)
@settings(max_examples=300)
def test_any_image_comes_out_in_its_size_without_overshoot(height, width, size, exact, low, high):
    low, high = sorted((low, high))
    image = np.random.default_rng(height * 81 + width).integers(low, high + 1, (height, width, 3), np.uint8)
    ours = decode_square(png(image), size, exact=exact)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
    assert (ours >= image.min((0, 1))).all()
    assert (ours <= image.max((0, 1))).all()
    ours = decode_square(jpeg(image), size, exact=exact)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)


# The exact way


@pytest.mark.parametrize(
    "sides",
    [(40, 90), (91, 40), (16, 37), (300, 17), (64, 64), (5, 7), (1, 1), (17, 16), (33, 200)],
    ids=lambda sides: f"{sides[0]}x{sides[1]}",
)
@pytest.mark.parametrize("encode_", [png, jpeg])
def test_the_shorter_side_is_rescaled_and_the_central_square_cut_out(sides, encode_):
    encoded = encode_(noise(*sides, seed=1))
    decoded = np.asarray(Image.open(io.BytesIO(encoded)))
    ours = decode_square(encoded, SIZE, exact=True)
    assert (ours.dtype, ours.shape) == (np.uint8, (SIZE, SIZE, 3))
    # Half a level of rounding, and a little of float32.
    assert np.abs(ours - reference(decoded, SIZE)).max() <= 0.51


# The fast way

# By how much a JPEG decoder reduces squares of these sides for a result of 64 pixels: libjpeg has 8 / 1, 2, 3 and 4.
REDUCTIONS = {40: 1, 88: 1, 120: 1, 144: 2, 176: 8 / 3, 240: 8 / 3, 256: 4, 480: 4, 512: 8, 640: 8}
FORMS = {"png": png, "jpeg": jpeg, "jpeg 4:2:0": lambda image: jpeg(image, subsampling=2)}


@pytest.fixture
def decoded_sides(monkeypatch):
    """The heights at which the JPEG decoder returns images."""
    decode, sides = simplejpeg.decode_jpeg, []

    def recording(*arguments, **options):
        image = decode(*arguments, **options)
        sides.append(image.shape[0])
        return image

    monkeypatch.setattr(simplejpeg, "decode_jpeg", recording)
    return sides


@pytest.mark.parametrize("side", REDUCTIONS)
def test_the_jpeg_decoder_reduces_as_far_as_it_can(side, decoded_sides):
    encoded = jpeg(photo(side, side))
    decode_square(encoded, 64)
    decode_square(encoded, 64, exact=True)
    assert decoded_sides == [side / REDUCTIONS[side], side]


@pytest.mark.parametrize("side", REDUCTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_fast_way_is_near_the_triangle(form, side):
    """Sides are multiples of 8, and square: nothing is out of its place."""

    def error_and_wanted(image):
        encoded = FORMS[form](image)
        wanted = reference(np.asarray(Image.open(io.BytesIO(encoded))), 64)
        return decode_square(encoded, 64) - wanted, wanted

    error, _ = error_and_wanted(ripples(side, side, 64))
    # Half of what neighbours differ by; colours of 4:2:0 are in pixels of twice the size.
    assert np.abs(error).max() <= (10 if form == "jpeg 4:2:0" else 5)
    error, wanted = error_and_wanted(photo(side, side))
    error = squared(error)
    assert error < squared((wanted[:-1] + wanted[1:]) / 2 - wanted[:-1])  # the same image, half a pixel aside
    assert 10 * np.log10(255**2 / error) > 28


@pytest.mark.parametrize("sides", [(97, 130), (131, 99), (121, 121), (187, 256), (257, 190), (505, 505), (514, 704)])
@pytest.mark.parametrize("form", FORMS)
def test_the_fast_way_misplaces_by_less_than_a_pixel(form, sides):
    """A ramp tells by its level which place of the image a pixel shows.

    Half a pixel of the image may go where the square is cut out of an odd rest. A JPEG's side that is no
    multiple of the reduction is rounded up, by 7/8 of a reduced pixel at most, which stretches the image.
    """
    allowed = 0.5 if form == "png" else 15 / 16
    for axis in (0, 1):
        length, shorter = sides[axis], min(sides)
        levels = (np.arange(length) + 0.5) * 255 / length
        image = np.broadcast_to(np.expand_dims(levels, (1 - axis, 2)), (*sides, 3)).round().astype(np.uint8)
        shown = decode_square(FORMS[form](image), 64).astype(np.float64).mean((1 - axis, 2)) * length / 255
        wanted = (length - shorter) / 2 + (np.arange(64) + 0.5) * shorter / 64
        rounding = 0.75 * length / 255  # of the levels, in pixels of the image
        # Next to the edge a filter sees less than it wants.
        assert np.abs(shown - wanted)[2:-2].max() <= allowed * shorter / 64 + rounding


@pytest.mark.parametrize("ratio", [1.9, 3.7])
@pytest.mark.parametrize("encode_", [png, lambda image: jpeg(image, quality=100)], ids=["png", "jpeg"])
@BOTH
def test_a_fine_checkerboard_becomes_grey(encode_, ratio, exact):
    side = round(ratio * 64)
    board = np.indices((side, side)).sum(0) % 2 * 255
    ours = decode_square(encode_(np.stack([board] * 3, 2).astype(np.uint8)), 64, exact=exact)[2:-2, 2:-2]
    # Boxes of three pixels, the worst there is on the way, hold five of one kind and four of the other.
    assert np.abs(ours - 127.5).max() <= 255 / 18 + 2


# What there is in folders


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(height, width, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def rows_of(image):
    """What a PNG compresses: each row, with no filter, in 8 bits RGB."""
    return b"".join(b"\0" + row.tobytes() for row in image)


def zeros(megabytes):
    """A stream that decompresses to many zeros."""
    compressor = zlib.compressobj()
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(megabytes)) + compressor.flush()


def without_adobe(encoded):
    """A CMYK JPEG without the segment that says that its inks are inverted."""
    start = encoded.index(b"\xff\xee")
    return encoded[:start] + encoded[start + 2 + struct.unpack(">H", encoded[start + 2 : start + 4])[0] :]


def inks(rgb, key):
    """Inks (H, W, 4) of 0 to 255 that make `rgb`, some of it by black: rgb = (255 - ink)(255 - key) / 255."""
    colours = 255 - rgb.astype(np.float64) * 255 / (255 - key)
    return np.concatenate([colours, np.full((*rgb.shape[:2], 1), key)], 2).round().astype(np.uint8)


def ycck(image):
    """A JPEG of inks that are stored as luminance and chrominance and a fourth."""
    key = 40
    light = 255 - inks(image, key)  # as Adobe stores it
    stored = np.asarray(Image.fromarray(255 - light[..., :3]).convert("YCbCr"))
    stored = np.concatenate([stored, light[..., 3:]], 2)
    encoded = bytearray(jpeg(Image.frombytes("CMYK", image.shape[1::-1], (255 - stored).tobytes())))  # Pillow inverts
    encoded[encoded.index(b"Adobe") + 11] = 2
    return bytes(encoded)


def with_side(encoded, width, height):
    """The same file, whose header claims another size."""
    encoded = bytearray(encoded)
    if encoded[:2] == b"\xff\xd8":
        start = encoded.index(b"\xff\xc0") + 5
        encoded[start : start + 4] = struct.pack(">HH", height, width)
    elif encoded[:2] == b"BM":
        encoded[18:26] = struct.pack("<ii", width, height)
    elif encoded[:4] == b"GIF8":
        encoded[6:10] = struct.pack("<HH", width, height)
    else:
        encoded[16:24] = struct.pack(">II", width, height)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    return bytes(encoded)


def good_images():
    """By name: a file, the square of SIZE that it should become, and the levels that the decoder may be off."""
    soft, hard = ripples(SIZE, 24, 32), noise(SIZE, 24)
    palette = Image.fromarray(soft).quantize(32)
    colours = np.asarray(palette.convert("RGB"))
    grey = np.asarray(Image.fromarray(soft).convert("L"))
    greys = np.stack([grey] * 3, 2)
    bits = np.asarray(Image.fromarray(soft).convert("1").convert("RGB"))
    alpha = np.random.default_rng(1).integers(0, 256, (*hard.shape[:2], 1), np.uint8)
    deep = np.random.default_rng(2).integers(0, 2**16, hard.shape, np.uint16)
    pure = Image.fromarray(np.uint8([[[255, 0, 0]]])).resize((24, SIZE))
    late = Image.fromarray(np.uint8([[[0, 0, 255]]])).resize((24, SIZE))
    rotated = Image.Exif()
    rotated[274] = 6
    dark = np.clip(soft, 0, 200)
    cmyk = Image.frombytes("CMYK", (24, SIZE), inks(dark, 40).tobytes())
    inverse = Image.frombytes("CMYK", (24, SIZE), (255 - inks(dark, 40)).tobytes())  # Pillow inverts it again
    whole = jpeg(soft)
    gif = encode(palette, "GIF")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(gif)).convert("RGB")), colours)
    for name, file, wanted, off in (
        ("png.png", png(hard), hard, 0),
        ("palette.png", png(palette), colours, 0),
        ("transparent palette.png", encode(palette, "PNG", transparency=3), colours, 0),
        ("alpha.png", png(np.concatenate([hard, alpha], 2)), hard, 0),
        ("grey.png", png(grey), greys, 0),
        ("grey and alpha.png", png(np.concatenate([grey[..., None], alpha], 2)), greys, 0),
        ("one bit.png", png(Image.fromarray(soft).convert("1")), bits, 0),
        ("16 bits.png", tf.io.encode_png(deep).numpy(), (deep >> 8).astype(np.uint8), 0),
        ("16 bits grey.png", tf.io.encode_png(deep[..., :1]).numpy(), np.repeat(deep[..., :1] >> 8, 3, 2), 0),
        ("gif.gif", gif, colours, 0),
        ("animated.gif", encode(pure, "GIF", save_all=True, append_images=[late]), np.asarray(pure), 0),
        ("bmp.bmp", encode(hard, "BMP"), hard, 0),
        ("palette.bmp", encode(palette, "BMP"), colours, 0),
        ("grey.bmp", encode(grey, "BMP"), greys, 0),
        ("one bit.bmp", encode(Image.fromarray(soft).convert("1"), "BMP"), bits, 0),
        ("from the top.bmp", with_side(encode(hard[::-1], "BMP"), 24, -SIZE), hard, 0),
        ("jpeg.JPEG", whole, soft, 5),
        ("grey.jpg", jpeg(grey), greys, 5),
        ("progressive.jpg", jpeg(soft, progressive=True), soft, 5),
        ("rgb.jpg", jpeg(soft, keep_rgb=True), soft, 5),
        ("rotated.jpg", jpeg(np.rot90(soft), exif=rotated), soft, 5),
        ("a png.JPEG", png(hard), hard, 0),
        ("bytes too many.jpg", whole[:-2] + bytes(99) + whole[-2:], soft, 5),
        ("more bytes after the end.jpg", whole + b"of another program", soft, 5),
        ("unknown revision.jpg", whole.replace(b"JFIF\0\1", b"JFIF\0\0"), soft, 5),
        ("adobe.jpg", jpeg(cmyk), dark, 5),
        ("inks as they are.jpg", without_adobe(jpeg(inverse)), dark, 5),
        ("ycck.jpg", ycck(dark), dark, 8),
    ):
        yield name, file, central(wanted, SIZE), off
    for form in ("PNG", "JPEG", "GIF", "BMP"):
        one = np.full((1, 1, 3), 90, np.uint8)
        yield f"1x1.{form}", encode(one, form), np.full((SIZE, SIZE, 3), 90), 0
        bars = np.full((20, 10_000, 3), 10, np.uint8)
        bars[:, 4984:5016] = 200  # in whole blocks of a JPEG
        flat = np.full((SIZE, SIZE, 3), 200)
        yield f"wide.{form}", encode(bars, form), flat, 0
        yield f"high.{form}", encode(bars.transpose(1, 0, 2), form), flat, 0
    image = noise(20, 20)
    filled = chunk(b"IDAT", zlib.compress(rows_of(image)))
    for kind, start in ((b"iTXt", b"k\0\1\0\0\0"), (b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0")):
        bomb = png_of(20, 20, chunk(kind, start + zeros(20)), filled)
        yield f"{kind.decode()} bomb.png", bomb, decode_square(png(image), SIZE), 255  # the way of rescaling is free


def bad_images():
    """By name: a file that is no image, or is damaged."""
    image = noise(24, 32)
    whole, frames = jpeg(image), encode(image, "GIF")
    yield "empty.JPEG", b""
    yield "text.JPEG", b"404 Not Found: the image is gone"
    yield "markers only.jpg", b"\xff\xd8\xff\xd9"
    for cut in (1, 2, 3, 20, 150, 400, len(whole) // 2, len(whole) - 30, len(whole) - 2, len(whole) - 1):
        yield f"cut at {cut}.jpg", whole[:cut]
    half = jpeg(image, progressive=True)
    yield "cut.progressive.jpg", half[: len(half) // 2]
    yield "cut, with an end.jpg", whole[: len(whole) // 2] + whole[-2:]
    half = jpeg(Image.fromarray(image).convert("CMYK"))
    yield "cut.cmyk.jpg", half[: len(half) // 2]
    for form in ("PNG", "GIF", "BMP"):
        whole = encode(image, form)
        for cut in (8, 20, 25, len(whole) // 2):
            yield f"cut at {cut}.{form}", whole[:cut]
    whole = png(image)
    yield "a byte changed.png", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    yield "too few rows.png", png_of(24, 32, chunk(b"IDAT", zlib.compress(rows_of(image[:20]))))
    for form in ("WEBP", "TIFF"):
        yield f"cut.{form.lower()}", encode(image, form)[:300]
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        yield f"claims too much.{form}", with_side(encode(image, form), 65_000, 65_000)
    for form in ("PNG", "GIF", "BMP"):
        yield f"of no width.{form}", with_side(encode(image, form), 0, 24)
    yield "of negative width.bmp", with_side(encode(image, "BMP"), -32, 24)
    yield (
        "a frame that is too large.gif",
        frames.replace(struct.pack("<HH", 32, 24), struct.pack("<HH", 65_000, 65_000)),
    )


GOOD, BAD = list(good_images()), dict(bad_images())


@BOTH
@pytest.mark.parametrize(("file", "wanted", "off"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_a_file_becomes_its_image(file, wanted, off, exact):
    ours = decode_square(file, SIZE, exact=exact)
    assert (ours.shape, ours.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert np.abs(ours.astype(int) - wanted).max() <= off


@BOTH
@pytest.mark.parametrize("file", BAD.values(), ids=BAD)
def test_a_file_that_is_broken_is_an_error_of_one_line(file, exact):
    with pytest.raises(ImageError) as error:
        decode_square(file, SIZE, exact=exact)
    message = str(error.value)
    assert 0 < len(message) <= 200
    assert "\n" not in message
    assert "{{" not in message  # TensorFlow's names of its operations


@BOTH
def test_a_claim_is_judged_by_height_times_width(exact):
    image = noise(20, 24)
    side = int(MAX_PIXELS**0.5)
    for form in ("PNG", "GIF", "BMP", "JPEG"):
        with pytest.raises(ImageError, match=rf"^its header claims {side + 1} x {side + 1} pixels$"):
            decode_square(with_side(encode(image, form), side + 1, side + 1), SIZE, exact=exact)
        with pytest.raises(ImageError, match=r"^its header claims 65000 x 3000 pixels$"):
            decode_square(with_side(encode(image, form), 65_000, 3000), SIZE, exact=exact)
    for form in ("PNG", "BMP"):  # not as much as it may claim, but more than it has
        with pytest.raises(ImageError, match=r"^(?!its header claims)"):
            decode_square(with_side(encode(image, form), side, side), SIZE, exact=exact)


@BOTH
def test_a_side_that_opencv_refuses_is_an_error_of_one_line(exact):
    thin = b"P6\n%d 1\n255\n" % (MAX_SIDE + 1) + bytes(3 * (MAX_SIDE + 1))
    for file in (thin, with_side(encode(noise(2, 3), "BMP"), MAX_SIDE + 1, 1)):
        with pytest.raises(ImageError, match=rf"^its header claims {MAX_SIDE + 1} x 1 pixels$"):
            decode_square(file, SIZE, exact=exact)


def folder(path, images):
    """Writes named files; a source of them, in their order."""
    for name, content in images.items():
        (path / name).write_bytes(content)
    return FolderSource("folder, split train", [str(path / name) for name in images], np.arange(len(images)))


def test_batches_hold_the_images_of_a_mixed_folder(tmp_path):
    source = folder(tmp_path, {name: file for name, file, _, _ in GOOD})
    wanted = np.stack([decode_square(file, SIZE) for _, file, _, _ in GOOD])
    seen = collections.Counter()
    batches = list(eval_batches(source, batch_size=10, image_size=SIZE))
    batches += train_batches(
        source, order=Order(len(source)), batch_size=10, image_size=SIZE, start=0, stop=len(batches)
    )
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], wanted[batch["label"]])
        seen.update(batch["label"].tolist())
    assert set(seen) == set(range(len(GOOD)))


@pytest.mark.parametrize("name", BAD)
def test_batches_name_the_file_that_is_broken(name, tmp_path):
    good = {f"{i}.png": png(noise(SIZE, SIZE)) for i in range(9)}
    source = folder(tmp_path, good | {name: BAD[name]})
    for batches in (
        eval_batches(source, batch_size=10, image_size=SIZE),
        train_batches(source, order=Order(len(source)), batch_size=10, image_size=SIZE, start=0, stop=1),
    ):
        with pytest.raises(UsageError) as error:
            list(batches)
        assert str(error.value).startswith(f"{tmp_path / name} does not decode as an image (")
        assert "JPEG, PNG, WebP, GIF" in str(error.value)


# Bytes at random, in a process of their own: a decoder that crashes must fail its test, not end it


def outcome(file, exact):
    """The reason why a file was refused, or None; anything but an image or a ImageError is raised."""
    try:
        ours = decode_square(file, SIZE, exact=exact)
    except ImageError as error:
        return str(error)
    assert (ours.shape, ours.dtype) == ((SIZE, SIZE, 3), np.uint8)
    return None


def decode_claims():
    image = noise(20, 24)
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        assert outcome(encode(image, form), False) is outcome(encode(image, form), True) is None
    bomb = zeros(200)
    before = apart.peak()
    for exact in (False, True):
        for form in ("JPEG", "PNG", "GIF", "BMP"):
            for sides in ((65_000, 65_000), (65_000, 3000), (3000, 65_000)):
                reason = outcome(with_side(encode(image, form), *sides), exact)
                assert reason == f"its header claims {sides[0]} x {sides[1]} pixels", (form, reason)
        outcome(png_of(20, 24, chunk(b"IDAT", bomb)), exact)  # whichever: an image, or too much
        for kind in (b"iTXt", b"zTXt", b"iCCP"):
            head = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
            outcome(png_of(20, 24, chunk(kind, head + bomb), chunk(b"IDAT", zlib.compress(rows_of(image)))), exact)
    print(apart.peak() - before)


def test_claims_and_bombs_take_no_memory():
    assert float(apart.run("import test_images; test_images.decode_claims()", 100)) < 50


def jpegs():
    """JPEGs of many kinds."""
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera of some make"
    kinds = [
        {},
        {"subsampling": 1, "quality": 60},
        {"subsampling": 2, "quality": 80},
        {"subsampling": 2, "progressive": True},
        {"restart_marker_blocks": 3},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"exif": exif, "comment": b"a comment", "optimize": True},
    ]
    for seed, options in enumerate(kinds):
        yield jpeg(photo(30 + 9 * seed, 70 - 7 * seed, seed), **options)
    yield jpeg(Image.fromarray(photo(40, 50)).convert("L"), progressive=True)
    yield jpeg(Image.fromarray(photo(40, 50)).convert("CMYK"))
    yield simplejpeg.encode_jpeg(photo(40, 50), colorsubsampling="411")
    yield jpeg(photo(SIZE, SIZE))


def mutated(file, rng):
    """A file with one to three faults."""
    file = bytearray(file)
    for _ in range(rng.randint(1, 3)):
        if not file:
            break
        place, length = rng.randrange(len(file)), rng.randint(1, 40)
        markers = [i for i in range(len(file) - 1) if file[i] == 0xFF and file[i + 1] not in (0, 0xFF)]
        kind = rng.choice(["flip", "flip", "bytes", "head", "delete", "insert", "cut", "twice", "marker"])
        if kind == "flip":
            file[place] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            file[place : place + 4] = rng.randbytes(len(file[place : place + 4]))
        elif kind == "head":  # where sizes, tables and marks are
            file[rng.randrange(min(len(file), 650))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
        elif kind == "delete":
            del file[place : place + length]
        elif kind == "insert":
            file[place:place] = rng.randbytes(length)
        elif kind == "cut":
            del file[place:]
        elif len(markers) > 1:
            start = rng.randrange(len(markers) - 1)
            segment = file[markers[start] : markers[start + 1]]
            if kind == "twice":
                to = rng.choice(markers)
                file[to:to] = segment
            else:
                file[markers[start] + 1] = rng.randrange(1, 255)
    return bytes(file)


def decode_mutations():
    rng = random.Random(2012)
    others = [encode(photo(30, 40), "GIF"), encode(photo(30, 40), "BMP"), png(photo(30, 40))]
    others += [encode(Image.fromarray(photo(30, 40)).quantize(16), form) for form in ("GIF", "BMP", "PNG")]
    originals = list(jpegs())
    files = [mutated(rng.choice(originals), rng) for _ in range(1000)]
    files += [mutated(rng.choice(others), rng) for _ in range(300)]
    assert [outcome(file, exact) for file in originals + others for exact in (False, True)] == [None] * 34
    before, slowest, refused = apart.peak(), 0, 0
    for file in files:
        for exact in (False, True):
            start = time.perf_counter()
            refused += outcome(file, exact) is not None
            slowest = max(slowest, time.perf_counter() - start)
    print(apart.peak() - before, refused, slowest)


def test_mutations_become_images_or_errors():
    growth, refused, slowest = map(float, apart.run("import test_images; test_images.decode_mutations()", 200).split())
    assert growth < 3 * MAX_PIXELS * 3 / 2**20
    assert 500 < refused < 2500  # some are harmless, some are not
    assert slowest < 10
