"""A small ImageNet: tars and folders of the form of the real ones, for the tests of its preparation."""

import io
import tarfile

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as odd

from alexnet_jax.data import imagenet, labels

CMYK, PNG, GREY = odd.CMYK_IMAGES[0], odd.PNG_IMAGES[0], "n01440764_10027.JPEG"
SIDES = ((70, 90), (120, 64), (64, 64), (33, 47), (201, 65))
TRAIN = {f"{s}_{n}.JPEG": SIDES[n % 5] for s in ("n01440764", "n15075141") for n in range(10026, 10034)}
TRAIN |= {CMYK: (70, 81), PNG: (90, 66)}
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": SIDES[number % 5] for number in range(1, 7)}


def image(name, sides):
    """A smooth coloured image (H, W, 3) uint8, another one for each name."""
    height, width = sides
    a, b, c = np.random.default_rng(list(name.encode())).uniform(50, 255, 3)
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    return np.stack([a * down + 0 * right, b * right + 0 * down, c * down * right], -1).astype(np.uint8)


def encoded(name, sides):
    """A file as ImageNet has it: JPEG, but for one in CMYK, one PNG and one grey."""
    pixels = image(name, sides)
    if name == CMYK:
        return saved(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95)
    if name == PNG:
        return tf.io.encode_png(pixels).numpy()
    return tf.io.encode_jpeg(pixels[..., :1] if name == GREY else pixels, quality=100).numpy()


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files():
    """Name -> bytes of the training and the validation set."""
    return tuple({name: encoded(name, sides) for name, sides in split.items()} for split in (TRAIN, VAL))


def tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def class_tars(train):
    synsets = sorted({name[:9] for name in train})
    return {f"{s}.tar": tar({n: c for n, c in train.items() if n.startswith(s)}) for s in synsets}


def write_tars(folder, train, val):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / imagenet.TARS[0]).write_bytes(tar(class_tars(train)))
    (folder / imagenet.TARS[1]).write_bytes(tar(val))
    return folder


def write_folder(folder, train, val, flat=False):
    """train/SYNSET/ and val/SYNSET/, or val/ without folders."""
    for split, content in (("train", train), ("val", val)):
        for name, data in content.items():
            inner = "" if flat and split == "val" else labels.synset_of(name)
            (folder / split / inner).mkdir(parents=True, exist_ok=True)
            (folder / split / inner / name).write_bytes(data)
    return folder


def contents(folder):
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
