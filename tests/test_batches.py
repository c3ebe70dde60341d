"""The order of examples, batches from any step on, what happens to errors, and what is left behind."""

import collections
import dataclasses
import gc
import threading
import time

import apart
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet_jax.data import sources
from alexnet_jax.data.batches import Order, eval_batches, permutation, train_batches
from alexnet_jax.errors import UsageError

SIZE = 8


def png(image):
    return tf.io.encode_png(image).numpy()


@dataclasses.dataclass
class Recording:
    """Example i is an image of the value i, with label 10 i; remembers what was read."""

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


@dataclasses.dataclass
class Pixels(Recording):
    """Example i is three channels that count to i, stored as pixels, with label i: no time is spent on it."""

    def read(self, indices):
        indices = np.asarray(indices)
        self.asked.extend(indices.tolist())
        values = indices[:, None] >> np.array([0, 8, 16]) & 255
        return list(np.broadcast_to(values[:, None, None], (len(indices), SIZE, SIZE, 3)).astype(np.uint8)), indices


def examples_of_step(seed, step, batch_size, examples):
    return Order(examples, seed).of_step(step, batch_size)


def train(source, start, stop, **changes):
    arguments = {
        "order": Order(len(source), 5),
        "batch_size": 4,
        "image_size": SIZE,
        "start": start,
        "stop": stop,
    } | changes
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


def test_early_epochs_have_only_the_first_examples():
    order = Order(5, seed=3, early=4, early_epochs=2)
    seen = np.concatenate([order.of_step(step, 3) for step in range(6)])  # 2 epochs of 4, and 2 of 5
    want = [permutation(3, 0, 4), permutation(3, 1, 4), permutation(3, 2, 5), permutation(3, 3, 5)]
    assert seen.tolist() == np.concatenate(want).tolist()
    assert [order.start(epoch) for epoch in (0, 0.5, 1, 2, 3, 3.5)] == [0, 2, 4, 8, 13, 15.5]
    assert [float(order.epochs(order.start(epoch))) for epoch in (0, 0.5, 1, 2, 3, 3.5)] == [0, 0.5, 1, 2, 3, 3.5]
    assert [np.ravel(order.epoch_and_place(n)).tolist() for n in (0, 7, 8, 12, 13)] == [
        [0, 0], [1, 3], [2, 0], [2, 4], [3, 0]
    ]  # fmt: skip


def test_without_shuffling_the_order_is_the_stored_one():
    order = Order(5, shuffle=False)
    assert [order.of_step(step, 4).tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]


def test_a_batch_goes_over_the_end_of_an_epoch_into_the_next():
    order = np.concatenate([permutation(3, epoch, 5) for epoch in range(3)])
    assert examples_of_step(3, 1, 4, 5).tolist() == order[4:8].tolist()
    assert examples_of_step(3, 0, 13, 5).tolist() == order[:13].tolist()  # more than two epochs in one batch


@given(
    seed=st.integers(0, 2**40),
    examples=st.integers(1, 50),
    batch_size=st.integers(1, 40),
    epochs=st.integers(1, 3),
    cut=st.integers(0, 40),
)
@settings(max_examples=40)
def test_batches_are_permutations_by_however_many_processes(seed, examples, batch_size, epochs, cut):
    stop = -(-epochs * examples // batch_size)
    options = {"order": Order(examples, seed), "batch_size": batch_size}
    whole = train(Pixels(examples), 0, stop, **options)
    labels = np.concatenate([batch["label"] for batch in whole])
    for epoch, order in enumerate(np.split(labels[: epochs * examples], epochs)):
        assert order.tolist() == permutation(seed, epoch, examples).tolist()
    cut = min(cut, batch_size)
    first, second = (train(Pixels(examples), 0, stop, **options, rows=r) for r in (slice(0, cut), slice(cut, None)))
    pairs = zip(first, second, strict=True)
    assert_same([{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in pairs], whole)


# Batches


def test_a_batch_holds_the_images_labels_and_running_numbers_of_its_step():
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


def reads_no_more(source):
    """Waits until nothing is read any more."""
    before = -1
    while len(source.asked) > before:
        before = len(source.asked)
        time.sleep(0.2)


def test_a_run_that_is_resumed_reads_no_more_than_it_needs():
    examples, batch_size = 1_281_167, 128
    start = (50 * examples + 640_000) // batch_size
    source = Pixels(examples)
    batches = train_batches(
        source, order=Order(len(source)), batch_size=batch_size, image_size=SIZE, start=start, stop=start + 1000
    )
    batch = next(batches)
    reads_no_more(source)
    batches.close()
    wanted = examples_of_step(0, start, batch_size, examples)
    assert batch["label"].tolist() == wanted.tolist()
    assert batch["image"][:, 0, 0].tolist() == (wanted[:, None] >> np.array([0, 8, 16]) & 255).tolist()
    # One that is taken, one that waits, two that are made, and one on the way.
    assert len(source.asked) <= 5 * batch_size
    ahead = np.concatenate([examples_of_step(0, start + i, batch_size, examples) for i in range(5)])
    assert collections.Counter(source.asked) <= collections.Counter(ahead.tolist())


def test_a_batch_that_is_kept_is_not_overwritten():
    """The memory of those that are not is used again."""
    rng, kept = np.random.default_rng(0), []
    batches = train_batches(Pixels(1000), order=Order(1000, 5), batch_size=4, image_size=SIZE, start=0, stop=60)
    for step, batch in enumerate(batches):
        if rng.random() < 0.5:
            kept.append((step, batch["image"][1:]))  # a view of it is enough
    for step, pixels in kept:
        wanted = examples_of_step(5, step, 4, 1000)[1:, None] >> np.array([0, 8, 16]) & 255
        np.testing.assert_array_equal(pixels, np.broadcast_to(wanted[:, None, None], pixels.shape))


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
    with pytest.raises(UsageError, match="does not decode as an image") as error:
        train(source, 0, 2)
    message = str(error.value)
    assert message.startswith(f"{paths[4]} does not decode as an image (")
    assert "JPEG, PNG, WebP, GIF" in message
    assert "Repair or remove it" in message


def test_an_image_that_is_cut_off_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    whole = tf.io.encode_jpeg(noise).numpy()
    for name, content in (("a.jpg", whole), ("b.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    with pytest.raises(UsageError, match=r"b\.jpg does not decode"):
        list(eval_batches(sources.FolderSource("x", paths, np.zeros(2, np.int32)), batch_size=2, image_size=SIZE))


def test_a_file_that_vanished_is_named(tmp_path):
    source = sources.FolderSource("folder, split val", [str(tmp_path / "gone.png")], np.zeros(1, np.int32))
    with pytest.raises(UsageError, match=r"gone\.png cannot be read \(No such file"):
        list(eval_batches(source, batch_size=1, image_size=SIZE))


def record(image, **names):
    """An example as array_record files hold it."""
    features = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))}
    features["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[0]))
    for key, name in names.items():
        features[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[name]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ({"file_name": b"n01440764_1.JPEG"}, "n01440764_1.JPEG of small, split val"),
        ({"image/filename": b"a/b.png"}, "a/b.png of small, split val"),
        ({}, "record 2 of small, split val"),
    ],
)
def test_a_record_that_does_not_decode_is_named_by_its_key(names, wanted):
    records = [record(png(np.zeros((SIZE, SIZE, 3), np.uint8))) for _ in range(3)]
    records[2] = record(b"no image", **names)
    with pytest.raises(UsageError) as error:
        list(eval_batches(sources.RecordSource("small, split val", records), batch_size=2, image_size=SIZE))
    assert str(error.value).startswith(f"{wanted} does not decode as an image")


def test_an_error_that_is_no_image_s_fault_is_not_hidden():
    class Failing(Recording):
        def read(self, indices):
            if len(indices) > 1:
                raise ValueError("the disk is on fire")
            return super().read(indices)

    with pytest.raises(ValueError, match=r"^the disk is on fire$"):
        train(Failing(10), 0, 1)


@dataclasses.dataclass
class Broken(Recording):
    """Some examples are no images; those of the numbers in `slow` take their time."""

    broken: tuple = ()
    slow: tuple = ()

    def read(self, indices):
        encoded, labels = super().read(indices)
        time.sleep(0.1 * len(set(self.slow) & set(indices.tolist())))
        return [b"text" if i in self.broken else e for i, e in zip(indices, encoded, strict=True)], labels


def test_an_error_comes_at_its_own_step_and_names_the_first_image():
    """Whatever is found first in time: later steps, and later images of the step, are read at once."""
    batch_size, step = 24, 3
    here, later = (examples_of_step(5, s, batch_size, 200) for s in (step, step + 1))
    source = Broken(200, broken=(*here[[2, 20]], *later[:2]), slow=here[[0]])
    batches = train_batches(
        source, order=Order(len(source), 5), batch_size=batch_size, image_size=SIZE, start=0, stop=8
    )
    for i in range(step):
        assert next(batches)["label"].tolist() == (10 * examples_of_step(5, i, batch_size, 200)).tolist()
    with pytest.raises(UsageError) as error:
        next(batches)
    assert str(error.value).startswith(f"example {here[2]} does not decode as an image (it begins with b'text'")
    assert "Traceback" not in str(error.value)
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("kind", [OSError, KeyError, MemoryError])
def test_any_exception_arrives_as_itself(kind):
    raised = kind("of the source")

    class Failing(Recording):
        def read(self, indices):
            if 7 in indices:
                raise raised
            return super().read(indices)

    batches = eval_batches(Failing(20), batch_size=2, image_size=SIZE)
    for _ in range(3):
        next(batches)
    with pytest.raises(kind) as error:
        next(batches)
    assert error.value is raised


# What is left behind


def decoding():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def in_time(function):
    """Runs a function that might hang."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("taken", [0, 1, 2, 7])
@pytest.mark.parametrize("way", ["closed", "forgotten", "failed", "at its end"])
def test_nothing_goes_on_after_the_last_batch_is_taken(way, taken):
    source = Broken(100, broken=examples_of_step(5, taken, 4, 100)[[1]] if way == "failed" else ())

    def take():
        stop = taken if way == "at its end" else taken + 10
        batches = train_batches(source, order=Order(len(source), 5), batch_size=4, image_size=SIZE, start=0, stop=stop)
        for _ in range(taken):
            next(batches)
        if way == "closed":
            batches.close()
        elif way == "failed":
            with pytest.raises(UsageError):
                next(batches)
        elif way == "at its end":
            assert not list(batches)

    in_time(take)
    gc.collect()
    assert not decoding()
    asked = len(source.asked)
    assert asked <= 4 * (taken + 5)
    time.sleep(0.05)
    assert len(source.asked) == asked


def test_a_program_may_end_in_the_middle():
    program = """
import test_batches as tests
order = tests.Order(999)
batches = tests.train_batches(tests.Recording(999), order=order, batch_size=64, image_size=8, start=0, stop=10**6)
for _ in range(3):
    next(batches)
print("done")
"""
    assert apart.run(program, 100) == "done\n"


def ten_epochs():
    """Prints the peak of memory at the start, after epoch 2 and after epoch 10."""
    rng = np.random.default_rng(0)
    images = [
        tf.io.encode_jpeg(np.kron(rng.integers(0, 256, (30, 40 + i % 8, 3)), np.ones((10, 10, 1))).astype(np.uint8))
        for i in range(512)
    ]
    source = sources.RecordSource("small, split train", [record(image.numpy()) for image in images])
    print(apart.peak())
    for step, _ in enumerate(
        train_batches(source, order=Order(len(source)), batch_size=128, image_size=256, start=0, stop=40), start=1
    ):
        if step in (8, 40):
            print(apart.peak())


@pytest.mark.slow
def test_memory_does_not_grow():
    start, early, late = map(float, apart.run("import test_batches; test_batches.ten_epochs()", 500).split())
    assert late - early < 60
    buffers = 5 * 128 * 256 * 256 * 3 / 2**20
    assert late - start < 500 + buffers
