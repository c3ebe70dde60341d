"""SIFT, Fisher vectors and a linear support vector machine: the system that the paper beat (tables 1 and 2).

It follows Sanchez and Perronnin, "High-dimensional signature compression for large-scale image classification" (CVPR
2011), but is smaller. SIFT descriptors on a dense grid at several scales are reduced to 64 dimensions by PCA. A mixture
of Gaussians gives the Fisher vectors of the whole image and of three stripes, each with signed square roots and of
length 1. The classifiers are one-vs-rest linear SVMs. Their system also had colour descriptors and 256 Gaussians or
more, and compressed the vectors.

Only this module needs scikit-image and scikit-learn.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from alexnet_jax import hosts
from alexnet_jax.data import batches
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation import ensemble
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Setting
from alexnet_jax.files import write_whole, written_whole
from alexnet_jax.inspection.report import examples
from alexnet_jax.training import setup

CONFIG = "configs/imagenette.py"
DEFAULTS = ()
SEEDS = 1
SIDE = 64  # smaller images are enlarged to so many pixels a side
STEP = 4  # pixels between the points of the grid
SCALES = (16, 24, 32)  # sides of the patches in pixels
DIMENSIONS, COMPONENTS = 64, 64  # numbers in a descriptor after PCA; Gaussians in the mixture
REGIONS = 4  # the whole image and three stripes
SAMPLE = 200_000  # number of descriptors that PCA and mixture are computed from
BLOCK = 1000  # images in a file of vectors
FEWEST = 20  # training images; the SVM's C is chosen on a tenth of them
COSTS = (0.1, 1.0, 10.0)  # values for the SVM's C; the best on a tenth of the training set is used
INSTALL = 'pip install "alexnet-jax[experiments]"'
PAPER = {"ILSVRC-2010 test, SIFT + FVs": (45.7, 25.7), "ILSVRC-2012 test, SIFT + FVs": (None, 26.2)}


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Turns descriptors into Fisher vectors: principal components and a mixture of Gaussians.

    Attributes:
      mean: (128,), the mean of the descriptors.
      components: (DIMENSIONS, 128), the principal components.
      weights, means, variances: of the Gaussians, (K,), (K, DIMENSIONS) and (K, DIMENSIONS).
    """

    mean: np.ndarray
    components: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def mixture(self):
        """The mixture as the object that scikit-image takes."""
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(len(self.weights), covariance_type="diag")
        mixture.weights_, mixture.means_, mixture.covariances_ = self.weights, self.means, self.variances
        mixture.precisions_cholesky_ = 1 / np.sqrt(self.variances)
        return mixture


def run(setting: Setting) -> str:
    """Runs the experiment. Returns the table as text.

    The vocabulary, the Fisher vectors in blocks, and the errors of each seed are saved. After a stop, the experiment
    continues with them; only the fit of the linear SVM starts again.

    Raises:
      UsageError: if packages, memory or disk space are missing, or another process works in the same folder.
    """
    _check_packages()
    folder, config = setting.folder, setting.config
    runs.claim(setting)
    with runs.alone(folder / "seed0") as mine:
        if not mine:
            raise UsageError(f"another process works in {folder}. Wait for it, or give another --workdir.")
        data = setup.open_data(config)
        if len(data.train) < FEWEST or (data.num_classes or 2) < 2:
            raise UsageError(
                f"{data.train.name} has {len(data.train)} images of {data.num_classes} classes; accepted are {FEWEST} "
                "or more, of two classes or more. Give more of them (--config.train_split)."
            )
        _check_room(len(data.train), len(data.evaluation), folder)
        found = [_errors(data, config, config.seed + seed, folder / f"seed{seed}") for seed in range(setting.seeds)]
    top1, top5 = (tables.Mean.of([errors[kind] for errors in found]) for kind in ("top1_error", "top5_error"))
    tables.plot(folder / "table.png", "top-1 error, %", [tables.Mark("SIFT + FVs", top1)])
    rows = [[name, "" if paper[0] is None else paper[0], paper[1], ""] for name, paper in PAPER.items()]
    rows.append([data.evaluation.name, top1, top5, f"{len(found)} seeds" if len(found) > 1 else ""])
    return tables.write(folder / "table", ["SIFT, Fisher vectors, linear SVM", "top-1", "top-5", "remark"], rows)


def _check_room(training, tested, folder):
    """Raises UsageError if memory or disk cannot hold the vectors."""
    size = 4 * REGIONS * COMPONENTS * (2 * DIMENSIONS + 1)  # bytes of the vectors of an image
    memory, disk = 2 * training * size, (training + tested) * size
    all_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free_disk = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.rglob("*.npz"))
    for what, needed, free in (("memory", memory, all_memory), (f"disk space in {folder}", disk, free_disk)):
        if needed > free:
            raise UsageError(
                f"{training + tested} images need {needed / 1e9:.0f} GB of {what}, but there are {free / 1e9:.0f} GB. "
                "Use fewer images, for example with --config.train_split='train[:10%]'."
            )


def _check_packages():
    """Raises UsageError unless both packages are installed."""
    for package in ("skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{package} is not installed. Only this experiment needs it. Install it: {INSTALL}")


def _errors(data, config, seed, folder):
    """The errors of one seed, which draws the descriptors for the vocabulary; read from result.json if it exists."""
    folder.mkdir(exist_ok=True)
    if not (path := folder / "result.json").exists():
        errors = dataclasses.asdict(_measure(data, config, seed, folder))
        del errors["loss"]  # because scores are not probabilities
        write_whole(path, json.dumps(errors, indent=2) + "\n")
    return json.loads(path.read_text())


def _measure(data, config, seed, folder):
    vocabulary = _vocabulary(data.train, config, seed, folder / "vocabulary.npz")
    vectors, labels = _vectors(data.train, config, vocabulary, folder / "train")
    svm = _fit(vectors, labels, seed)
    del vectors
    tested, true = _vectors(data.evaluation, config, vocabulary, folder / "evaluation")
    scores = svm.decision_function(tested)
    scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
    full = np.full((len(scores), int(max(labels.max(), true.max())) + 1), -np.inf)
    full[:, svm.classes_] = scores
    return ensemble.errors_of(full, true, views=1)


def _vocabulary(source, config, seed, path):
    """The vocabulary, from the descriptors of images drawn at random."""
    if path.exists():
        with np.load(path) as file:
            return Vocabulary(**file)
    from skimage.feature import learn_gmm
    from sklearn.decomposition import PCA

    draw = np.random.default_rng(seed)
    per_image = 100
    chosen = np.sort(draw.choice(len(source), min(len(source), SAMPLE // per_image), replace=False))
    found = []
    for images, _ in _images(source, config, chosen):
        for image in images:
            descriptors, _ = dense_sift(image)
            found.append(draw.choice(descriptors, min(per_image, len(descriptors)), replace=False))
    sample = np.concatenate(found)
    pca = PCA(DIMENSIONS, random_state=seed).fit(sample)
    reduced = (sample - pca.mean_) @ pca.components_.T
    options = {"covariance_type": "diag", "random_state": seed, "max_iter": 100, "reg_covar": 1e-4}
    mixture = learn_gmm(reduced, n_modes=COMPONENTS, gm_args=options)
    arrays = (pca.mean_, pca.components_, mixture.weights_, mixture.means_, mixture.covariances_)
    vocabulary = Vocabulary(*(array.astype(np.float64) for array in arrays))
    _save(path, **dataclasses.asdict(vocabulary))
    return vocabulary


def _save(path, **arrays):
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _images(source, config, indices):
    """Yields images (n, S, S, 3) uint8 and labels (n,) of some examples, a batch at a time."""
    part = examples.Part(source, indices)
    for batch in batches.eval_batches(part, batch_size=config.eval_batch_size, image_size=config.image_size):
        yield batch["image"][batch["mask"]], batch["label"][batch["mask"]]


def dense_sift(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT descriptors on a dense grid.

    Args:
      image: (S, S, 3) uint8.

    Returns:
      (n, 128) float32 RootSIFT descriptors (Arandjelovic and Zisserman 2012: divided by their sum, then square roots);
      and (n,), the y of their points, from 0 at the top to 1 at the bottom.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if len(grey) < SIDE:
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    side = len(grey)
    # A descriptor has 4 x 4 cells, each 1.5 times as wide as the point's size.
    points = [
        cv2.KeyPoint(float(x), float(y), patch / 6, 0.0)
        for patch in SCALES
        for y in range(patch // 2, side - patch // 2 + 1, STEP)
        for x in range(patch // 2, side - patch // 2 + 1, STEP)
    ]
    points, descriptors = cv2.SIFT.create().compute(grey, points)
    descriptors /= np.maximum(descriptors.sum(1, keepdims=True), 1e-9)
    return np.sqrt(descriptors), np.array([point.pt[1] / side for point in points])


def fisher_vector(image: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The Fisher vectors of an image and of its three stripes, (4 (K + 2 K DIMENSIONS),) float32."""
    from skimage import feature

    descriptors, y = dense_sift(image)
    reduced, mixture = (descriptors - vocabulary.mean) @ vocabulary.components.T, vocabulary.mixture()
    stripes = np.minimum((3 * y).astype(int), 2)
    regions = [reduced, *(reduced[stripes == stripe] for stripe in range(3))]
    return np.concatenate([feature.fisher_vector(region, mixture, improved=True) for region in regions]).astype(
        np.float32
    )


def _vectors(source, config, vocabulary, folder):
    """The Fisher vectors of a split, (N, D) float32, saved in blocks; and its labels."""
    folder.mkdir(exist_ok=True)
    starts = range(0, len(source), BLOCK)
    with ThreadPoolExecutor(hosts.cores()) as pool, tqdm(total=len(starts), desc=folder.name) as bar:
        for start in starts:
            path = folder / f"{start:08d}.npz"
            if not path.exists():
                vectors, labels = [], []
                for images, those in _images(source, config, np.arange(start, min(start + BLOCK, len(source)))):
                    vectors += pool.map(lambda image: fisher_vector(image, vocabulary), images)
                    labels.append(those)
                _save(path, vectors=np.stack(vectors), labels=np.concatenate(labels))
            bar.update()
    first = np.load(folder / f"{0:08d}.npz")["vectors"]
    vectors, labels = np.empty((len(source), first.shape[1]), np.float32), np.empty(len(source), np.int32)
    for start in starts:
        with np.load(folder / f"{start:08d}.npz") as file:
            vectors[start : start + BLOCK], labels[start : start + BLOCK] = file["vectors"], file["labels"]
    return vectors, labels


def _fit(vectors, labels, seed):
    """One-vs-rest linear SVMs by averaged stochastic gradient descent; their C is chosen on a tenth of the examples."""
    from sklearn.linear_model import SGDClassifier

    held = np.random.default_rng(seed).permutation(len(labels)) < len(labels) // 10

    def fitted(cost, chosen):
        alpha = 1 / (cost * chosen.sum())
        svm = SGDClassifier(alpha=alpha, average=True, max_iter=20, tol=None, random_state=seed, n_jobs=-1)
        return svm.fit(vectors[chosen], labels[chosen])

    errors = {cost: 1 - fitted(cost, ~held).score(vectors[held], labels[held]) for cost in COSTS}
    best = min(errors, key=errors.get)
    shown = ", ".join(f"{100 * error:.1f}% with C = {cost:g}" for cost, error in errors.items())
    print(f"Errors: {shown}. The SVM has C = {best:g}.", flush=True)
    return fitted(best, np.ones(len(labels), bool))
