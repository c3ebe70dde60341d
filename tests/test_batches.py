"""The order of examples, batches from any step on, and pictures as the paper wants them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet_jax.config import UsageError
from alexnet_jax.data import sources
from alexnet_jax.data.batches import eval_batches, examples_of_step, permutation, train_batches
from alexnet_jax.data.pictures import decode_square

SIZE = 8


def png(image):
    return tf.io.encode_png(image).numpy()


@dataclasses.dataclass
class Recording:
    """Example i is a picture of the value i, with label 10 i; remembers what was read."""

    examples: int
    name: str = "recording"
    asked: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return self.examples

    def read(self, indices):
        self.asked.extend(int(i) for i in indices)
        encoded = [png(np.full((SIZE, SIZE, 3), i, np.uint8)) for i in indices]
        return encoded, np.array([10 * i for i in indices], np.int32)

    def describe(self, index):
        return f"example {index}"


def train(source, start, stop, **changes):
    arguments = {"seed": 5, "batch_size": 4, "image_size": SIZE, "start": start, "stop": stop} | changes
    return list(train_batches(source, **arguments))


def assert_same(these, those):
    assert len(these) == len(those)
    for one, other in zip(these, those, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# The order


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 500), examples=st.integers(1, 300))
@settings(deadline=None)
def test_an_epoch_is_a_permutation_of_all_examples(seed, epoch, examples):
    order = permutation(seed, epoch, examples)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(examples))


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 500))
@settings(deadline=None)
def test_epochs_and_seeds_have_different_orders(seed, epoch):
    order = permutation(seed, epoch, 100)
    assert not np.array_equal(order, permutation(seed, epoch + 1, 100))
    assert not np.array_equal(order, permutation(seed + 1, epoch, 100))


def test_the_order_is_the_same_in_every_process_and_for_ever():
    # A run that was begun with one order must not be resumed with another.
    assert permutation(0, 0, 10).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert permutation(7, 3, 10).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]


@given(seed=st.integers(0, 100), examples=st.integers(1, 60), batch_size=st.integers(1, 90), epochs=st.integers(1, 4))
@settings(deadline=None)
def test_each_example_comes_exactly_once_in_each_epoch(seed, examples, batch_size, epochs):
    steps = -(-epochs * examples // batch_size)
    seen = np.concatenate([examples_of_step(seed, step, batch_size, examples) for step in range(steps)])
    for epoch in np.split(seen[: epochs * examples], epochs):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(examples))


def test_a_batch_goes_over_the_end_of_an_epoch_into_the_next():
    order = np.concatenate([permutation(3, epoch, 5) for epoch in range(3)])
    assert examples_of_step(3, 1, 4, 5).tolist() == order[4:8].tolist()
    assert examples_of_step(3, 0, 13, 5).tolist() == order[:13].tolist()  # more than two epochs in one batch


# Batches


def test_a_batch_holds_the_pictures_labels_and_running_numbers_of_its_step():
    for step, batch in enumerate(train(Recording(10), 0, 5)):
        wanted = examples_of_step(5, step, 4, 10)
        assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (4, SIZE, SIZE, 3))
        np.testing.assert_array_equal(batch["image"], np.broadcast_to(wanted[:, None, None, None], (4, SIZE, SIZE, 3)))
        assert (batch["label"].dtype, batch["label"].tolist()) == (np.int32, (10 * wanted).tolist())
        assert (batch["index"].dtype, batch["index"].tolist()) == (np.uint32, list(range(4 * step, 4 * step + 4)))


@pytest.mark.parametrize("examples", [12, 10, 3], ids=["divisible", "not divisible", "fewer than a batch"])
@pytest.mark.parametrize("start", [1, 4, 7])
def test_batches_from_a_later_step_are_the_tail_of_those_from_the_first(examples, start):
    assert_same(train(Recording(examples), start, 8), train(Recording(examples), 0, 8)[start:])


def test_nothing_before_the_first_step_is_read_and_nothing_twice():
    source = Recording(100)
    train(source, 6, 9)
    wanted = [examples_of_step(5, step, 4, 100) for step in range(6, 9)]
    assert sorted(source.asked) == sorted(np.concatenate(wanted).tolist())  # one epoch: no example twice


def test_a_run_without_steps_reads_nothing():
    source = Recording(10)
    assert train(source, 4, 4) == []
    assert source.asked == []


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(1, 4)])
def test_a_process_reads_its_rows_of_each_batch_and_no_others(rows):
    source = Recording(10)
    parts = train(source, 1, 4, rows=rows)
    whole = train(Recording(10), 1, 4)
    assert_same(parts, [{name: array[rows] for name, array in batch.items()} for batch in whole])
    wanted = np.concatenate([examples_of_step(5, step, 4, 10)[rows] for step in range(1, 4)])
    assert sorted(source.asked) == sorted(wanted.tolist())


def test_the_running_number_goes_on_after_two_to_the_32():
    step = 2**32 // 4 - 1
    first, second = train(Recording(10), step, step + 2)
    assert first["index"].tolist() == [2**32 - 4, 2**32 - 3, 2**32 - 2, 2**32 - 1]
    assert second["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("examples", [8, 10, 3, 1])
def test_evaluation_sees_each_example_exactly_once(examples):
    batches = list(eval_batches(Recording(examples), batch_size=4, image_size=SIZE))
    assert len(batches) == -(-examples // 4)
    assert {len(batch["mask"]) for batch in batches} == {4}
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.dtype == bool
    for name, factor in (("image", 1), ("label", 10), ("index", 1)):
        values = np.concatenate([batch[name] for batch in batches])
        values = values[:, 0, 0, 0] if name == "image" else values
        assert values[mask].tolist() == [factor * i for i in range(examples)], name


def test_evaluation_in_parts_masks_what_is_past_the_end():
    whole = list(eval_batches(Recording(5), batch_size=4, image_size=SIZE))
    for rows in (slice(0, 2), slice(2, 4)):
        parts = list(eval_batches(Recording(5), batch_size=4, image_size=SIZE, rows=rows))
        assert_same(parts, [{name: array[rows] for name, array in batch.items()} for batch in whole])
    assert [batch["mask"].tolist() for batch in whole] == [[True] * 4, [True, False, False, False]]


# What does not decode


def test_a_file_that_does_not_decode_is_named_by_its_path(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        path.write_bytes(png(np.zeros((SIZE, SIZE, 3), np.uint8)))
    paths[4].write_bytes(b"this is text")
    source = sources.FolderSource("folder, split train", [str(p) for p in paths], np.zeros(6, np.int32))
    with pytest.raises(UsageError, match="does not decode as a picture") as error:
        train(source, 0, 2)
    message = str(error.value)
    assert message.startswith(f"{paths[4]} does not decode as a picture (")
    assert "JPEG, PNG, GIF" in message
    assert "Repair or remove it" in message


def test_a_picture_that_is_cut_off_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = tf.io.encode_jpeg(noise).numpy()
    for name, content in (("a.jpg", whole), ("b.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    with pytest.raises(UsageError, match=r"b\.jpg does not decode"):
        list(eval_batches(sources.FolderSource("x", paths, np.zeros(2, np.int32)), batch_size=2, image_size=SIZE))


def test_a_file_that_vanished_is_named(tmp_path):
    source = sources.FolderSource("folder, split val", [str(tmp_path / "gone.png")], np.zeros(1, np.int32))
    with pytest.raises(UsageError, match=r"gone\.png does not decode as a picture .*No such file"):
        list(eval_batches(source, batch_size=1, image_size=SIZE))


class Records(list):
    """Records in memory, in the form in which TFDS gives those of a file."""

    def __getitems__(self, indices):
        return [self[i] for i in indices]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ({"file_name": b"n01440764_1.JPEG"}, "n01440764_1.JPEG of small, split val"),
        ({"image/filename": "a/b.png"}, "a/b.png of small, split val"),
        ({}, "record 2 of small, split val"),
    ],
)
def test_a_record_that_does_not_decode_is_named_by_its_key(key, wanted):
    records = Records({"image": png(np.zeros((SIZE, SIZE, 3), np.uint8)), "label": 0} for _ in range(3))
    records[2] = {"image": b"no picture", "label": 0, **key}
    with pytest.raises(UsageError) as error:
        list(eval_batches(sources.RecordSource("small, split val", records), batch_size=2, image_size=SIZE))
    assert str(error.value).startswith(f"{wanted} does not decode as a picture")


def test_an_error_that_is_no_picture_s_fault_is_not_hidden():
    class Failing(Recording):
        def read(self, indices):
            if len(indices) > 1:
                raise ValueError("the disk is on fire")
            return super().read(indices)

    with pytest.raises(tf.errors.OpError, match="the disk is on fire"):
        train(Failing(10), 0, 1)


# Pictures


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
    resized = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)
    top, left = (len(rows) - size) // 2, (len(columns) - size) // 2
    return resized[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "sides",
    [(40, 90), (91, 40), (16, 37), (300, 17), (64, 64), (5, 7), (1, 1), (17, 16), (33, 200)],
    ids=lambda sides: f"{sides[0]}x{sides[1]}",
)
def test_the_shorter_side_is_rescaled_and_the_central_square_cut_out(sides):
    image = np.random.default_rng(1).integers(0, 256, (*sides, 3), np.uint8)
    ours = decode_square(png(image), 16).numpy()
    assert (ours.dtype, ours.shape) == (np.uint8, (16, 16, 3))
    # Half a level of rounding, and a little of float32.
    assert np.abs(ours - reference(image, 16)).max() <= 0.51


def test_left_and_right_of_the_central_square_are_cut_off_alike():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, :10], image[:, 10:20], image[:, 20:] = 50, 100, 150
    assert (decode_square(png(image), 10).numpy() == 100).all()
    assert (decode_square(png(image.transpose(1, 0, 2)), 10).numpy() == 100).all()


@pytest.mark.parametrize("sides", [(24, 24), (24, 51), (50, 24)])
def test_a_picture_that_has_its_size_already_keeps_its_pixels(sides):
    image = np.random.default_rng(2).integers(0, 256, (*sides, 3), np.uint8)
    top, left = (sides[0] - 24) // 2, (sides[1] - 24) // 2
    np.testing.assert_array_equal(decode_square(png(image), 24).numpy(), image[top : top + 24, left : left + 24])


def test_a_picture_of_one_colour_keeps_it():
    for value in (0, 1, 127, 255):
        assert (decode_square(png(np.full((31, 77, 3), value, np.uint8)), 13).numpy() == value).all()


@pytest.mark.parametrize("size", [20, 9])
def test_a_grey_picture_gets_three_equal_channels(size):
    image = np.random.default_rng(3).integers(0, 256, (20, 20, 1), np.uint8)
    ours = decode_square(png(image), size).numpy()
    np.testing.assert_array_equal(
        ours, np.repeat(decode_square(png(np.repeat(image, 3, 2)), size).numpy()[..., :1], 3, 2)
    )
    if size == 20:
        np.testing.assert_array_equal(ours, np.repeat(image, 3, 2))


@pytest.mark.parametrize("form", ["jpeg", "png", "gif", "bmp"])
def test_each_format_that_the_message_names_decodes(form, tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = (200, 30, 60), (10, 120, 240)  # JPEG's blocks are of one colour
    Image.fromarray(image).save(tmp_path / "picture", form, quality=100, subsampling=0)
    ours = decode_square((tmp_path / "picture").read_bytes(), 16).numpy()
    assert np.abs(ours.astype(int) - image).max() <= (2 if form == "jpeg" else 0)


def test_a_cmyk_jpeg_decodes_to_its_colours(tmp_path):
    Image.new("CMYK", (12, 12), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = decode_square((tmp_path / "red.jpg").read_bytes(), 12).numpy()[6, 6]
    assert red > 200
    assert green < 60
    assert blue < 60
