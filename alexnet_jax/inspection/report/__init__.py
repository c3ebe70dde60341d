"""The HTML page about a run (paper, section 6): its errors beside the paper's, curves, kernels, images, confusion.

figures         the look of figures, and their files
curves          loss, error and learning rate
kernels         Figure 3, and the specialisation of the towers
examples        Figure 4
confusion       which classes are confused with which
augmentations   images as the network sees them in training
page.html.j2    the page
"""

from pathlib import Path

import jax
import jinja2
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.convert import Weights
from alexnet_jax.data.batches import Order
from alexnet_jax.data.sources import Dataset
from alexnet_jax.evaluation import ensemble, predict
from alexnet_jax.evaluation.trained import Trained, last_hidden
from alexnet_jax.files import read_json, write_whole
from alexnet_jax.inspection.report import augmentations, confusion, curves, examples, kernels

LIMIT = 10_000  # largest number of images of a split that are examined
STRIPS = 3  # images whose augmentations are shown
PAPERS = (
    ("ILSVRC-2010 test, CNN, ten views", "37.5", "17.0"),
    ("ILSVRC-2010 test, CNN, one view", "39.0", "18.3"),
    *((f"ILSVRC-2012 validation, {name}", *map(str, errors)) for name, errors in ensemble.TABLE_2.items()),
    ("CIFAR-10 test, four layers, with normalization", "11", ""),
    ("CIFAR-10 test, four layers, without normalization", "13", ""),
)
"""The paper's top-1 and top-5 errors in % (tables 1 and 2; sections 3.3 and 4.1)."""


def write(
    workdir: Path, *, config, data: Dataset, weights: Weights, output: Path | None = None, limit: int = LIMIT
) -> Path:
    """Writes the page of a run as one file. A folder beside it gets the figures as PNG and their numbers as CSV.

    Uses only the devices of this process, and sends nothing to other processes.

    Args:
      workdir: folder of the run; its metrics.jsonl and result.json are shown if they exist.
      config: config of the run.
      data: data set of the run, opened.
      weights: weights of the checkpoint to show.
      output: the .html file; the folder has its name without .html. Default: workdir/report.html.
      limit: largest number of images of each split that are examined; from a larger split, so many are drawn at
        random, with the run's seed.

    Returns:
      The path of the .html file.
    """
    path = Path(workdir) / "report.html" if output is None else Path(output)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    examples, names = len(data.train), predict.class_names(weights)
    order = Order.of_run(config, examples)

    def epochs(step):
        return float(order.epochs(step * config.batch_size))

    result = _result(Path(workdir) / "result.json")
    content = {
        "name": Path(workdir).resolve().name,
        "weights": weights,
        "config": config_lib.flatten(config),
        "result": result,
        "errors": [result[name] for name in ("one_view", "ten_views") if name in result],
        "papers": PAPERS,
        "sizes": {"training": examples, "evaluation": len(data.evaluation)},
        "curves": curves.make(Path(workdir) / "metrics.jsonl", epochs, folder),
        "kernels": kernels.make(weights, folder),
        "classes": len(names),
        "folder": folder.name,
        **_of_images(config, data, weights, names, limit, folder),
    }
    _write_page(path, content)
    return path


def _of_images(config, data, weights, names, limit, folder):
    """The parts of the page that need images: Figure 4, confusion, augmentations."""
    trained, seed = Trained.of(weights, devices=jax.local_devices()), config.seed
    tested = examples.part(data.evaluation, limit, seed)
    learned = examples.part(data.train, limit, seed)
    layer = last_hidden(weights.architecture)
    probabilities, labels = examples.through(trained, tested, trained.probabilities)
    features, learned_labels = examples.through(trained, learned, lambda images: trained.features(images, layer))
    chosen = examples.choose(probabilities, labels, seed)
    images = examples.read(trained, tested, chosen)
    shown = examples.predictions(images, tested.indices[chosen], probabilities[chosen], labels[chosen], names, folder)
    places, distances = examples.nearest(trained.features(images, layer), features)
    found = examples.read(trained, learned, places.ravel()).reshape(*places.shape, *images.shape[1:])
    strip = np.random.default_rng(seed).permutation(len(learned))[:STRIPS]
    return {
        "predictions": shown,
        "neighbours": examples.neighbours(
            shown, images, found, learned.indices[places], learned_labels[places], distances, names, folder
        ),
        "layer": layer,
        "dimensions": features.shape[1],
        "looked_at": {"training": len(learned), "evaluation": len(tested)},
        "confusion": confusion.make(probabilities, labels, names, folder),
        "strip": augmentations.make(
            config,
            weights,
            examples.read(trained, learned, strip),
            learned.indices[strip],
            [names[k] for k in learned_labels[strip]],
            folder,
        ),
    }


def _result(path):
    """The content of result.json; {} if the run has not ended."""
    return read_json(path, dict, "The run writes it anew when it is started again.") if path.exists() else {}


def _write_page(path, content):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alexnet_jax.inspection.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_whole(path, environment.get_template("page.html.j2").render(content))
