"""Checkpoints by Orbax: the best and the last are kept, written in the background, and checked when restored.

The notes of a checkpoint hold a checksum of each array and one of the notes. Every reader compares them.
"""

import contextlib
import itertools
import logging
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from alexnet_jax import hosts
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies
from alexnet_jax.training.checksums import checksum_of_notes, checksums

ERROR = "top1_error"  # the metric that decides which checkpoint is the best


CHECKSUMS = "checksums"  # in the notes
ASIDE = "damaged"  # the folder of a workdir for checkpoints that cannot be read


class SaveError(UsageError):
    """A checkpoint that cannot be saved."""


class DamagedError(UsageError):
    """A checkpoint that cannot be read, or has other numbers than were saved."""


class _Manager(ocp.CheckpointManager):
    without_error: set[int]  # steps whose validation error is damaged

    def __init__(self, *arguments, **options):
        self.without_error = set()
        super().__init__(*arguments, **options)

    def metrics(self, step):
        """The metrics of a step; None also if they are damaged, for Orbax then does not open the others either."""
        try:
            metrics = super().metrics(step)
            if metrics is None or isinstance(metrics[ERROR], float | int):
                return metrics
        except (OSError, ValueError, TypeError, KeyError):
            pass
        self.without_error.add(step)
        return None

    def reached_preemption(self, step):
        """Always False, because only the loop decides when to stop.

        A second query would change the step where all processes stop.
        """
        return False


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last write when it ends.

    A state is stored flat: each array under its path in the tree (params/conv1/kernel). So the stored
    arrays can be compared with the expected ones by name.
    """

    def __init__(self, workdir: Path):
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._copy = copies.copy_of(self._folder)  # of a workdir in an object store
        # Several processes then have copies of their own: each restores from its own, and process 0 alone saves.
        self._alone = self._copy is not None and jax.process_count() > 1
        self._passed = set()  # the steps that process 0 saved, in the other processes
        processes = _this_process() if self._alone else ocp.options.MultiprocessingOptions()
        if self._alone:  # Orbax would wait for the others
            self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = _Manager(
            self._folder,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
                "notes": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
            options=ocp.CheckpointManagerOptions(
                create=not self._alone,
                multiprocessing_options=processes,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(1),
                        # A checkpoint in the middle of an epoch has no error and cannot be the best.
                        checkpoint_managers.BestN(
                            get_metric_fn=_error, reverse=True, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                # The policy overrides these two, but without them Orbax does not write the metrics.
                best_fn=_error,
                best_mode="min",
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._manager.close()
            if self._copy:
                self._copy.settle()
        except Exception as error:
            if kind is None:  # otherwise the error that is on its way says it already
                raise self._not_saved(error) from error

    def save(self, state, *, error: float | None, notes: dict) -> None:
        """Saves a state under its step, unless that step is already saved. Afterwards the state may be donated.

        Args:
          state: tree of arrays with a field `step`.
          error: validation top-1 error in %, or None if it was not measured at this step.
          notes: JSON values to keep with it.

        Raises:
          SaveError: if this checkpoint, or the one before it, cannot be written; or if the workdir is gone.
        """
        step = int(state.step)
        if not self._folder.is_dir():
            raise self._gone()
        if step in {*self._manager.all_steps(), *self._passed}:
            return
        flat = _flatten(state)
        notes = notes | {CHECKSUMS: checksums(flat) | {"notes": checksum_of_notes(notes)}}
        if self._alone:
            flat = multihost_utils.process_allgather(flat, tiled=True)
            if jax.process_index():
                self._passed.add(step)
                return
        items = ocp.args.Composite(state=ocp.args.StandardSave(flat), notes=ocp.args.JsonSave(notes))
        try:
            if self._copy:
                self._copy.settle()  # what is put must not be removed meanwhile
            self._manager.save(step, args=items, metrics=None if error is None else {ERROR: error})
            if self._copy:
                self._manager.wait_until_finished()
                self._copy.put_later()
        except Exception as failure:
            raise self._not_saved(failure) from failure

    def _gone(self):
        return SaveError(
            f"{self._folder} is gone: the workdir was moved or removed during the run. Its last checkpoint is that of "
            f"step {self.latest_step() or 'none'}. Move it back; the same command then resumes the run."
        )

    def _not_saved(self, error):
        if isinstance(error, UsageError):
            return error
        if not self._folder.is_dir():
            return self._gone()
        words = (str(error) or type(error).__name__).splitlines()[0]
        why = "the disk is full" if "RESOURCE_EXHAUSTED" in words or "No space left" in words else words[:200]
        where = f"{'the local copy of ' if self._copy else ''}{self._folder}"
        return SaveError(
            f"a checkpoint cannot be written to {where} ({why}). Free some space, or correct the cause. Earlier "
            "checkpoints are kept; the same command resumes the run."
        )

    def latest_step(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self._manager.latest_step()

    def step_of(self, which: Literal["last", "best"]) -> int:
        """The step of the last checkpoint, or of the best one, which has the smallest validation error.

        Raises:
          UsageError: if there is no such checkpoint.
        """
        if which == "best" and (damaged := sorted(self._manager.without_error)):
            raise DamagedError(
                f"the validation error of checkpoint {damaged[0]} in {self._folder} is damaged, so it is not known "
                "which checkpoint is the best. Copy it again, or use the last checkpoint: --checkpoint=last."
            )
        step = self.latest_step() if which == "last" else self._manager.best_step()
        if step is None and self.latest_step() is not None:
            raise UsageError(
                f"{self._folder} holds no checkpoint with a validation error yet; the first is saved at the end "
                "of an epoch. Use the last checkpoint: --checkpoint=last."
            )
        if step is None:
            raise UsageError(f"{self._folder} holds no checkpoint. Train first, or give the --workdir of a run.")
        return step

    def restore(self, step: int, like):
        """The state and the notes that were saved at a step.

        Args:
          step: of an existing checkpoint.
          like: tree of jax.ShapeDtypeStruct with shardings, for the expected state.

        Raises:
          UsageError: if the stored arrays differ from the expected ones in names, shapes or types.
          DamagedError: if the checkpoint is damaged; all processes raise it.
        """
        expected = _flatten(like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(expected), notes=ocp.args.JsonRestore())

        def read():
            self.check(step, like)
            with self._whole(step):
                return self._manager.restore(step, args=items)

        restored = _alike(read)
        notes = _alike(lambda: self._verified(step, restored))
        leaves = [restored.state[name] for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), notes

    def restore_newest(self, like):
        """The state and the notes of the newest checkpoint that is whole; None if there are no checkpoints.

        Newer ones, which are damaged, are moved to ASIDE in the workdir, with a line that says why.

        Args:
          like: as in restore.

        Raises:
          UsageError: as restore; and if there are checkpoints, but all are damaged.
        """
        for step in sorted(self._manager.without_error):
            hosts.say(
                f"WARNING: the validation error of checkpoint {step} is damaged; it no longer counts as the best."
            )
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self.restore(step, like)
            except DamagedError as error:
                damaged[step] = error
                continue
            self._set_aside(damaged)
            return found
        if damaged:
            raise UsageError("\n".join([*map(str, damaged.values()), f"No checkpoint in {self._folder} is whole."]))
        return None

    def _set_aside(self, damaged):
        for step, error in damaged.items():
            folder = self._folder.parent / ASIDE
            names = (f"checkpoint {step}" + f" ({n})" * (n > 1) for n in itertools.count(1))
            aside = next(folder / name for name in names if not (folder / name).exists())
            hosts.together(lambda: None)  # until all processes have this name
            if jax.process_index() == 0 or self._alone:
                folder.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)
            hosts.say(f"WARNING: {error}\nIt is kept in {aside}; the run goes on from the checkpoint before it.")
        if damaged:
            hosts.together(lambda: None)  # until process 0 has moved them
            self._manager.reload()

    def params(self, step: int) -> tuple[dict, dict]:
        """The parameters of a step as NumPy arrays, {layer: {name: array}}, for any network; and the step's notes.

        Raises:
          DamagedError: if the checkpoint is damaged.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        params = {}
        with self._whole(step):
            stored = self._manager.item_metadata(step).state
            whole = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for name, a in stored.items()}
            items = ocp.args.Composite(state=ocp.args.StandardRestore(whole), notes=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        notes = self._verified(step, restored)
        for path, array in restored.state.items():
            if path.startswith("params/"):
                _, layer, name = path.split("/")
                params.setdefault(layer, {})[name] = np.asarray(array)
        return params, notes

    @contextlib.contextmanager
    def _whole(self, step):
        """Turns what Orbax raises for a damaged checkpoint, which can be of any type, into DamagedError."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            raise self._damage(step, (str(error) or type(error).__name__).splitlines()[0][:200]) from error

    def _damage(self, step, why):
        return DamagedError(
            f"checkpoint {step} in {self._folder} is damaged, or was not copied completely ({why}). Copy it again, or "
            "use the other one: --checkpoint=last or best."
        )

    def _verified(self, step, restored):
        """The notes of a checkpoint without checksums, which are compared."""
        notes = dict(restored.notes)
        saved = notes.pop(CHECKSUMS, None)
        if saved is None:
            if any(isinstance(value, dict) for value in notes.values()):  # only the checksums are one
                raise self._damage(step, "its checksums are not where they were saved")
            hosts.say(
                f"Checkpoint {step} in {self._folder} has no checksums: an older version of this program saved it."
            )
            return notes
        now = checksums(restored.state) | {"notes": checksum_of_notes(notes)}
        for name in sorted(now.keys() | saved.keys()):
            if now.get(name) != saved.get(name):
                raise self._damage(step, f"{name} has other numbers than were saved")
        return notes

    def check(self, step: int, like) -> None:
        """Raises UsageError and DamagedError as restore, without reading the arrays."""
        with self._whole(step):
            stored = {name: (a.shape, a.dtype) for name, a in self._manager.item_metadata(step).state.items()}
        wanted = {name: (a.shape, a.dtype) for name, a in _flatten(like).items()}
        if stored.keys() != wanted.keys():
            with self._whole(step):
                notes = self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())).notes
            if stored.keys() != notes.get(CHECKSUMS, stored).keys() - {"notes"}:
                raise self._damage(step, "it names other arrays than were saved")
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self._folder} belongs to another network: it has "
                    f"{_words(stored.get(name))} for {name}, but expected is {_words(wanted.get(name))}. Use the "
                    "architecture and the number of classes that it was trained with, or give another --workdir."
                )


def _this_process():
    """What makes Orbax wait for no other process."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def _alike(work):
    """The result of work(); if it raises DamagedError on one process, all processes raise that error."""
    result, error = None, ""
    try:
        result = work()
    except DamagedError as damage:
        error = str(damage)
    if found := [text for text in hosts.gather(error) if text]:
        raise DamagedError(found[0])
    return result


def _error(metrics):
    return metrics[ERROR]


def _flatten(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _words(shape_and_dtype):
    if shape_and_dtype is None:
        return "nothing"
    shape, dtype = shape_and_dtype
    return f"{dtype}{list(shape)}"


_SILENT = "tracked_metric", "raised an exception", "Finalize thread"


def _worth_telling(record):
    """Whether a record goes to a run's log.

    Of Orbax's records, these do not: progress, a remark on checkpoints without an error, errors that it also raises.
    """
    if "orbax" not in record.pathname:
        return True
    raised = bool(record.exc_info) or any(words in str(record.msg) for words in _SILENT)
    return record.levelno > logging.INFO and not raised


logging.getLogger("absl").addFilter(_worth_telling)
# Of the tasks that write arrays, Orbax reports the first that fails. Python would print a traceback for each other one.
logging.getLogger("asyncio").addFilter(lambda record: "write_fragment" not in record.getMessage())
