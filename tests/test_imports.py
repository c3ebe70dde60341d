"""Imports run downward, and each foreign package has its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports only from lines above its own; modules of the data path in their own order.
LEVELS = [
    {"cpu", "architectures", "files"},
    {"layers"},
    {"networks"},
    {"towers", "augment", "optimizer", "config"},
    {"model", "data", "hosts"},
    {"data.digits", "data.labels", "data.pictures", "data.statistics"},
    {"data.any_picture"},
    {"data.imagenet"},
    {"data.originals"},
    {"data.prepare"},
    {"data.sources"},
    {"data.batches"},
    {"data.survey"},
    {"summary", "checkpoint", "evaluate"},
    {"convert.weights"},
    {"convert.channels_first"},
    {"convert.torchvision", "convert.caffe", "convert.workdir"},
    {"convert"},
    {"inference"},
    {"features", "retrieve"},
    {"codes"},
    {"predict", "ensemble"},
    {"report.figures"},
    {"report.kernels", "report.curves", "report.pictures", "report.confusion", "report.augmentations"},
    {"report"},
    {"submission"},
    {"export"},
    {"outputs"},
    {"train"},
    {"loop", "communication"},
    {"experiments", "experiments.tables"},
    {"experiments.runs"},
    {"experiments.seeds"},
    {f"experiments.{n}" for n in ("figure1", "ablations", "lrn_cifar", "ensembles", "specialisation", "baseline")},
    {"doctor.findings"},
    {"doctor.machine", "doctor.data", "doctor.speed"},
    {"doctor.sheet"},
    {"doctor"},
    {"cli.common"},
    {"cli.predict", "cli.retrieve", "cli.ensemble", "cli.report", "cli.experiment"},
    {"cli"},
    {"__init__", "__main__"},
    {"main"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
ALLOWED = {
    "tensorflow": lambda module: module in {"main", "export"} or module.split(".")[0] == "data",
    "tensorflow_datasets": lambda module: module == "main" or module.split(".")[0] == "data",
    "orbax": lambda module: module == "checkpoint",
    "safetensors": lambda module: module == "convert.weights",
    "torch": lambda module: module == "convert.torchvision",
    "google": lambda module: module == "convert.caffe",
    "matplotlib": lambda module: module.split(".")[0] == "report",
    "jinja2": lambda module: module == "report",
    "skimage": lambda module: module == "experiments.baseline",
    "sklearn": lambda module: module == "experiments.baseline",
    "clu": lambda module: module in {"loop", "outputs"},
}


def modules():
    package = ROOT / "alexnet_jax"
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path.read_text()
    yield "main", (ROOT / "main.py").read_text()


def imported(source):
    """Every dotted name that a source imports, at whatever depth, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module, source):
    if module not in LEVEL:
        return [f"{module} has no place in LEVELS"]
    found = []
    for name in imported(source):
        top, *rest = name.split(".")
        if top in ALLOWED and not ALLOWED[top](module):
            found.append(f"{module} imports {top}")
        if top == "alexnet_jax":
            inner = next((".".join(rest[:k]) for k in (2, 1) if ".".join(rest[:k]) in LEVEL), "__init__")
            if LEVEL[inner] >= LEVEL[module]:
                found.append(f"{module} imports {inner}, which is not below it")
    return found


def test_imports_run_downward_and_foreign_packages_keep_their_place():
    assert [v for module, source in modules() for v in violations(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("layers", "from alexnet_jax.model import AlexNet"),
        ("model", "def f():\n    from alexnet_jax import train"),
        ("train", "import tensorflow as tf"),
        ("evaluate", "import orbax.checkpoint as ocp"),
        ("augment", "from clu import metric_writers"),
        ("data.sources", "from alexnet_jax.data.batches import permutation"),
        ("summary", "import alexnet_jax"),
        ("new_module", ""),
    ],
)
def test_the_check_sees_what_is_wrong(module, source):
    assert len(violations(module, source)) == 1
