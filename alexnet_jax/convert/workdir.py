"""Reads the weights of a run of main.py from a checkpoint, and the statistics of its training set."""

from pathlib import Path
from typing import Literal

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.convert.weights import ILSVRC_2012, Weights, check, expected
from alexnet_jax.errors import UsageError
from alexnet_jax.files import read_json
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import with_classes
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.statistics import Statistics


def read(workdir: Path, checkpoint: Literal["last", "best"]) -> Weights:
    """Returns the weights of the last checkpoint of a workdir, or of the one with the smallest validation error."""
    for name in ("config.json", "statistics.npz"):
        if not (workdir / name).exists():
            raise UsageError(f"{workdir} holds no run: it has no {name}. Give the workdir of a run of main.py.")
    config = config_lib.load(workdir / "config.json")
    if missing := {"architecture", "augment.flip", "dataset", "num_classes"} - config_lib.flatten(config).keys():
        raise UsageError(
            f"{workdir} holds a run of another version of this program: its config lacks {', '.join(sorted(missing))}. "
            "Convert it with the version that trained it."
        )
    step, params, notes = _read_checkpoint(workdir, checkpoint)
    # Not from the shapes of the arrays: there an odd number of classes is rounded up to a multiple of the towers.
    classes = notes.get("num_classes") or config.num_classes
    if not classes or not networks.exists(config.architecture):
        raise UsageError(
            f"{workdir} holds a run of another version of this program, without its "
            f"{'architecture' if classes else 'number of classes'}. Convert it with the version that trained it."
        )
    architecture = with_classes(networks.named(config.architecture), classes)
    check(params, expected(architecture), workdir)
    statistics = jax.tree.map(np.float32, Statistics.load(workdir / "statistics.npz"))
    # Of folder:PATH only the name of the last folder is kept: the path is private, and others may receive the file.
    dataset = config.dataset.rstrip("/").rpartition("/")[2]
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=statistics.mean_image,
        pca=statistics.pca,
        mean_at=config.get("mean_at", "crop"),
        views=config.get("views", 10 if config.augment.flip else 5),
        classes=ILSVRC_2012 if dataset == "imagenet2012" and classes == 1000 else f"{classes} classes of {dataset}",
        class_names=_class_names(workdir / "classes.json", classes),
        source=f"step {step} of the run {workdir.resolve().name} ({config.architecture})",
    )


def _read_checkpoint(workdir, which):
    try:
        with Checkpoints(workdir) as checkpoints:
            step = checkpoints.step_of(which)
            return step, *checkpoints.params(step)
    except UsageError:
        raise
    except Exception as error:  # Orbax has no special error for incomplete files
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UsageError(
            f"the {which} checkpoint of {workdir} cannot be read ({reason}): it is damaged, or was not copied "
            "completely. Copy it again, or choose another with --checkpoint."
        ) from error


def _class_names(path, count):
    """The class names of the run's data set; None if it has no names, or another number of classes than the network."""
    if not path.exists():
        return None
    advice = "Start the run again, which writes it anew; or remove it, and classes are numbers."
    names = read_json(path, list | None, advice)
    if names and not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} is damaged: it is not a list of names. {advice}")
    return tuple(names) if names and len(names) == count else None
