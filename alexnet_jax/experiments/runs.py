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
from alexnet_jax import loop
from alexnet_jax.config import UsageError
from alexnet_jax.files import write_whole

OUTCOME = "outcome.json"
LENGTH = ("num_epochs", "num_steps", "views")  # a resumed run may change them; one that has ended may not


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
      config: that all runs vary.
      seeds: how many runs differ by nothing but their seed.
      folder: of the experiment; a run lies in the folder of its name there.
      pretrain: the data set that six_conv begins with.
    """

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
      The table; None where SIGTERM or Ctrl-C came, and the run at hand is saved.

    Raises:
      UsageError: as loop.train; or if a run there was made with another config.
    """
    folder, waiting = setting.folder, False
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        done = outcomes(folder)
        trials = plan(setting, done)
        for trial in trials:
            if trial.name in done:
                _check_same(trial, folder)
        left = [trial for trial in trials if trial.name not in done]
        if not left:
            return write(setting, done)
        for trial in left:
            with _alone(folder / trial.name) as mine:
                if not mine or (folder / trial.name / OUTCOME).exists():
                    continue
                print(f"\n{trial.name} ({len(trials) - len(left) + 1} of {len(trials)})", flush=True)
                if not make(trial, folder):
                    return None
                write(setting, outcomes(folder))
                break
        else:
            if not waiting:
                print("Other processes are at the runs that are left; this one waits for them.", flush=True)
            waiting = True
            time.sleep(2)


def make(trial: Trial, folder: Path) -> dict | None:
    """Makes one run, and notes its outcome; None if it was stopped before its end."""
    workdir = folder / trial.name
    try:
        outcome = loop.train(trial.config, workdir, until=trial.until)
    except FloatingPointError as error:
        outcome = {"diverged": str(error)}
        print(error, flush=True)
    if not outcome:
        return None
    outcome["length"] = {name: trial.config[name] for name in LENGTH}
    write_whole(workdir / OUTCOME, json.dumps(outcome, indent=2) + "\n")
    return outcome


def outcomes(folder: Path) -> Outcomes:
    """The outcomes of all runs there that have ended."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{OUTCOME}"))}


def _check_same(trial, folder):
    """Raises UsageError unless a run that has ended had the trial's config."""
    workdir = folder / trial.name
    config_lib.check_resumable(trial.config, config_lib.load(workdir / "config.json"), workdir)
    for name, before in json.loads((workdir / OUTCOME).read_text())["length"].items():
        if (now := trial.config[name]) != before:
            raise UsageError(
                f"{workdir} holds a run that ended with {name}={before}, and this one has {name}={now}. Set "
                f"--config.{name}={before}; for other runs give another --workdir."
            )


@contextlib.contextmanager
def _alone(folder):
    """Whether no other process is at work in a folder; none will be, within the `with` block, if so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:  # given up with the process, however it ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
