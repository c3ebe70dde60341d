"""The length of the run: whether it has time to leave chance, and when the learning rate can drop."""

import math

from alexnet_jax.data.batches import Order
from alexnet_jax.doctor.findings import Findings, ok, warning
from alexnet_jax.training import chance


def length(config, steps: int, examples: int) -> Findings:
    """Steps of an epoch and of the run, the first possible drop of the rate, and the steps to leave chance.

    Args:
      config: of the run.
      steps: number of steps of the run.
      examples: number of training images.
    """
    per_epoch = float(Order.of_run(config, examples).start(1)) / config.batch_size  # of the first epochs
    text = f"{steps:,} steps, {per_epoch:,.1f} an epoch; {_drops(config, per_epoch, steps)}"
    known = chance.measured(config.architecture)
    if known is None:
        yield ok("length", f"{text}; how many steps {config.architecture} needs to leave chance was not measured")
        return
    name, needed, data = known
    text += f"; {name} left chance after {needed:,} steps on {data}"
    if steps > needed:
        yield ok("length", text)
    else:
        field = chance.length_field(config)
        enough = 2 * needed if field == "num_steps" else math.ceil(2 * needed / per_epoch)
        yield warning(
            "length",
            f"{text}: this run may end before it learns. Set --config.{field}={enough} or more, a smaller "
            "--config.batch_size, or start from trained weights (--config.pretrained).",
        )


def _drops(config, per_epoch, steps):
    plateau, by = config.plateau, []
    if config.schedule:
        by.append("the rate drops by config.schedule")
    if config.cooldown:
        by.append(f"the rate falls to 0 in the last {config.cooldown:.0%} of the steps")
    if not plateau.drops:
        return " and ".join(by) or "the rate never drops"
    interval = config.eval_every_steps or per_epoch
    # The first evaluation is the best; the others do not improve.
    evaluations = 1 + max(plateau.patience, math.ceil(plateau.patience_steps / interval))
    first = math.ceil(evaluations * interval)
    if first > steps:
        return "the rate does not drop in so few steps"
    return f"the rate can drop from step {first:,} on"
