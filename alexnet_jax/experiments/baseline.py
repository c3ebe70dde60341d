"""SIFT, Fisher vectors and a linear support vector machine: the system that the paper beat (tables 1 and 2).

After Sanchez and Perronnin, "High-dimensional signature compression for large-scale image classification" (CVPR 2011),
but smaller: SIFT on a dense grid at several scales; the 128 numbers reduced to 64; their Fisher vector by a mixture of
Gaussians, of the whole picture and of three stripes, each with signed square roots and of length 1; one machine a class
against all others. They had colour descriptors besides, 256 Gaussians or more, and compressed the vectors.

Needs scikit-image and scikit-learn, which nothing else of this project does.
"""

import dataclasses
import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from alexnet_jax import config as config_lib
from alexnet_jax import ensemble, loop
from alexnet_jax.config import UsageError
from alexnet_jax.data import batches
from alexnet_jax.experiments import tables
from alexnet_jax.experiments.runs import Setting
from alexnet_jax.files import write_whole, written_whole
from alexnet_jax.report import pictures

CONFIG = "configs/alexnet.py"
DEFAULTS = ()
SEEDS = 1
SIDE = 64  # pixels to which smaller pictures are enlarged
STEP = 4  # pixels between the points of the grid
SCALES = (16, 24, 32)  # sides of the patches in pixels
NUMBERS, GAUSSIANS = 64, 64
SAMPLE = 200_000  # descriptors from which both are found
BLOCK = 1000  # pictures a file of vectors
COSTS = (0.1, 1.0, 10.0)  # of the machine's errors, tried on a tenth of the training set
INSTALL = 'pip install "scikit-image>=0.26,<0.27" "scikit-learn>=1.9,<2"'
PAPER = {"ILSVRC-2010 test, SIFT + FVs": (45.7, 25.7), "ILSVRC-2012 test, SIFT + FVs": (None, 26.2)}


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """What turns descriptors into Fisher vectors: principal components and a mixture of Gaussians.

    Attributes:
      mean: (128,) of the descriptors.
      components: (NUMBERS, 128).
      weights, means, variances: of the Gaussians, (K,), (K, NUMBERS) and (K, NUMBERS).
    """

    mean: np.ndarray
    components: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def mixture(self):
        """The mixture as scikit-image wants it."""
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(len(self.weights), covariance_type="diag")
        mixture.weights_, mixture.means_, mixture.covariances_ = self.weights, self.means, self.variances
        mixture.precisions_cholesky_ = 1 / np.sqrt(self.variances)
        return mixture


def run(setting: Setting) -> str:
    """Carries the experiment out; the table as text. Vocabulary, blocks of vectors and errors are kept on the way."""
    _check_packages()
    folder, config = setting.folder, setting.config
    folder.mkdir(parents=True, exist_ok=True)
    if (saved := folder / "config.json").exists():
        config_lib.check_resumable(config, config_lib.load(saved), folder)
    data = loop.open_data(config)
    config_lib.save(config, saved)
    for seed in range(config.seed, config.seed + setting.seeds):
        if not (result := folder / f"seed{seed}" / "result.json").exists():
            (folder / f"seed{seed}").mkdir(exist_ok=True)
            errors = _measure(data, config, seed, result.parent)
            write_whole(result, json.dumps(dataclasses.asdict(errors), indent=2) + "\n")
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*/result.json"))]
    rows = [[name, "" if top1 is None else top1, top5, ""] for name, (top1, top5) in PAPER.items()]
    means = [tables.mean_and_error([errors[name] for errors in found]) for name in ("top1_error", "top5_error")]
    rows.append([data.evaluation.name, *means, f"{len(found)} seeds"])
    return tables.write(folder / "table", ["SIFT, Fisher vectors, linear SVM", "top-1", "top-5", ""], rows)


def _check_packages():
    """Raises UsageError unless both packages are there."""
    for package in ("skimage", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{package} is not installed, which only this experiment needs. Install it: {INSTALL}")


def _measure(data, config, seed, folder):
    """The errors of one seed, which draws the descriptors for the vocabulary."""
    vocabulary = _vocabulary(data.train, config, seed, folder / "vocabulary.npz")
    vectors, labels = _vectors(data.train, config, vocabulary, folder / "train")
    machine = _fit(vectors, labels, seed)
    del vectors
    tested, true = _vectors(data.evaluation, config, vocabulary, folder / "evaluation")
    scores = machine.decision_function(tested)
    scores = np.stack([-scores, scores], 1) if scores.ndim == 1 else scores
    full = np.full((len(scores), int(max(labels.max(), true.max())) + 1), -np.inf)
    full[:, machine.classes_] = scores
    probabilities = np.exp(full - full.max(1, keepdims=True))  # for the order of the classes alone
    return ensemble.errors_of(probabilities / probabilities.sum(1, keepdims=True), true, views=1)


def _vocabulary(source, config, seed, path):
    """Found from the descriptors of pictures drawn at random."""
    if path.exists():
        with np.load(path) as file:
            return Vocabulary(**file)
    from skimage.feature import learn_gmm
    from sklearn.decomposition import PCA

    draw = np.random.default_rng(seed)
    per_picture = 100
    chosen = np.sort(draw.choice(len(source), min(len(source), SAMPLE // per_picture), replace=False))
    found = []
    for images, _ in _pictures(source, config, chosen):
        for image in images:
            descriptors, _ = dense_sift(image)
            found.append(draw.choice(descriptors, min(per_picture, len(descriptors)), replace=False))
    sample = np.concatenate(found)
    pca = PCA(NUMBERS, random_state=seed).fit(sample)
    reduced = (sample - pca.mean_) @ pca.components_.T
    options = {"covariance_type": "diag", "random_state": seed, "max_iter": 100, "reg_covar": 1e-4}
    mixture = learn_gmm(reduced, n_modes=GAUSSIANS, gm_args=options)
    arrays = (pca.mean_, pca.components_, mixture.weights_, mixture.means_, mixture.covariances_)
    vocabulary = Vocabulary(*(array.astype(np.float64) for array in arrays))
    _save(path, **dataclasses.asdict(vocabulary))
    return vocabulary


def _save(path, **arrays):
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _pictures(source, config, indices):
    """Yields pictures (n, S, S, 3) uint8 and labels (n,) of some examples, a batch at a time."""
    part = pictures.Part(source, indices)
    for batch in batches.eval_batches(part, batch_size=config.eval_batch_size, image_size=config.image_size):
        yield batch["image"][batch["mask"]], batch["label"][batch["mask"]]


def dense_sift(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT on a grid.

    Args:
      image: (S, S, 3) uint8.

    Returns:
      (n, 128) float32 descriptors as RootSIFT (Arandjelovic and Zisserman 2012: square roots of shares); and (n,)
      heights of their points, from 0 at the top to 1 at the bottom.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if len(grey) < SIDE:
        grey = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    side = len(grey)
    # A descriptor is of 4 x 4 cells, each 1.5 times as wide as the point's size.
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
    """The Fisher vectors of a picture and of its three stripes, (4 (K + 2 K NUMBERS),) float32."""
    from skimage import feature

    descriptors, heights = dense_sift(image)
    reduced, mixture = (descriptors - vocabulary.mean) @ vocabulary.components.T, vocabulary.mixture()
    stripes = np.minimum((3 * heights).astype(int), 2)
    regions = [reduced, *(reduced[stripes == stripe] for stripe in range(3))]
    return np.concatenate([feature.fisher_vector(region, mixture, improved=True) for region in regions]).astype(
        np.float32
    )


def _vectors(source, config, vocabulary, folder):
    """The Fisher vectors of a split, (N, D) float32, kept in blocks as they are made; and its labels."""
    folder.mkdir(exist_ok=True)
    starts = range(0, len(source), BLOCK)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, tqdm(total=len(starts), desc=folder.name) as bar:
        for start in starts:
            path = folder / f"{start:08d}.npz"
            if not path.exists():
                vectors, labels = [], []
                for images, those in _pictures(source, config, np.arange(start, min(start + BLOCK, len(source)))):
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
    """A machine a class against the others; what an error costs it is chosen on a tenth of the examples."""
    from sklearn.linear_model import SGDClassifier

    held = np.random.default_rng(seed).permutation(len(labels)) < len(labels) // 10

    def fitted(cost, chosen):
        alpha = 1 / (cost * chosen.sum())  # the machine's own C is this cost
        machine = SGDClassifier(alpha=alpha, average=True, max_iter=20, tol=None, random_state=seed, n_jobs=-1)
        return machine.fit(vectors[chosen], labels[chosen])

    errors = {cost: 1 - fitted(cost, ~held).score(vectors[held], labels[held]) for cost in COSTS}
    best = min(errors, key=errors.get)
    print(
        f"C = {best:g} of " + ", ".join(f"{cost:g}: {100 * error:.1f}%" for cost, error in errors.items()), flush=True
    )
    return fitted(best, np.ones(len(labels), bool))
