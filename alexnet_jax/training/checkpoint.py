"""Checkpoints by Orbax: the best and the last are kept, written in the background, and checked when restored."""

import logging
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from alexnet_jax.errors import UsageError

ERROR = "top1_error"  # the metric that decides which checkpoint is the best


class _Manager(ocp.CheckpointManager):
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
        self._manager = _Manager(
            self._folder,
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
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

    def __exit__(self, *_):
        self._manager.close()

    def save(self, state, *, error: float | None, notes: dict) -> None:
        """Saves a state under its step, unless that step is already saved. Afterwards the state may be donated.

        Args:
          state: tree of arrays with a field `step`.
          error: validation top-1 error in %, or None if it was not measured at this step.
          notes: JSON values to keep with it.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(_flatten(state)), notes=ocp.args.JsonSave(notes))
        self._manager.save(step, args=items, metrics=None if error is None else {ERROR: error})

    def latest_step(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self._manager.latest_step()

    def step_of(self, which: Literal["last", "best"]) -> int:
        """The step of the last checkpoint, or of the best one, which has the smallest validation error.

        Raises:
          UsageError: if there is no such checkpoint.
        """
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
        """
        self.check(step, like)
        expected = _flatten(like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(expected), notes=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        leaves = [restored.state[name] for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored.notes

    def params(self, step: int) -> tuple[dict, dict]:
        """The parameters of a step as NumPy arrays, {layer: {name: array}}, for any network; and the step's notes."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        stored = self._manager.item_metadata(step).state
        whole = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for name, a in stored.items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(whole), notes=ocp.args.JsonRestore())
        restored, params = self._manager.restore(step, args=items), {}
        for path, array in restored.state.items():
            if path.startswith("params/"):
                _, layer, name = path.split("/")
                params.setdefault(layer, {})[name] = np.asarray(array)
        return params, restored.notes

    def check(self, step: int, like) -> None:
        """Raises UsageError in the same cases as restore, without reading the arrays."""
        stored = {name: (a.shape, a.dtype) for name, a in self._manager.item_metadata(step).state.items()}
        wanted = {name: (a.shape, a.dtype) for name, a in _flatten(like).items()}
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise UsageError(
                    f"checkpoint {step} in {self._folder} belongs to another network: it has "
                    f"{_words(stored.get(name))} for {name}, but expected is {_words(wanted.get(name))}. Use the "
                    "architecture and the number of classes that it was trained with, or give another --workdir."
                )


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


def _worth_telling(record):
    """Whether a record goes to a run's log: Orbax's progress and its remark on checkpoints without an error do not."""
    return "orbax" not in record.pathname or (record.levelno > logging.INFO and "tracked_metric" not in str(record.msg))


logging.getLogger("absl").addFilter(_worth_telling)
