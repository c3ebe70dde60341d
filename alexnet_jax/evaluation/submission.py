"""The file to submit to a challenge: the numbers of the five most probable classes of each test image."""

import os
import re
from collections.abc import Iterator, Sequence

import scipy.io

from alexnet_jax.data import labels
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.predict import Prediction, best, text_of


def class_ids(names: Sequence[str], mapping: str | None = None) -> list[int]:
    """The numbers of the classes in a submission: from the mapping, such as ILSVRC2012_ID; without one, 0, 1, 2, ...

    Args:
      names: names of the classes, as predict.class_names returns them.
      mapping: the development kit's meta.mat, or a text file of lines "ILSVRC2012_ID WordNet-id"; or None.

    Raises:
      UsageError: if the classes are ILSVRC's and there is no mapping, or the mapping lacks a class.
    """
    if mapping is None and set(names) == set(labels.synsets()):
        raise UsageError(
            "--mapping is missing: a submission needs the ILSVRC2012_ID of each class, and only the development kit "
            "has these, in data/meta.mat of ILSVRC2012_devkit_t12.tar.gz (https://image-net.org/download-images). "
            "Give --mapping=meta.mat, or a text file of lines such as '1 n02119789'."
        )
    if mapping is None:
        return list(range(len(names)))
    ids = _ids_of_meta(mapping) if mapping.endswith(".mat") else _ids_of_text(mapping)
    if missing := [name for name in names if name not in ids]:
        raise UsageError(
            f"--mapping={mapping} has no number for {len(missing)} of the {len(names)} classes, for example "
            f"{missing[0]!r}. Give a mapping with all classes, or leave --mapping out; the numbers are then 0, 1, ..."
        )
    return [ids[name] for name in names]


def _ids_of_text(path):
    lines = text_of(path, "--mapping").splitlines()
    fields = [re.fullmatch(r"(\d+)\s+(\S+)(?:\s.*)?", line.strip()) for line in lines if line.strip()]
    if not all(fields):
        raise UsageError(
            f"--mapping={path} has a line that is not 'ILSVRC2012_ID WordNet-id', such as '1 n02119789'. Correct it."
        )
    return {found[2]: int(found[1]) for found in fields}


def _ids_of_meta(path):
    try:
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {str(synset["WNID"]): int(synset["ILSVRC2012_ID"]) for synset in synsets}
    except Exception as error:  # of any type, because the file may hold anything
        raise UsageError(
            f"--mapping={path} is not a meta.mat of ILSVRC-2012's development kit ({error}). Copy it again."
        ) from error


def by_file_name(names: Sequence[str]) -> list[str]:
    """Images in the order of a submission: sorted by the names of their files, without the folders."""
    return sorted(names, key=lambda name: (os.path.basename(name), name))


def lines(made: Iterator[Prediction], ids: Sequence[int]) -> Iterator[str]:
    """The lines of a submission: the five most probable classes of each image by number, best first.

    Args:
      made: predictions, in the order of the files' names.
      ids: numbers of the classes, as class_ids returns them.

    Raises:
      UsageError: at the first file that is not an image, because without its line all later lines would be wrong.

    Source: readme.txt of ILSVRC-2012's development kit, "Submission format", task 1.
    """
    for prediction in made:
        if prediction.probabilities is None:
            raise UsageError(
                f"{prediction.name} is not an image: {prediction.error}. A submission needs one line for each "
                "image. Repair this file, or leave it out."
            )
        yield " ".join(str(ids[k]) for k in best(prediction.probabilities, 5))
