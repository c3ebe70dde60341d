"""Checks before days of training: machine, data, config, speed.

findings   the result of a check
machine    versions, devices, disk space
data       examples, labels, colours, broken images, duplicates
speed      whether the network waits for images
sheet      augmented images to look at
length     whether the run has time to leave chance
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from alexnet_jax import config as config_lib
from alexnet_jax import convert
from alexnet_jax.doctor import data as data_checks
from alexnet_jax.doctor import length, machine, sheet, speed
from alexnet_jax.doctor.findings import Finding, Findings, ok, problem
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, stores
from alexnet_jax.training import setup
from alexnet_jax.training.pretrained import check_pretrained

__all__ = ["Finding", "examine"]


def examine(
    config,
    *,
    workdir: str | Path = ".",
    output: str | Path | None = None,
    duplicates: Literal["sample", "all", "none"] = "sample",
    tell: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Checks everything that could spoil a run, in one process and in bounded time. It does not change the workdir.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      workdir: the workdir of the planned run.
      output: folder for the sheet of augmented images; None for no sheet.
      duplicates: how many images are compared: a sample, which bounds the time; all, which reads the whole
        dataset once; or none.
      tell: called with each finding as soon as it is known.

    Returns:
      All findings; do not start the run while there is one whose level is "problem".
    """
    findings = []
    with copies.opened(workdir, "--workdir") as folder:
        for finding in itertools.chain(_bucket(workdir), _all(config, folder, output, duplicates)):
            findings.append(finding)
            tell(finding)
    return findings


def _bucket(workdir) -> Findings:
    """Whether a workdir in an object store can be used."""
    check = "bucket of the workdir"
    if stores.is_address(workdir) and (
        yield from _succeeds(check, lambda: stores.check_rights(str(workdir).rstrip("/")))
    ):
        yield ok(check, f"{workdir}: objects can be listed, read, written and deleted")


def _all(config, workdir, output, duplicates) -> Findings:
    yield from machine.versions()
    if not (yield from _succeeds("config", lambda: _check_config(config, workdir))):
        return  # the other checks need an accepted config
    yield ok("config", f"{config.architecture} on {config.dataset}: all fields are accepted")
    placement = yield from machine.devices(config)
    data = yield from _succeeds("dataset", lambda: setup.open_data(config))
    recipe = None
    if data and placement:
        recipe = yield from _succeeds("classes", lambda: setup.recipe_for(config, data, placement))
    yield from machine.disk(config, workdir, recipe)
    if recipe and config.pretrained:
        yield from _pretrained(config.pretrained, recipe)
    if data is None:
        return
    train, evaluation = (
        data_checks.look(split, source, image_size=config.image_size, seed=config.seed, duplicates=duplicates)
        for split, source in (("train", data.train), ("evaluation", data.evaluation))
    )
    yield from _about_data(config, data, train, evaluation, duplicates)
    if recipe and train.digests:
        statistics = data.statistics or train.sums.statistics()
        run = setup.Run(config, workdir, recipe, data, statistics, setup.num_steps(config, len(data.train)))
        if output is not None:
            yield from sheet.write(run, train, output)
        yield from speed.who_waits(run)


def _about_data(config, data, train, evaluation, duplicates):
    yield from data_checks.sizes(config, data)
    yield from length.length(config, setup.num_steps(config, len(data.train)), len(data.train))
    num_classes = config.num_classes or data.num_classes
    for seen in (train, evaluation):
        yield from data_checks.broken(seen)
        if num_classes:
            yield from data_checks.label_range(seen, num_classes)
            imagenet = data_checks.is_all_of_imagenet(config, data)
            yield from data_checks.classes(seen, num_classes, data.class_names, imagenet)
    yield from data_checks.label_order(config, data, train, evaluation)
    yield from data_checks.colours(config, data, train)
    if duplicates != "none":
        yield from data_checks.twice_in(train)
        yield from data_checks.twice_in(evaluation)
        yield from data_checks.twice_across(train, evaluation)


def _succeeds(check, action):
    """The value of an action, or True for None; None after its UsageError has become a problem."""
    try:
        value = action()
    except UsageError as error:
        yield problem(check, str(error))
        return None
    return True if value is None else value


def _check_config(config, workdir):
    config_lib.check(config)
    if (saved := workdir / "config.json").exists():
        config_lib.check_resumable(config, config_lib.load(saved), workdir)


def _pretrained(path, recipe):
    def read():
        weights = convert.read(path, trunk=True)
        check_pretrained(weights.params, recipe)
        return weights

    if weights := (yield from _succeeds("pretrained", read)):
        yield ok("pretrained", f"{weights.source} has every layer but the last")
