"""The data: number of examples, labels, colours, broken images and duplicates."""

import collections
import dataclasses
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from alexnet_jax import hosts
from alexnet_jax.data import labels
from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.data.sources import Dataset, FolderSource, Source
from alexnet_jax.doctor.findings import Findings, ok, problem, some, warning
from alexnet_jax.errors import UsageError
from alexnet_jax.training.statistics import Statistics, Sums

SAMPLE, FEW = 20_000, 1_000  # images of a split that are examined: by default; without a search for duplicates
SECONDS = 30  # for a sample of a split
FOR_COLOURS = 1_000  # images
IMBALANCE = 10  # largest class divided by smallest class
LEAK = 1e-3  # largest share of the evaluation split that may also be in the training split

# ILSVRC-2012: examples; fewest and most examples of a class.
IMAGENET = {"train": (1_281_167, 732, 1_300), "evaluation": (50_000, 50, 50)}
# For its training images of 256x256 pixels: mean RGB in 0..255, colour variances of pixels in [0, 1].
IMAGENET_MEAN, IMAGENET_EIGENVALUES = (123.7, 116.8, 103.9), (0.228, 0.021, 0.006)
LEVELS, FACTOR = 8.0, 2.0  # largest differences of means (levels) and eigenvalues (factor)
FAINT = 2e-4  # eigenvalues below this are not compared: grey images have them


@dataclasses.dataclass
class Seen:
    """The result of examining a split, or a part of it that is drawn by a seed."""

    split: str  # "train" or "evaluation"
    source: Source
    labels: dict[int, int] = dataclasses.field(default_factory=dict)  # by example
    broken: dict[int, str] = dataclasses.field(default_factory=dict)  # why it does not decode
    digests: dict[int, bytes] = dataclasses.field(default_factory=dict)  # digests of the pixels that the network gets
    sums: Sums | None = None  # sums of the first images, for the colours

    @property
    def count(self) -> int:
        """The number of images that were examined."""
        return len(self.digests) + len(self.broken)

    @property
    def whole(self) -> bool:
        """Whether the whole split was examined."""
        return self.count == len(self.source)

    @property
    def all_labels(self) -> bool:
        """Whether the labels of the whole split are known."""
        return len(self.labels) == len(self.source)

    def words(self) -> str:
        """In words, how many images were examined."""
        return f"all {self.count:,}" if self.whole else f"a sample of {self.count:,} of {len(self.source):,}"


def look(split: str, source: Source, *, image_size: int, seed: int, duplicates: str) -> Seen:
    """Decodes a split, or a sample of it that SAMPLE and SECONDS limit, in as many threads as there are cores."""
    most = {"all": len(source), "sample": SAMPLE, "none": FEW}[duplicates]
    order = np.random.default_rng(seed).permutation(len(source))[:most]
    seen = Seen(split, source, sums=Sums(image_size))
    if isinstance(source, FolderSource):
        seen.labels = dict(enumerate(source.labels.tolist()))  # the labels of a folder cost nothing

    def look_at(index):
        try:
            (image,), (label,) = source.read(np.array([index]))
        except Exception as error:  # readers of damaged files raise errors of many types
            return index, None, str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        try:
            pixels = image if isinstance(image, np.ndarray) else decode_square(image, image_size)
        except ImageError as error:
            return index, label, str(error)
        return index, label, np.ascontiguousarray(pixels)

    until = time.monotonic() + SECONDS
    with (
        ThreadPoolExecutor(hosts.cores()) as pool,
        tqdm(total=len(order), desc=f"Reading {source.name}", unit=" images", leave=False, disable=None) as bar,
    ):
        for first in range(0, len(order), 256):
            if duplicates != "all" and time.monotonic() > until:
                break
            for index, label, found in pool.map(look_at, order[first : first + 256].tolist()):
                _note(seen, index, label, found)
                bar.update()
    return seen


def _note(seen, index, label, found):
    if label is not None:
        seen.labels[index] = int(label)
    if isinstance(found, str):
        seen.broken[index] = found
        return
    seen.digests[index] = hashlib.blake2b(found, digest_size=16).digest()
    if seen.sums.images < FOR_COLOURS:
        seen.sums.add(found[None])


def sizes(config, data: Dataset) -> Findings:
    """How many examples there are."""
    counts = (
        f"{len(data.train):,} to train on ({data.train.name}), "
        f"{len(data.evaluation):,} to evaluate on ({data.evaluation.name})"
    )
    for remark in data.remarks:
        yield warning("files", remark)
    if config.dataset == "imagenet2012" and not is_all_of_imagenet(config, data):
        wanted = " and ".join(f"{examples:,}" for examples, _, _ in IMAGENET.values())
        yield warning(
            "examples",
            f"{counts}: a part of ImageNet, which has {wanted}. To have all, prepare it again from complete tars.",
        )
    else:
        yield ok("examples", counts)


def is_all_of_imagenet(config, data: Dataset) -> bool:
    """Whether a dataset is ILSVRC-2012 with all its examples."""
    wanted = [examples for examples, _, _ in IMAGENET.values()]
    return config.dataset == "imagenet2012" and [len(data.train), len(data.evaluation)] == wanted


def broken(seen: Seen) -> Findings:
    """Images that do not decode."""
    check = f"images, {seen.split}"
    if seen.broken:
        named = some((f"{seen.source.describe(i)} ({why})" for i, why in sorted(seen.broken.items())), 3)
        yield problem(
            check,
            f"{len(seen.broken):,} of {seen.words()} do not decode: {named}. Training stops at the first of them: "
            "repair or remove them.",
        )
    else:
        yield ok(check, f"{seen.words()} decode")


def label_range(seen: Seen, num_classes: int) -> Findings:
    """Labels for which the last layer has no output."""
    check = f"labels, {seen.split}"
    wrong = [index for index, label in sorted(seen.labels.items()) if not 0 <= label < num_classes]
    if wrong:
        named = some((f"{seen.source.describe(i)} has {seen.labels[i]}" for i in wrong), 3)
        yield problem(
            check,
            f"{len(wrong):,} of {len(seen.labels):,} are not in 0..{num_classes - 1}: {named}. Set "
            "--config.num_classes to the number of classes, or choose a split that has labels (-1 means none).",
        )
    else:
        yield ok(check, f"{len(seen.labels):,} examined, all in 0..{num_classes - 1}")


def classes(seen: Seen, num_classes: int, names: list[str] | None, imagenet: bool) -> Findings:
    """Number of examples of each class: classes without examples, and uneven classes."""
    check = f"classes, {seen.split}"
    counts = np.bincount([v for v in seen.labels.values() if 0 <= v < num_classes], minlength=num_classes)
    empty = [_name(names, c) for c in np.flatnonzero(counts == 0)]
    few, many = int(counts.argmin()), int(counts.argmax())
    text = f"{num_classes:,} classes of {counts[few]:,} "
    if counts[few] < counts[many]:
        text += f"({_name(names, few)}) to {counts[many]:,} ({_name(names, many)}) "
    text += "examples" if seen.all_labels else f"examples in a sample of {len(seen.labels):,}"
    if empty and seen.all_labels and seen.split == "train":
        yield warning(
            check,
            f"no examples of {some(empty)}: {len(empty):,} of {num_classes:,} classes cannot be learned. Add images, "
            "or leave these classes out (a folder without images, or a --config.num_classes that is too large).",
        )
    elif empty:
        kind = "the split" if seen.all_labels else f"a sample of {len(seen.labels):,}"
        do = "Add images of them." if seen.all_labels else "Look at all: --duplicates=all."
        yield warning(check, f"no examples of {some(empty)} in {kind}: {len(empty):,} of {num_classes:,} classes. {do}")
    elif imagenet and seen.all_labels and (counts[few], counts[many]) != IMAGENET[seen.split][1:]:
        wanted = "{:,} to {:,}".format(*IMAGENET[seen.split][1:])
        yield warning(check, f"{text}; ImageNet has {wanted}. Prepare it again from complete tars.")
    elif counts[many] > IMBALANCE * counts[few] and len(seen.labels) >= 100 * num_classes:
        yield warning(
            check,
            f"{text}: {counts[many] / counts[few]:.0f} times as many; accepted are {IMBALANCE} times at most. The "
            "network will prefer the large classes: add images to the small ones, or read the error of each class.",
        )
    else:
        yield ok(check, text)


def _name(names, label):
    return names[label] if names and label < len(names) else f"class {label}"


def label_order(config, data: Dataset, train: Seen, evaluation: Seen) -> Findings:
    """Whether a label means the same class in both splits, and for ImageNet the same as in published weights."""
    if config.dataset == "imagenet2012":
        yield from _imagenet_order(data, (train, evaluation))
    elif isinstance(data.train, FolderSource):
        ours, theirs = (set(seen.labels.values()) for seen in (train, evaluation))
        if unknown := theirs - ours:
            named = some(data.class_names[label] for label in sorted(unknown))
            missing = some(data.class_names[label] for label in sorted(ours - theirs)) or "none"
            yield warning(
                "label order",
                f"the evaluation split has folders that the training split lacks: {named}; the reverse: "
                f"{missing}. Give a class the same name in both.",
            )
        else:
            yield ok("label order", f"folders by name, the same in both splits: {some(data.class_names, 3)}")
    else:
        names = some(data.class_names, 3) if data.class_names else "labels without names"
        yield ok("label order", f"both splits have the order of the dataset: {names}")


def _imagenet_order(data, splits):
    if data.class_names != labels.synsets():
        pairs = zip(data.class_names, labels.synsets(), strict=False)
        first = next((f"label {i} is {a}, not {b}" for i, (a, b) in enumerate(pairs) if a != b), "their number")
        yield problem(
            "label order",
            f"the classes are not TFDS's {len(labels.synsets()):,} synsets in order: {first}. Weights and results "
            "could not be compared with others: prepare the data again.",
        )
        return
    compared = 0
    for seen in splits:
        for index in list(seen.labels)[:FEW]:
            name = seen.source.describe(index).split(" of ")[0]
            wanted, label = labels.synset_of(name), seen.labels[index]
            if wanted is not None and wanted != _name(data.class_names, label):
                yield problem(
                    "label order",
                    f"{name} has label {label}, {_name(data.class_names, label)}, and is a {wanted}: the labels of the "
                    f"{seen.split} split are in another order. Prepare the data again.",
                )
                return
            compared += wanted is not None
    yield ok(
        "label order", f"TFDS's 1,000 synsets in order; {compared:,} images have the label that their file name says"
    )


def colours(config, data: Dataset, train: Seen) -> Findings:
    """Mean and colour PCA: compares stored ones with the images, and ImageNet's with known values."""
    if not train.sums.images:
        return  # no image decodes, as reported already
    sample = train.sums.statistics()
    stored = data.statistics is not None
    used = data.statistics if stored else sample
    text = f"{'stored' if stored else f'of {train.sums.images:,} images'}: {_numbers(used)}"
    if stored and (why := _differs(_mean(used), _values(used), _mean(sample), _values(sample))):
        yield problem(
            "colours",
            f"{text}; {train.sums.images:,} images of the training split give {_numbers(sample)}. {why} The "
            "stored statistics are not of these images: prepare the data again.",
        )
        return
    if config.dataset != "imagenet2012":
        yield ok("colours", text)
        return
    text += f"; ImageNet's are mean RGB {IMAGENET_MEAN}, colour variances {IMAGENET_EIGENVALUES}"
    why = _differs(_mean(used), _values(used), np.array(IMAGENET_MEAN), np.array(IMAGENET_EIGENVALUES))
    if not why:
        yield ok("colours", text)
    elif is_all_of_imagenet(config, data):
        yield problem("colours", f"{text}. {why} Prepare the data again.")
    else:
        yield warning("colours", f"{text}. {why} This may be right for a part of ImageNet: look at the images.")


def _mean(statistics: Statistics):
    return np.asarray(statistics.mean_image, np.float64).mean((0, 1))


def _values(statistics: Statistics):
    return np.asarray(statistics.pca.eigenvalues, np.float64)


def _numbers(statistics):
    mean = ", ".join(f"{level:.1f}" for level in _mean(statistics))
    return f"mean RGB ({mean}), colour variances ({', '.join(f'{v:.4f}' for v in _values(statistics))})"


def _differs(mean, values, wanted_mean, wanted_values) -> str:
    """A sentence on how the numbers differ from the expected ones; empty if they agree."""
    if np.abs(mean - wanted_mean).max() > LEVELS:
        if np.abs(mean[::-1] - wanted_mean).max() <= LEVELS:
            return "The channels are swapped: BGR instead of RGB."
        if np.abs(255 * mean - wanted_mean).max() <= LEVELS:
            return "The pixels were in 0..1; accepted is 0..255."
        return f"The means differ by {np.abs(mean - wanted_mean).max():.0f} levels; accepted are {LEVELS:.0f}."
    ratios = np.maximum(values, FAINT) / np.maximum(wanted_values, FAINT)
    if (worst := max(ratios.max(), 1 / ratios.min())) > FACTOR:
        return f"The colour variances differ by a factor {worst:.1f}; accepted is {FACTOR:.0f}."
    return ""


def twice_in(seen: Seen) -> Findings:
    """Images that are in a split more than once, with exactly the same pixels."""
    check = f"duplicates, {seen.split}"
    groups = collections.defaultdict(list)
    for index, digest in seen.digests.items():
        groups[digest].append(index)
    groups = [sorted(group) for group in groups.values() if len(group) > 1]
    if not groups:
        yield ok(check, f"no two with exactly the same pixels among {seen.words()}")
        return
    more = sum(len(group) - 1 for group in groups)
    torn = sum(len({seen.labels[i] for i in group}) > 1 for group in groups)
    pairs = some((" = ".join(map(seen.source.describe, group[:2])) for group in sorted(groups)), 3)
    yield warning(
        check,
        f"{more:,} have exactly the same pixels as another ({seen.words()} compared)"
        + (f", {torn:,} of them with another label" if torn else "")
        + f": {pairs}. Remove images that should not count twice.",
    )


def twice_across(train: Seen, evaluation: Seen) -> Findings:
    """Images that are in both splits, with exactly the same pixels."""
    check = "duplicates, across"
    known = {digest: index for index, digest in train.digests.items()}
    shared = [(i, known[digest]) for i, digest in evaluation.digests.items() if digest in known]
    compared = f"{evaluation.words()} images to evaluate on with {train.words()} to train on"
    if not shared:
        unseen = "" if train.whole and evaluation.whole else "; --duplicates=all compares all"
        yield ok(check, f"none with exactly the same pixels: compared {compared}{unseen}")
        return
    # In a sample of the training split, each image stands for several.
    share = min(1.0, len(shared) / len(evaluation.digests) * len(train.source) / len(train.digests))
    pairs = (f"{evaluation.source.describe(a)} = {train.source.describe(b)}" for a, b in sorted(shared))
    text = (
        f"{len(shared):,} images to evaluate on are also in the training split, {'' if train.whole else 'about '}"
        f"{share:.2%}; accepted is {LEAK:.1%} (compared {compared}, by exactly equal pixels): {some(pairs, 3)}. "
        "The errors will be too small: remove them from one of the two."
    )
    yield problem(check, text) if share > LEAK else warning(check, text)
