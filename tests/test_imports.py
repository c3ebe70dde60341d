"""Imports run downward, each foreign package has its place, and files and functions stay short."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ("figure1", "ablations", "lrn_cifar", "cifar", "ensembles", "specialisation", "baseline")
FIGURES = ("kernels", "curves", "examples", "confusion", "augmentations")

# A module imports only from lines above its own.
LEVELS = [
    {"network", "training", "evaluation", "inspection"},
    {"errors"},
    {"files", "network.cpu", "network.architectures"},
    {"files.stores"},
    {"files.lease"},
    {"files.copies"},
    {"files.datasets"},
    {"network.layers", "network.small_networks"},
    {"network.networks", "network.towers"},
    {"network.model"},
    {"network.summary"},
    {"training.augment", "training.optimizer", "training.schedule"},
    {"training.statistics", "training.recipe"},
    {"training.step"},
    {"training.communication", "evaluation.errors"},
    {"training.pretrained"},
    {"config", "hosts", "data"},
    {"data.digits", "data.labels", "data.any_format"},
    {"data.images", "data.folders"},
    {"data.imagenet"},
    {"data.originals"},
    {"data.shards"},
    {"data.workers"},
    {"data.prepare"},
    {"data.cloud"},
    {"data.sources"},
    {"data.batches"},
    {"data.survey"},
    {"evaluation.evaluate"},
    {"training.checksums"},
    {"training.checkpoint"},
    {"convert.weights"},
    {"convert.channels_first"},
    {"convert.torchvision", "convert.caffe", "convert.workdir"},
    {"convert.npy"},
    {"convert"},
    {"evaluation.trained"},
    {"inspection.features", "inspection.retrieve"},
    {"inspection.codes"},
    {"evaluation.predict", "evaluation.ensemble"},
    {"inspection.report.figures"},
    {f"inspection.report.{name}" for name in FIGURES},
    {"inspection.report"},
    {"inspection.explore"},
    {"inspection.explore.forward"},
    {f"inspection.explore.{name}" for name in ("blocks", "pixels", "neighbours", "pictures")},
    {"inspection.explore.figure2", "inspection.explore.subject"},
    {"inspection.explore.html"},
    {"inspection.explore.slides", "inspection.explore.panels"},
    {"inspection.explore.page"},
    {"evaluation.submission", "export", "training.outputs", "training.chance"},
    {"training.setup"},
    {"training.conclude", "training.feed", "evaluation.saved"},
    {"training.loop"},
    {"experiments", "experiments.tables"},
    {"experiments.runs"},
    {"experiments.seeds"},
    {f"experiments.{name}" for name in EXPERIMENTS},
    {"doctor.findings"},
    {"doctor.machine", "doctor.data", "doctor.speed", "doctor.length"},
    {"doctor.sheet"},
    {"doctor"},
    {"cli.common"},
    {"cli.predict", "cli.retrieve", "cli.ensemble", "cli.report", "cli.experiment", "cli.explore"},
    {"cli"},
    {"__init__", "__main__"},
    {"main"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
ALLOWED = {
    "tensorflow": lambda module: module in {"main", "export"} or module.split(".")[0] == "data",
    "tensorflow_datasets": lambda module: module == "main" or module.split(".")[0] == "data",
    "orbax": lambda module: module == "training.checkpoint",
    "safetensors": lambda module: module in {"convert.weights", "convert.torchvision"},
    "torch": lambda module: module == "convert.torchvision",
    "google": lambda module: module == "convert.caffe",
    "matplotlib": lambda module: module.startswith(("inspection.report", "inspection.explore")),
    "gradio": lambda module: module == "inspection.explore.page",
    "jinja2": lambda module: module == "inspection.report",
    "skimage": lambda module: module == "experiments.baseline",
    "sklearn": lambda module: module == "experiments.baseline",
    "faiss": lambda module: module in {"inspection.retrieve", "inspection.codes"},
    "fsspec": lambda module: module == "files.stores",
    "clu": lambda module: module in {"training.loop", "training.outputs"},
}
# The network and the training step: what `pip install .` brings is enough for them.
LIBRARY = {"jax", "flax", "optax", "numpy"}
IN_LIBRARY = {
    "__init__",
    "errors",
    "files",
    *(
        f"training.{name}"
        for name in ("augment", "optimizer", "schedule", "statistics", "recipe", "step", "communication")
    ),
    "evaluation.errors",
    *(module for module in LEVEL if module.startswith("network")),
}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60


def modules():
    package = ROOT / "alexnet_jax"
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path.read_text()
    yield "main", (ROOT / "main.py").read_text()


def imported(tree):
    """Every dotted name that a module imports, at whatever depth, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_names(tree):
    """The _private names of other modules of this package that a module imports or reads."""
    ours = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "alexnet_jax":
            ours |= {alias.asname or alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in ours:
                if name.startswith("_") and not name.startswith("__"):
                    yield f"{owner}.{name}"


def violations(module, source):
    if module not in LEVEL:
        return [f"{module} has no place in LEVELS"]
    tree = ast.parse(source)
    found = [f"{module} reads the private {name}" for name in private_names(tree)]
    for name in imported(tree):
        top, *rest = name.split(".")
        if top in ALLOWED and not ALLOWED[top](module):
            found.append(f"{module} imports {top}")
        elif module in IN_LIBRARY and top not in LIBRARY | {"alexnet_jax"} | sys.stdlib_module_names:
            found.append(f"{module} imports {top}, which the library does not bring")
        if top == "alexnet_jax":
            inner = next((".".join(rest[:k]) for k in (3, 2, 1) if ".".join(rest[:k]) in LEVEL), "__init__")
            if LEVEL[inner] >= LEVEL[module]:
                found.append(f"{module} imports {inner}, which is not below it")
            elif module in IN_LIBRARY and inner not in IN_LIBRARY | {"training", "evaluation"}:
                found.append(f"{module} imports {inner}, which is not part of the library")
    return found


def too_long(module, source):
    lines = len(source.splitlines())
    found = [f"{module} has {lines} lines"] if lines > MOST_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION:
                found.append(f"{module}.{node.name} has {lines} lines")
    return found


def test_imports_run_downward_and_foreign_packages_keep_their_place():
    assert [v for module, source in modules() for v in violations(module, source)] == []


def test_files_and_functions_are_short():
    assert [v for module, source in modules() for v in too_long(module, source)] == []


def test_the_top_of_the_package_is_a_table_of_contents():
    entries = {path.name for path in (ROOT / "alexnet_jax").iterdir() if not path.name.startswith("_")}
    assert len(entries) <= 15, sorted(entries)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("network.layers", "from alexnet_jax.network.model import AlexNet"),
        ("network.model", "def f():\n    from alexnet_jax.training import step"),
        ("training.loop", "import tensorflow as tf"),
        ("evaluation.evaluate", "import orbax.checkpoint as ocp"),
        ("training.augment", "from clu import metric_writers"),
        ("training.step", "import ml_collections"),
        ("training.communication", "from alexnet_jax.evaluation.errors import Errors"),
        ("data.sources", "from alexnet_jax.data.batches import permutation"),
        ("inspection.report.figures", "from alexnet_jax.inspection.report import curves"),
        ("network.summary", "import alexnet_jax"),
        ("cli", "from alexnet_jax.data.batches import _read"),
        ("cli", "from alexnet_jax.data import batches\nbatches._read()"),
        ("new_module", ""),
    ],
)
def test_the_check_sees_what_is_wrong(module, source):
    assert len(violations(module, source)) == 1


def test_the_check_sees_what_is_long():
    body = "\n".join(["    pass"] * 60)
    assert too_long("cli", f"def f():\n{body}\n") == ["cli.f has 61 lines"]
    assert too_long("cli", "\n" * 401) == ["cli has 401 lines"]
