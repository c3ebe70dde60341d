"""The end of a run: the errors of its last state, result.json, the closing table, and report.html."""

import dataclasses

import jax
from absl import logging

from alexnet_jax import convert, hosts
from alexnet_jax.evaluation.errors import errors_table, views_by_name
from alexnet_jax.files.copies import copy_of, named
from alexnet_jax.training import chance, outputs, schedule
from alexnet_jax.training.setup import Run
from alexnet_jax.training.step import TrainState


def conclude(run: Run, state: TrainState, seconds: float, sigterm: hosts.Sigterm) -> dict:
    """Evaluates a state with one view and with many, writes result.json and prints a table.

    If it is stopped before the end, it returns an empty result and writes nothing.
    """
    views = views_by_name(run.config.views)
    errors = {name: run.evaluate(state.params, views=n, interrupted=sigterm.check) for name, n in views.items()}
    if sigterm.came:
        return {}
    result = {
        **{name: dataclasses.asdict(e) for name, e in errors.items()},
        "examples": errors["one_view"].examples,
        "examples_seen_in_training": int(state.step) * run.config.batch_size,
        "steps": int(state.step),
        "epochs": round(float(run.order.epochs(int(state.step) * run.config.batch_size)), 4),
        "left_chance_at_step": int(state.schedule.left_chance) or None,
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "seconds": round(seconds, 1),
    }
    if jax.process_index() == 0:
        outputs.write_result(run.workdir, result)
    hosts.say(errors_table(f"{run.config.architecture}, {run.data.evaluation.name}", errors))
    if float(state.schedule.loss) >= schedule.LEFT * run.chance:
        ever = result["left_chance_at_step"] is not None
        hosts.say(chance.warning(result["steps"], run.config, run.chance, ever=ever))
    return result


def write_report(run):
    """Writes report.html for a run that has ended. Process 0 does this with its own devices; the others wait."""
    from alexnet_jax.inspection import report  # slow to import, and needed once

    try:
        first = jax.process_index() == 0
        # On all processes, as Orbax requires; but of a workdir in an object store, process 0 has the last copy.
        weights = convert.read(run.workdir) if first or not copy_of(run.workdir) else None
        if first:
            path = report.write(run.workdir, config=run.config, data=run.data, weights=weights)
            hosts.say(f"Wrote: {path}")
    except Exception:  # the run itself is complete
        again = named(f"python -m alexnet_jax report --workdir={run.workdir}")
        logging.exception("report.html could not be written; %s tries again.", again)
    hosts.together(lambda: None)
