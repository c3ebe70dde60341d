"""Sets of runs. Each is an ordinary run of the trainer in its own folder; it is made once, and resumed after a stop."""

import contextlib
import dataclasses
import fcntl
import json
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.files import NO_LOCKS, read_json, write_whole
from alexnet_jax.training import loop, setup

OUTCOME = "outcome.json"
OUTCOMES = "outcomes.json"  # the results of all finished runs, beside their table
# Fields that a resumed run may change, but that must be equal for the runs of one table.
SHARED = ("num_epochs", "num_steps", "views", "log_every_steps")


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A run of an experiment: the name of its folder, its config, and when it ends (`until` of loop.train)."""

    name: str
    config: ConfigDict
    until: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The choices of the user.

    Attributes:
      name: name of the experiment.
      config: the config that all runs start from.
      seeds: number of runs that differ only by their seed.
      folder: folder of the experiment; each run has a folder with its name there.
      pretrain: the data set on which six_conv trains first.
      only: the names of the runs to make, without -seedN; empty for all.
    """

    name: str
    config: ConfigDict
    seeds: int
    folder: Path
    pretrain: str = ""
    only: tuple[str, ...] = ()

    def trial(self, name: str, changes: dict | None = None, *, seed: int, **rest) -> Trial:
        """A run with this config and changes by dotted names. `seed` is added to the config's own seed."""
        config = self.config.copy_and_resolve_references()
        config.update_from_flattened_dict({**(changes or {}), "seed": config.seed + seed})
        return Trial(f"{name}-seed{seed}", config, **rest)


Outcomes = dict[str, dict]
"""The content of result.json for each trial; {"diverged": message} if its numbers were not finite."""


def carry_out(
    setting: Setting,
    plan: Callable[[Setting, Outcomes], list[Trial]],
    write: Callable[[Setting, Outcomes], str],
    later: Mapping[str, str] = types.MappingProxyType({}),
) -> str | None:
    """Makes all missing runs of an experiment, one after the other, and its table.

    Several processes, each with its own devices, may work on the same folder: each takes the next free run. A run that
    was stopped is resumed from its last checkpoint.

    Args:
      setting: the argument of plan and write.
      plan: function that returns the runs known so far, given the finished ones. It is called again after each run.
      write: function that writes tables and figures of the finished runs, after each run; it returns the table as text.
      later: names, for `only`, of runs that plan returns only when others are finished; each with the others' name.

    Returns:
      The table; None after SIGTERM, with the current run saved.

    Raises:
      UsageError: before the first run, if a run cannot be made, if `only` has a name that is not a run's, or if the
        folder belongs to another experiment.
      KeyboardInterrupt: after Ctrl-C, with the current run saved.
    """
    folder, waiting = setting.folder, False
    claim(setting)
    _check(setting, _chosen(setting, plan(setting, outcomes(folder)), later))
    with hosts.Sigterm() as sigterm:
        while not sigterm.check():
            done = outcomes(folder)
            trials = _chosen(setting, plan(setting, done), later)
            left = [trial for trial in trials if trial.name not in done]
            if not left:
                return _write(setting, write)
            for trial in left:
                with alone(folder / trial.name) as mine:
                    if mine and not (folder / trial.name / OUTCOME).exists():
                        print(f"\n{trial.name} ({len(trials) - len(left) + 1} of {len(trials)})", flush=True)
                        if make(trial, folder):
                            _write(setting, write)
                        break
            else:
                if not waiting:
                    print("Other processes work on the remaining runs; this one waits for them.", flush=True)
                waiting = True
                time.sleep(2)
    if sigterm.interrupted():
        raise KeyboardInterrupt
    return None


def make(trial: Trial, folder: Path) -> dict | None:
    """Makes one run and saves its outcome; None if it was stopped before its end."""
    workdir = folder / trial.name
    try:
        outcome = loop.train(trial.config, workdir, until=trial.until)
    except FloatingPointError as error:
        outcome = {"diverged": str(error).partition(".")[0]}
        print(f"{outcome['diverged']}: recorded as diverged. To run it again, delete {workdir}.", flush=True)
    if outcome:
        write_whole(workdir / OUTCOME, json.dumps(outcome, indent=2) + "\n")
    return outcome


def outcomes(folder: Path) -> Outcomes:
    """The outcomes of all finished runs."""
    advice = "Remove it: the run is then evaluated again."
    return {path.parent.name: read_json(path, dict, advice) for path in sorted(folder.glob(f"*/{OUTCOME}"))}


def results(done: Outcomes, names: list[str]) -> tuple[list[dict], str]:
    """The outcomes of the runs that did not diverge; and as text, their number and how many diverged."""
    ended = [done[name] for name in names if name in done]
    whole = [outcome for outcome in ended if "diverged" not in outcome]
    diverged = len(ended) - len(whole)
    return whole, f"{len(whole)}, {diverged} diverged" if diverged else str(len(whole))


def claim(setting: Setting) -> None:
    """Records in the folder its experiment and config; UsageError if it has another experiment or config already."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    flat = config_lib.flatten(setting.config)
    free = {name for name, field in config_lib.FIELDS.items() if field.free} - set(SHARED)
    asked = {"experiment": setting.name, "--pretrain": setting.pretrain}
    asked |= {f"--config.{name}": value for name, value in flat.items() if name not in free}
    asked = json.loads(json.dumps(asked))  # because JSON turns tuples into lists
    path = setting.folder / "experiment.json"
    with alone(setting.folder, wait=True):
        if not path.exists():
            write_whole(path, json.dumps(asked, indent=2) + "\n")
    found = read_json(path, dict, "Give another --workdir.")
    before = json.loads(json.dumps(config_lib.with_newer(found, "--config.")))
    for name in asked.keys() | found.keys():
        if asked.get(name) != before.get(name):
            raise UsageError(
                f"{setting.folder} holds an experiment with {name}={before.get(name)}, but this one has "
                f"{name}={asked.get(name)}. Give the same value to continue it, or give another --workdir."
            )


def _chosen(setting, trials, later):
    """The runs that the user chose; UsageError if a name is not that of any run, or its run needs another one first."""
    if not setting.only:
        return trials
    names, asked = {trial.name.rpartition("-seed")[0] for trial in trials}, set(setting.only)
    if unknown := asked - names - {name for name, needed in later.items() if needed in asked}:
        raise UsageError(
            f"--only names {', '.join(sorted(unknown))}, but this experiment has the runs {', '.join(sorted(names))}. "
            "Give some of these."
        )
    return [trial for trial in trials if trial.name.rpartition("-seed")[0] in setting.only]


def _check(setting, trials):
    """Raises UsageError at the start, if a config is not accepted or data is missing."""
    for trial in trials:
        config_lib.check(trial.config)
    with alone(setting.folder, wait=True):  # the first process may have to prepare the data
        for trial in {trial.config.dataset: trial for trial in trials}.values():
            setup.open_data(trial.config)


def _write(setting, write):
    with alone(setting.folder, wait=True):
        done = outcomes(setting.folder)
        write_whole(setting.folder / OUTCOMES, json.dumps(done, indent=2) + "\n")
        return write(setting, done)


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False):
    """A `with` block for a folder, which only one process at a time can own. It yields whether this process owns it.

    With `wait`, it first waits until this process owns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("w") as file:  # released when the process ends, for any reason
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"WARNING: {folder} cannot be locked ({error.strerror}). Start no second process there.", flush=True)
        yield True
