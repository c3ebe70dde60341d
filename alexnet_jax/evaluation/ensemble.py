"""Ensembles: the averaged probabilities of several networks (paper, section 6, table 2)."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alexnet_jax.convert import Weights
from alexnet_jax.data import survey
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import Errors
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.files import write_whole
from alexnet_jax.network.architectures import Conv

TABLE_2 = {"1 CNN": (40.7, 18.2), "5 CNNs": (38.1, 16.4), "1 CNN*": (39.0, 16.6), "7 CNNs*": (36.7, 15.4)}
"""The rows of the paper's table 2: top-1 and top-5 errors in % on the validation set of ILSVRC-2012."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A network, and the split that it is evaluated on.

    Attributes:
      network: its name, for messages.
      digest: its Weights.digest.
      convolutions: number of its convolutions; the paper's CNN* networks have six.
      split: name of the split, as Source.name.
      examples: number of examples in the split.
      classes: the names of the network's classes.
    """

    network: str
    digest: str
    convolutions: int
    split: str
    examples: int
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The probabilities that a member gives for each example of a split.

    Attributes:
      member: the network and the split.
      views: as in errors.predict.
      probabilities: (N, K) float32.
      labels: (N,) int32.
    """

    member: Member
    views: int
    probabilities: np.ndarray
    labels: np.ndarray


def member_of(weights: Weights, source: Source, classes: Sequence[str] | None) -> Member:
    """Returns the Member for a network and a split; `classes` are the class names of the data set, or None."""
    count = weights.architecture[-1].units
    return Member(
        network=weights.source,
        digest=weights.digest,
        convolutions=sum(isinstance(layer, Conv) for layer in weights.architecture),
        split=source.name,
        examples=len(source),
        classes=tuple(classes) if classes and len(classes) == count else tuple(map(str, range(count))),
    )


def check(members: Sequence[Member]) -> None:
    """Raises UsageError unless members are different networks, evaluated on the same examples and classes."""
    if len(members) < 2:
        raise UsageError(f"an ensemble needs at least 2 networks, but {len(members)} was given. Name another one.")
    first, *others = members
    for other in others:
        for what, asked in (
            ("the split", lambda member: member.split),
            ("the number of examples", lambda member: member.examples),
            ("the number of classes", lambda member: len(member.classes)),
            ("the classes", lambda member: ", ".join(member.classes)),
        ):
            if asked(first) != asked(other):
                raise UsageError(
                    f"{first.network} and {other.network} differ in {what}: the first has {asked(first)!s:.99}, the "
                    f"second has {asked(other)!s:.99}. They must be equal in an ensemble. Leave one of the two out."
                )
    networks = {}
    for member in members:
        if (twin := networks.setdefault(member.digest, member)) is not member:
            raise UsageError(f"{twin.network} and {member.network} are the same network. Name it only once.")


def predict(trained: Trained, source: Source, member: Member, views: int) -> Predictions:
    """The predictions of a network for a whole split; views as in errors.predict.

    Raises:
      UsageError: if a label is none of the network's classes.
    """
    rows, labels = [], []
    with tqdm(total=len(source), unit="image", disable=None) as bar:
        for probabilities, there in trained.over(source, lambda images: trained.probabilities(images, views)):
            before = sum(map(len, labels))
            survey.check_labels(there, probabilities.shape[-1], lambda i, before=before: source.describe(before + i))
            rows.append(probabilities)
            labels.append(there)
            bar.update(len(there))
    return Predictions(member, views, np.concatenate(rows), np.concatenate(labels))


def save(predictions: Predictions, path: Path) -> None:
    """Writes predictions as .npz, completely or not at all."""
    file = io.BytesIO()
    np.savez(
        file,
        member=json.dumps(dataclasses.asdict(predictions.member)),
        views=predictions.views,
        probabilities=predictions.probabilities,
        labels=predictions.labels,
    )
    write_whole(path, file.getvalue())


def load(path: str | Path) -> Predictions:
    """Reads predictions that `save` wrote; UsageError if the file is incomplete or of another kind."""
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            facts = json.loads(str(file["member"]))
            member = Member(**{**facts, "classes": tuple(facts["classes"])})
            read = Predictions(member, int(file["views"]), file["probabilities"], file["labels"])
        if read.probabilities.shape != (member.examples, len(member.classes)) or len(read.labels) != member.examples:
            raise ValueError(f"its arrays have the shapes {read.probabilities.shape} and {read.labels.shape}")
    except Exception as error:  # of any type, because the file may hold anything
        raise UsageError(
            f"{path} is not a complete file of predictions ({error}). Give a file that `ensemble --save` wrote."
        ) from error
    return read


def average(members: Sequence[Predictions], weights: np.ndarray | None = None) -> np.ndarray:
    """Returns (N, K) float64, the sum of w_m p_m over the members m; weights w (M,) with the sum 1, or None for 1/M."""
    weights = np.full(len(members), 1 / len(members)) if weights is None else weights
    return sum(
        weight * member.probabilities.astype(np.float64) for weight, member in zip(weights, members, strict=True)
    )


def search(members: Sequence[Predictions], steps: int = 1000) -> np.ndarray:
    """Finds the weights that make the labels most probable, by expectation-maximization.

    Each step is w_m <- mean over n of (w_m p_m(n) / sum over l of w_l p_l(n)), where p_m(n) is the probability that
    member m gives to the label of example n. The logarithm of the likelihood is concave.

    Args:
      members: predictions for examples that do not count for the reported errors.
      steps: number of steps of expectation and maximization.

    Returns:
      The weights, (M,) float64, each at least 0; their sum is 1.
    """
    p = np.stack([of_labels(member.probabilities, member.labels) for member in members])  # (M, N)
    weights = np.full(len(p), 1 / len(p))
    for _ in range(steps):
        joint = weights[:, None] * p
        weights = (joint / joint.sum(0)).mean(1)
    return weights


def of_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the labels, (N,) float64, always above 0, so that their logarithms are finite."""
    there = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(np.float64)
    return np.maximum(there, np.finfo(np.float32).tiny)


def errors_of(probabilities: np.ndarray, labels: np.ndarray, views: int) -> Errors:
    """The errors of (N, K) probabilities, counted as in evaluate: if two are equal, the lower class number is first."""
    own = np.take_along_axis(probabilities, labels[:, None], 1)  # (N, 1)
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    # Not `>`, so that a probability of nan counts as wrong.
    ahead = (~(probabilities <= own) | (earlier & (probabilities == own))).sum(1)  # (N,) classes before the label
    return Errors(
        top1_error=100 * int((ahead >= 1).sum()) / len(labels),
        top5_error=100 * int((ahead >= 5).sum()) / len(labels),
        loss=float(-np.log(of_labels(probabilities, labels)).mean()),
        examples=len(labels),
        views=views,
    )


def mean_of(errors: Sequence[Errors]) -> Errors:
    """The mean of the errors of single networks."""
    means = {name: float(np.mean([getattr(e, name) for e in errors])) for name in ("top1_error", "top5_error", "loss")}
    return dataclasses.replace(errors[0], **means)


def compare(members: Sequence[Predictions], searched: bool = False) -> dict[str, Errors]:
    """Returns, by name, the errors of each member, the mean of these, and the errors of the ensemble.

    Args:
      members: predictions of members that check accepts, all with the same number of views.
      searched: whether to search weights too. The search uses every second example; the errors are those of the others.

    Raises:
      UsageError: if the labels of the members differ.
    """
    _check_labels(members)
    reported = [_every_second(member, 1) for member in members] if searched else members
    labels, views = reported[0].labels, reported[0].views
    alone = [errors_of(one.probabilities, labels, views) for one in reported]
    rows = {f"{k}. {one.member.network}": errors for k, (one, errors) in enumerate(zip(members, alone, strict=True), 1)}
    rows["mean of these"] = mean_of(alone)
    rows["averaged, equal weights"] = errors_of(average(reported), labels, views)
    if searched:
        weights = search([_every_second(member, 0) for member in members])
        shown = " ".join(f"{weight:.2f}" for weight in weights)
        rows[f"averaged, weights {shown}"] = errors_of(average(reported, weights), labels, views)
    return rows


def _check_labels(members):
    first, *others = members
    for other in others:
        if (first.labels != other.labels).any():
            raise UsageError(
                f"the labels of {first.member.network} and of {other.member.network} differ: the examples of "
                f"{first.member.split} were changed, or are in another order. Make both predictions again."
            )


def _every_second(predictions, start):
    half = slice(start, None, 2)
    return dataclasses.replace(
        predictions, probabilities=predictions.probabilities[half], labels=predictions.labels[half]
    )


def table(title: str, rows: dict[str, Errors]) -> str:
    """A table as text: top-1 and top-5 errors in %, one row for each name."""
    width = max(map(len, (title, *rows)))
    lines = [f"{name:<{width}}  {e.top1_error:5.1f}%  {e.top5_error:5.1f}%" for name, e in rows.items()]
    return "\n".join([f"{title:<{width}}   top-1   top-5", *lines])


def paper_rows(members: Sequence[Predictions]) -> dict[str, Errors | None]:
    """The rows of table 2 for these networks; None for a row that needs more networks.

    "1 CNN" and "1 CNN*" are means over all such networks. "5 CNNs" averages the first five networks without a sixth
    convolution. "7 CNNs*" averages these five and the first two networks with a sixth convolution.

    Args:
      members: as in compare.

    Source: paper, section 6.
    """
    _check_labels(members)
    labels, views = members[0].labels, members[0].views
    plain = [one for one in members if one.member.convolutions < 6]
    starred = [one for one in members if one.member.convolutions >= 6]

    def alone(kind):
        return mean_of([errors_of(one.probabilities, labels, views) for one in kind]) if kind else None

    def together(kind, count):
        return errors_of(average(kind), labels, views) if len(kind) == count else None

    return {
        "1 CNN": alone(plain),
        "5 CNNs": together(plain[:5], 5),
        "1 CNN*": alone(starred),
        "7 CNNs*": together(plain[:5] + starred[:2], 7),
    }


def paper_table(rows: dict[str, Errors | None], title: str) -> str:
    """The paper's table 2 as text, beside the rows of paper_rows; where a row is None, its cells are empty."""
    heads = ("paper, ILSVRC-2012", title)
    widths = [max(len(head), len("100.0%  100.0%")) for head in heads]

    def line(name, cells):
        return f"{name:7}{''.join(f'   {cell:>{width}}' for cell, width in zip(cells, widths, strict=True))}".rstrip()

    lines = [line("", heads), line("", ["top-1   top-5"] * 2)]
    for name, paper in TABLE_2.items():
        own = rows[name] and (rows[name].top1_error, rows[name].top5_error)
        cells = [f"{pair[0]:5.1f}%  {pair[1]:5.1f}%" if pair else "" for pair in (paper, own)]
        lines.append(line(name, cells))
    return "\n".join(lines)
