"""Sets of runs: each an ordinary run of the trainer, in a folder of its own, made once and resumed where it stopped."""

import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax import hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.files import write_whole
from alexnet_jax.training import loop, setup

OUTCOME = "outcome.json"
OUTCOMES = "outcomes.json"  # of all runs that have ended, beside their table
# Fields that a run may change when it is resumed, and that the runs of one table share.
SHARED = ("num_epochs", "num_steps", "views", "log_every_steps")


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A run of an experiment: the name of its folder, its config, and until when it goes (loop.train)."""

    name: str
    config: ConfigDict
    until: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What the user chose.

    Attributes:
      name: of the experiment.
      config: that all runs vary.
      seeds: how many runs differ by nothing but their seed.
      folder: of the experiment; a run lies in the folder of its name there.
      pretrain: the data set that six_conv begins with.
    """

    name: str
    config: ConfigDict
    seeds: int
    folder: Path
    pretrain: str = ""

    def trial(self, name: str, changes: dict | None = None, *, seed: int, **rest) -> Trial:
        """A run with this config but for changes, by dotted names; seeds count from the config's own on."""
        config = self.config.copy_and_resolve_references()
        config.update_from_flattened_dict({**(changes or {}), "seed": config.seed + seed})
        return Trial(f"{name}-seed{seed}", config, **rest)


Outcomes = dict[str, dict]
"""By trial, what its result.json holds; {"diverged": message} where the numbers became infinite."""


def carry_out(
    setting: Setting,
    plan: Callable[[Setting, Outcomes], list[Trial]],
    write: Callable[[Setting, Outcomes], str],
) -> str | None:
    """Makes all runs of an experiment that are not there yet, one after the other, and its table.

    Several processes may work on the same folder, each with devices of its own: each takes the next run that nobody
    is at. A run that was cut off is resumed, at its last checkpoint.

    Args:
      setting: what plan and write are given.
      plan: the runs of the experiment as far as they are known, given those that have ended. Asked again after each.
      write: writes tables and figures of the runs that have ended, whenever another has; gives the table as text.

    Returns:
      The table; None where SIGTERM came, and the run at hand is saved.

    Raises:
      UsageError: before the first run, if one of them could not be made; or if the folder is of another experiment.
      KeyboardInterrupt: where Ctrl-C came, and the run at hand is saved.
    """
    folder, waiting = setting.folder, False
    claim(setting)
    _check(setting, plan(setting, outcomes(folder)))
    with hosts.Sigterm() as sigterm:
        while not sigterm.check():
            done = outcomes(folder)
            trials = plan(setting, done)
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
                    print("Other processes are at the runs that are left; this one waits for them.", flush=True)
                waiting = True
                time.sleep(2)
    if sigterm.interrupted():
        raise KeyboardInterrupt
    return None


def make(trial: Trial, folder: Path) -> dict | None:
    """Makes one run, and notes its outcome; None if it was stopped before its end."""
    workdir = folder / trial.name
    try:
        outcome = loop.train(trial.config, workdir, until=trial.until)
    except FloatingPointError as error:
        outcome = {"diverged": str(error).partition(".")[0]}
        print(f"{outcome['diverged']}: noted as diverged. To make it again, delete {workdir}.", flush=True)
    if outcome:
        write_whole(workdir / OUTCOME, json.dumps(outcome, indent=2) + "\n")
    return outcome


def outcomes(folder: Path) -> Outcomes:
    """The outcomes of all runs there that have ended."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{OUTCOME}"))}


def results(done: Outcomes, names: list[str]) -> tuple[list[dict], str]:
    """The outcomes of those runs that came to their end; and in words, how many these are and how many diverged."""
    ended = [done[name] for name in names if name in done]
    whole = [outcome for outcome in ended if "diverged" not in outcome]
    diverged = len(ended) - len(whole)
    return whole, f"{len(whole)}, {diverged} diverged" if diverged else str(len(whole))


def claim(setting: Setting) -> None:
    """Notes in the folder which experiment it is of; UsageError if it is of another one, or of another config."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    flat = config_lib.flatten(setting.config)
    free = {name for name, field in config_lib.FIELDS.items() if field.free} - set(SHARED)
    asked = {"experiment": setting.name, "--pretrain": setting.pretrain}
    asked |= {f"--config.{name}": value for name, value in flat.items() if name not in free}
    asked = json.loads(json.dumps(asked))  # tuples are lists there
    path = setting.folder / "experiment.json"
    with alone(setting.folder, wait=True):
        if not path.exists():
            write_whole(path, json.dumps(asked, indent=2) + "\n")
    before = json.loads(path.read_text())
    for name in asked.keys() | before.keys():
        if asked.get(name) != before.get(name):
            raise UsageError(
                f"{setting.folder} holds an experiment with {name}={before.get(name)}, and this one has "
                f"{name}={asked.get(name)}. Give the same to continue it; for other values, give another --workdir."
            )


def _check(setting, trials):
    """Raises UsageError, before hours have passed, for a config that is not accepted or data that is not there."""
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
    """Whether no other process is in such a `with` block of the folder; none will be, within this one, if so.

    With `wait`, it waits until that is so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:  # given up with the process, however it ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
