"""Lists the images of class folders, SPLIT/CLASS/FILE. `folder:PATH` and `prepare` both use this list.

- Names that begin with a dot, and __MACOSX, are not seen.
- The suffix of a name says whether a file is an image. Images in folders below a class folder belong to that class.
- The classes are those that have images in the splits that are used, sorted by name.
- The order of the images is that of the digests of their names. So it is mixed, and the same on each machine.
"""

import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data.any_format import SUFFIXES
from alexnet_jax.errors import UsageError

EVAL_SPLITS = ("validation", "val", "test")
LAYOUT = "it holds SPLIT/CLASS/FILE, for example train/cat/1.jpg and val/cat/2.png"
SUFFIX = "The name of an image ends in .jpg, .jpeg, .png, .webp, .gif, .bmp, .tif or another suffix that Pillow reads."


class File(NamedTuple):
    """An image file: its name below the split's folder (CLASS/FILE), its path and its label."""

    name: str
    path: str
    label: int


@dataclasses.dataclass(frozen=True)
class Listed:
    """The images of the splits that are used.

    Attributes:
      classes: names; a label is a position in this list.
      splits: name of a split -> its images, in order.
      remarks: sentences about what was left out, and about classes that a split lacks.
    """

    classes: list[str]
    splits: dict[str, list[File]]
    remarks: list[str]


def visible(folder: str | Path) -> list[os.DirEntry]:
    """The entries of a folder, sorted by name, without those that a system or a program keeps there for itself."""
    try:
        with os.scandir(folder) as entries:
            seen = (e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX")
            return sorted(seen, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}). Give a folder that can be read.") from error


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one. UsageError if the system does not say."""
    return _ask(entry.is_dir, entry)


def is_file(entry: os.DirEntry) -> bool:
    """As is_folder, for files."""
    return _ask(entry.is_file, entry)


def _ask(question, entry):
    try:
        return question()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, which is neither
            return False
        raise UsageError(f"{entry.path} cannot be read ({error.strerror}). Correct that, or move it away.") from error


def splits_of(root: Path) -> list[str]:
    """The names of the splits of a folder. Raises UsageError if there is no such folder."""
    if not root.is_dir():
        raise UsageError(f"folder:{root}: there is no such folder. Give the path of a folder; {LAYOUT}.")
    return [entry.name for entry in visible(root) if is_folder(entry)]


def list_images(root: Path, splits: Sequence[str], more: Sequence[str] = ()) -> Listed:
    """Lists the images of some splits of a folder.

    Args:
      root: the folder.
      splits: names of its splits, without repetition.
      more: other splits. They may be empty, and what they hold of other classes, or of no class, is left out.

    Raises:
      UsageError: if one of `splits` holds no images in class folders, or images outside of them; if a name cannot be
        used.
    """
    found, left_out = {}, []
    for split in splits:
        before, folder = len(left_out), root / split
        found[split] = _by_class(folder, left_out, strict=True)
        if not any(found[split].values()):
            others = f", but {_files(left_out[before:])}" if left_out[before:] else ""
            raise UsageError(
                f"folder:{root}/{split} holds no images in class folders{others}. Fill it so that {LAYOUT}. {SUFFIX}"
            )
    classes = sorted({name for by_class in found.values() for name, files in by_class.items() if files})
    remarks = _about_classes(root, classes, found)
    for split in more:
        found[split] = _by_class(root / split, left_out, strict=False)
        for name in found[split].keys() - set(classes):
            left_out += [path for _, path in found[split].pop(name)]
        if not any(found[split].values()):
            remarks.append(f"Left out of folder:{root}: {split}, which holds no class folders with images.")
            del found[split]
    if left_out:
        remarks.append(f"Left out of folder:{root}: {_files(left_out)}. {SUFFIX}")
    labels = {name: label for label, name in enumerate(classes)}
    listed = {
        split: sorted(
            (File(name, path, labels[c]) for c, files in by_class.items() for name, path in files),
            key=lambda file, split=split: digest_of(split, file.name),
        )
        for split, by_class in found.items()
    }
    return Listed(classes, listed, remarks)


def digest_of(split: str, name: str) -> bytes:
    """16 bytes; images are stored and read in the order of these."""
    return hashlib.blake2b(name.encode(), digest_size=16, key=split.encode()[:64]).digest()


def check_name(name: str, where: str) -> None:
    """Raises UsageError for a name that cannot be printed; it would break lists and messages, or is not UTF-8."""
    if not name.isprintable():
        raise UsageError(f"{where}: {name!r} has characters that cannot be printed. Rename it.")


def _by_class(folder: Path, left_out: list[str], strict: bool) -> dict[str, list[tuple[str, str]]]:
    """The (name, path) of the images of each class folder; adds the paths of what is not an image to left_out."""
    found = {}
    for entry in visible(folder):
        if is_folder(entry):
            if entry.name != entry.name.strip():  # TFDS would read it without the blanks
                raise UsageError(
                    f"{entry.path!r}: the name of a class must not start or end with a blank. Rename that folder."
                )
            paths = _images(entry.path, (os.path.realpath(folder),), left_out)
            found[entry.name] = [(path[len(f"{folder}/") :], path) for path in paths]
            for name, _ in found[entry.name]:
                check_name(name, str(folder))
        elif strict and _is_image(entry):
            raise UsageError(
                f"{entry.path} is not in a class folder; accepted is SPLIT/CLASS/FILE. Move it into a class "
                f"folder. If {folder.name} is a class, give the folder that contains {folder.parent} instead."
            )
        else:
            left_out.append(entry.path)
    return found


def _images(folder: str, above: tuple[str, ...], left_out: list[str]) -> Iterator[str]:
    above = (*above, os.path.realpath(folder))
    for entry in visible(folder):
        if is_folder(entry):
            if os.path.realpath(entry.path) in above:  # a link to a folder that contains it
                left_out.append(entry.path)
            else:
                yield from _images(entry.path, above, left_out)
        elif _is_image(entry):
            yield entry.path
        else:
            left_out.append(entry.path)


def _is_image(entry):
    return is_file(entry) and os.path.splitext(entry.name)[1].lower() in SUFFIXES


def _about_classes(root, classes, found):
    """Sentences about classes without images, in all splits or in one."""
    remarks = []
    for split, by_class in found.items():
        if empty := [name for name in by_class if name not in classes]:
            remarks.append(f"Left out of folder:{root}: class folders of {split} without an image: {_some(empty)}.")
        if lacking := [name for name in classes if not by_class.get(name)]:
            remarks.append(
                f"folder:{root}/{split} has no images of {_some(lacking)}: {len(lacking):,} of {len(classes):,} "
                "classes. Check that a class has the same name in all splits."
            )
    return remarks


def _files(paths):
    are = "1 file that is not an image" if len(paths) == 1 else f"{len(paths):,} files that are not images"
    return f"{are} of a class ({_some(paths)})"


def _some(names: Sequence[str], most: int = 5) -> str:
    printable = [name.encode(errors="backslashreplace").decode() for name in names[:most]]  # not all are UTF-8
    return ", ".join(printable) + (", ..." if len(names) > most else "")
