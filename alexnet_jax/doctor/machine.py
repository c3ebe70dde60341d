"""The machine: versions, devices, disk space."""

import importlib.metadata
import math
import os
import platform
import shutil
import tomllib
from pathlib import Path

import jax
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from alexnet_jax.doctor.findings import Findings, ok, problem, warning
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, local, stores
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import towers_of
from alexnet_jax.training import setup
from alexnet_jax.training.recipe import Recipe

ROOT = Path(__file__).parents[2]  # in a checkout; the metadata of an installed package says the same
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu", "tensorflow-datasets")
IMAGENET_BYTES = 38e9  # of the records at 256 pixels
NVIDIA = Path("/dev/nvidia0")


def versions() -> Findings:
    """Compares Python and the packages with the accepted versions."""
    python, requirements = _required()
    here = {name: _version(name) for name in (*SHOWN, *(r.name for r in requirements))}
    wrong = []
    if platform.python_version() not in python:
        wrong.append(f"python {platform.python_version()} (accepted is {python})")
    for requirement in requirements:
        version = here[requirement.name]
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version or 'is not installed'} (accepted is {requirement.specifier})")
    shown = ", ".join(f"{name} {here[name]}" for name in SHOWN if here[name])
    if wrong:
        yield warning(
            "versions",
            f"{', '.join(wrong)}; {shown}. Other versions may fail or give other numbers: "
            "pip install -r requirements.txt, in a new environment.",
        )
    else:
        yield ok("versions", f"python {platform.python_version()}, {shown}; all accepted by the requirements")


def _required():
    """The accepted versions of Python and of the packages that training needs on this machine."""
    file = ROOT / "pyproject.toml"
    if file.exists():  # in a checkout; an installed package has the same in its metadata
        project = tomllib.loads(file.read_text())["project"]
        lines = project["dependencies"] + project["optional-dependencies"]["train"]
        python = project["requires-python"]
    else:
        lines = importlib.metadata.requires("alexnet-jax") or []
        python = importlib.metadata.metadata("alexnet-jax")["Requires-Python"]
    requirements = map(Requirement, lines)
    return SpecifierSet(python), [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": "train"})]


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices(config):
    """Yields the devices and how the network is placed on them; returns the placement, or None if there is none."""
    try:
        placement = setup.place(config, batches=("batch_size", "eval_batch_size"))
    except (UsageError, RuntimeError) as error:  # RuntimeError: JAX cannot start the platform that was asked for
        yield problem("devices", str(error))
        return None
    found, shape = jax.devices(), placement.mesh.shape
    memory = (found[0].memory_stats() or {}).get("bytes_limit")
    rows = config.batch_size // math.prod(shape[axis] for axis in placement.batch_axes)
    layers = "all of the network"
    if placement.kind == "weird_trick":
        layers = "all convolutions and its part of the dense layers"
    elif shape["tower"] > 1:
        layers = f"{towers_of(networks.named(config.architecture)) // shape['tower']} of the network's towers"
    text = (
        f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
        + (f" with {memory / 2**30:.1f} GiB each" if memory else "")
        + f"; mesh {shape['data']} x {shape['tower']} (data x tower), each with {layers} "
        f"and {rows} of a batch's {config.batch_size} images"
    )
    if found[0].platform == "cpu" and NVIDIA.exists():
        yield warning(
            "devices", f'{text}. JAX does not use the NVIDIA GPU of this machine. Run: pip install "jax[cuda13]<0.13".'
        )
    else:
        yield ok("devices", text)
    return placement


def disk(config, workdir: Path, recipe: Recipe | None) -> Findings:
    """Disk space for the data, and for the checkpoints in the workdir."""
    folder = _data_folder(config)
    free = shutil.disk_usage(_existing(folder)).free
    stored = stores.is_address(config.data_dir)
    remedy = copies.ANOTHER_DISK if stored else "point --config.data_dir to another disk"
    if recipe is None and config.dataset == "imagenet2012" and free < IMAGENET_BYTES:
        yield warning(
            "disk of the data",
            f"{_gb(free)} free at {folder}; ImageNet's records take about {_gb(IMAGENET_BYTES)}. "
            f"Make room, or {remedy}.",
        )
    else:
        yield ok("disk of the data", f"{_gb(free)} free at {folder}")
    if recipe is None:
        return
    size = setup.state_bytes(recipe)
    place, free = _existing(workdir), shutil.disk_usage(_existing(workdir)).free
    where, remedy = copies.disk_of(workdir)
    seen = f"{_gb(free)} free at {where}"
    wanted = (
        f"{setup.STATES_KEPT} checkpoints of {_gb(size)} (best, last, the next) need {_gb(setup.STATES_KEPT * size)}"
    )
    if not os.access(place, os.W_OK):
        yield problem(
            "disk of the workdir", f"{place} cannot be written to. Give another --workdir, or change its permissions."
        )
    elif free < setup.STATES_KEPT * size:
        yield problem("disk of the workdir", f"{seen}; {wanted}. Make room, or {remedy}.")
    else:
        yield ok("disk of the workdir", f"{seen}; {wanted}")


def _data_folder(config):
    if config.dataset.startswith("folder:"):
        return local(config.dataset.removeprefix("folder:"), "folder")
    if stores.is_address(config.data_dir):
        return copies.cache()  # the records are kept there
    return local(config.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "--config.data_dir")


def _existing(path):
    """A path, or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _gb(size):
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
