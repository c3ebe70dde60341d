"""Speed of image loading: this project's loader, compared with JPEG decoders alone and with other loaders.

    python benchmarks/input.py --pictures=DIR                    # DIR holds CLASS/*.jpg at their original sizes
    python benchmarks/input.py                                   # 100 made-up pictures (pictures.py), repeated
    pip install torch torchvision grain                          # optional: with the other loaders as well

The script prepares the images at 256 x 256 (as JPEG and raw). Then each contestant reads the originals and the
prepared images, in turn, for several rounds, as far as --seconds allows. All loaders give batches of uint8 squares in
a shuffled order. The decoders decode JPEGs from memory, one thread on each core, and their pixels are thrown away.
The script prints medians of images/s, the median of the rounds' ratios to the decoder that the loader uses, and the
memory that a contestant adds (the highest PSS of its processes minus the memory before).
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent))

with contextlib.suppress(ImportError):  # before TensorFlow: in the other order Triton crashes
    import torchvision.io

import cv2
import numpy as np
import pictures
import shared
import simplejpeg
import tensorflow as tf

from alexnet_jax.data import batches, prepare, sources

SIZE, BATCH = 256, 128
CORES = shared.cores()


def timed(run):
    """A contestant: reads a number of epochs, and returns the number of images and the seconds."""

    def run_and_time(epochs):
        began = time.perf_counter()
        pictures = run(epochs)
        return pictures, time.perf_counter() - began

    return run_and_time


def by_simplejpeg(encoded):
    """The decoder of the loader."""
    simplejpeg.decode_jpeg(encoded, "RGB")


def by_tensorflow(encoded):
    """The decoder of TFDS's pipelines, with its defaults."""
    tf.io.decode_jpeg(encoded, channels=3)


def by_opencv(encoded):
    """OpenCV's own."""
    cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


def decoder(source, decode):
    """The upper limit: only decoding."""
    encoded, _ = source.read(np.arange(len(source)))

    def run(epochs):
        order = iter(range(epochs * len(encoded)))  # which the threads share

        def work():
            for i in order:
                decode(encoded[i % len(encoded)])

        with ThreadPoolExecutor(CORES) as pool:
            for done in [pool.submit(work) for _ in range(CORES)]:
                done.result()
        return epochs * len(encoded)

    return timed(run)


def decoders(source):
    """All decoders; the loader's decoder first."""
    return {
        "decoder: simplejpeg": decoder(source, by_simplejpeg),
        "decoder: TensorFlow": decoder(source, by_tensorflow),
        "decoder: OpenCV": decoder(source, by_opencv),
    }


def ours(source):
    """The loader of main.py, from its start to its last batch."""
    seeds = itertools.count()

    def run(epochs):
        steps = epochs * len(source) // BATCH
        order = batches.Order(len(source), next(seeds))
        read = batches.train_batches(source, order=order, batch_size=BATCH, image_size=SIZE, start=0, stop=steps)
        return sum(len(batch["image"]) for batch in read)

    return timed(run)


class Files:
    """A dataset for PyTorch and Grain: a square image for each index, decoded by Pillow or by torchvision."""

    def __init__(self, paths, by):
        self.paths, self.by = paths, by

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.by(self.paths[index])


def by_pillow(path):
    """The same as torchvision's Resize(256) and CenterCrop(256) for a Pillow image."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    width, height = image.size
    if (shorter := min(width, height)) != SIZE:
        width, height = round(width * SIZE / shorter), round(height * SIZE / shorter)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.array(image.crop((left, top, left + SIZE, top + SIZE)))


def by_torchvision(path):
    """Tensors from torchvision's own JPEG decoder and its antialiased Resize."""
    from torchvision.transforms import v2

    image = torchvision.io.decode_image(path, mode=torchvision.io.ImageReadMode.RGB)
    return v2.functional.center_crop(v2.functional.resize(image, [SIZE], antialias=True), [SIZE, SIZE])


def torch_loader(paths, by):
    """PyTorch's DataLoader with a worker process for each core; the workers stay between epochs."""
    import torch

    loader = torch.utils.data.DataLoader(
        Files(paths, by), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=CORES, persistent_workers=True
    )
    return timed(lambda epochs: sum(len(batch) for _ in range(epochs) for batch in loader))


def grain_loader(paths):
    """Grain with Pillow, a worker process for each core; timed from the first batch, because the start takes long."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # Grain reads its own

    def run(epochs):
        data = grain.MapDataset.source(Files(paths, by_pillow)).shuffle(seed=0).repeat(epochs)
        data = data.batch(BATCH, drop_remainder=True).to_iter_dataset()
        batches = iter(data.mp_prefetch(grain.MultiprocessingOptions(num_workers=CORES)))
        next(batches)
        return timed(lambda _: sum(len(batch) for batch in batches))(epochs)

    return run


def peers(paths):
    """The other loaders of the same files, if they are installed."""
    found = {}
    with contextlib.suppress(ImportError):
        found["PyTorch DataLoader, Pillow"] = torch_loader(paths, by_pillow)
    with contextlib.suppress(ImportError, NameError):
        by_torchvision(paths[0])
        found["PyTorch DataLoader, torchvision"] = torch_loader(paths, by_torchvision)
    with contextlib.suppress(ImportError):
        found["Grain, Pillow"] = grain_loader(paths)
    return found


def lay_out(given: Path, records: int, folder: Path):
    """At least `records` images as folder/train/CLASS/FILE, by links; a few of them as validation."""
    files = sorted(path for path in given.glob("**/*/*") if path.is_file() and path.name[0] != ".")
    if not files:
        sys.exit(f"error: {given} holds no images in class folders. Give --pictures=DIR with DIR/CLASS/FILE.")
    for copy in range(-(-records // len(files))):
        for file in files:
            for split in ("train", "validation")[: 1 + (copy == 0)]:
                link = folder / split / file.parent.name / f"{copy}_{file.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.resolve())


def unpack(source, folder: Path):
    """The records of a prepared dataset as files, for loaders that read files."""
    folder.mkdir()
    for i in range(len(source)):
        (encoded,), _ = source.read(np.array([i]))
        (folder / f"{i}.jpg").write_bytes(encoded)
    return [str(folder / f"{i}.jpg") for i in range(len(source))]


class Memory:
    """Measures the highest memory of this process and its children inside a `with` block, in bytes."""

    def __enter__(self):
        self.before = self.highest = _memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.1):
            self.highest = max(self.highest, _memory())

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def _memory():
    total, processes = 0, [os.getpid()]
    for process in processes:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                processes += children.read_text().split()
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def compare(title, contestants, rounds, epochs, end):
    """Runs all contestants in turn and prints a table; the others are compared with the first.

    `rounds` is the largest number; there are fewer if they would not be over at `end` (see shared.rounds).
    """
    rates = {name: [] for name in contestants}
    memory = {}
    for name, run in contestants.items():  # warms up, starts the workers
        shared.say(f"{title}: first epoch of {name}")
        with Memory() as used:
            run(1)
        memory[name] = (used.highest - used.before) / 1e6
    for k in shared.rounds(rounds, end):
        shared.say(f"{title}: round {k + 1}")
        for name, run in contestants.items():
            images, seconds = run(epochs)
            rates[name].append(images / seconds)
    first, rows = next(iter(rates)), []
    for name, values in rates.items():
        ratio = statistics.median(rate / limit for rate, limit in zip(values, rates[first], strict=True))
        spread = [f"{rate:.0f}" for rate in (statistics.median(values), min(values), max(values))]
        rows.append([name, *spread, f"{ratio:.3f}", f"{memory[name]:.0f}"])
    print()
    shared.print_table([title, "images/s", "lowest", "highest", "ratio", "MB"], rows)


def main():
    """Prepares, reads, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder that holds, at any depth, class folders")
    parser.add_argument(
        "--records", type=int, default=5000, help="smallest number of images; they are repeated to reach it"
    )
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--seconds", type=float, default=600, help="about this long; fewer rounds on a slow machine")
    options = parser.parse_args()
    header = shared.machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shared.say("preparing the images")
        if not options.pictures:
            options.pictures = folder / "pictures"
            pictures.draw(options.pictures, min(100, options.records))
        lay_out(options.pictures, options.records, folder / "originals")

        def open_it(name, data_dir):
            return sources.open_dataset(
                name, str(data_dir), image_size=SIZE, train_split="train", eval_split="validation"
            ).train

        originals = open_it(f"folder:{folder / 'originals'}", "")
        for encoding in ("jpeg", "raw"):
            with contextlib.redirect_stdout(io.StringIO()):
                prepare.prepare(
                    f"folder:{folder / 'originals'}", str(folder / encoding), dataset="pictures", encoding=encoding
                )
        prepared, raw = (open_it("pictures", folder / encoding) for encoding in ("jpeg", "raw"))
        size = f"batches of {BATCH} at {SIZE} x {SIZE}"
        print(f"{len(originals)} images, {size}, at most {options.rounds} rounds; {header}")
        compare(
            "prepared",
            {
                **decoders(prepared),
                "this project": ours(prepared),
                "this project, raw": ours(raw),
                **peers(unpack(prepared, folder / "files")),
            },
            options.rounds,
            epochs=2,  # raw records are read fast; more of them, so that a loader's start counts little
            end=shared.end_after(options.seconds / 2),
        )
        compare(
            "originals",
            {
                **decoders(originals),
                "this project": ours(originals),
                **peers([originals.describe(i) for i in range(len(originals))]),
            },
            options.rounds,
            epochs=1,
            end=shared.end_after(options.seconds),
        )


if __name__ == "__main__":
    main()
