"""The schedule of the learning rate (paper, section 5): a warm-up, and drops when the error stops improving.

A drop also waits until the network learns. A deep network with small initial weights stays at chance for many steps:
it gives every image nearly the same probabilities, and its validation error does not change. A smaller rate at that
time would stop the learning before it begins.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import optax

MEMORY = 0.05  # the share of each new loss in the running mean, which thus covers about 20 steps
LEFT = 0.95  # a run has left chance when its running mean of the loss is below this share of the loss at chance


@flax.struct.dataclass
class ScheduleState:
    """State of the schedule; all arrays are scalars.

    scale: float32, multiplies the learning rate.
    best: float32, the smallest validation error so far, in %.
    evaluations: int32, number of evaluations since `since`.
    since: int32, the step at which the wait for an improvement began: the step of the best error, of the last drop, or
      of the last evaluation at chance.
    loss: float32, running mean of the training loss, in nats; it starts at ln K.
    left_chance: int32, the first step after which the run had left chance; 0 before.
    """

    scale: jax.Array
    best: jax.Array
    evaluations: jax.Array
    since: jax.Array
    loss: jax.Array
    left_chance: jax.Array


def initial(num_classes: int) -> ScheduleState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return ScheduleState(
        scale=jnp.float32(1.0),
        best=jnp.float32(jnp.inf),
        evaluations=zero,
        since=zero,
        loss=jnp.float32(math.log(num_classes)),
        left_chance=zero,
    )


def chance_loss(label_counts, num_classes: int) -> jax.Array:
    """The loss at chance in nats: no network that gives every image the same probabilities has a smaller mean loss.

    This is the entropy of the labels, which is ln K if all K classes have as many images.

    Args:
      label_counts: (K,) number of training images of each class; None for classes of equal size.
      num_classes: K.
    """
    if label_counts is None:
        return jnp.float32(math.log(num_classes))
    shares = label_counts / jnp.sum(label_counts)
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares))


def after_step(state: ScheduleState, loss, step, chance) -> ScheduleState:
    """The state after a training step.

    Args:
      state: before the step.
      loss: () mean loss of the step's batch, in nats; train_step says what it takes for RBF.
      step: () int32, number of steps done, with this one.
      chance: () the loss at chance, in nats.
    """
    loss = (state.loss + MEMORY * (loss - state.loss)).astype(jnp.float32)
    left_now = (state.left_chance == 0) & (loss < LEFT * chance)
    return state.replace(loss=loss, left_chance=jnp.where(left_now, step, state.left_chance))


def after_evaluation(
    state: ScheduleState,
    error,
    step,
    *,
    factor: float,
    patience: int,
    patience_steps: int,
    drops: int,
    threshold: float,
) -> ScheduleState:
    """The state after an evaluation: the rate drops if the error has not improved for long enough.

    An evaluation at chance never counts. The paper says "divided by 10 when the validation error rate stopped
    improving", and neither how long it waited nor what counts as an improvement.

    Args:
      state: before the evaluation.
      error: () validation error in %.
      step: () int32, number of steps done.
      factor: the paper's 0.1.
      patience: a drop needs this many evaluations in a row without improvement.
      patience_steps: it also needs this many steps since the best error, or since the last drop.
      drops: largest number of drops; the paper's 3.
      threshold: smallest improvement that counts, as a share of the best error so far.
    """
    improved, at_chance = error < (1 - threshold) * state.best, state.left_chance == 0
    evaluations = state.evaluations + 1
    drop = ~improved & ~at_chance & (evaluations >= patience) & (step - state.since >= patience_steps)
    begins = improved | at_chance | drop
    return state.replace(
        scale=jnp.where(drop, jnp.maximum(factor * state.scale, factor**drops), state.scale),
        best=jnp.where(improved, error, state.best),
        evaluations=jnp.where(begins, 0, evaluations),
        since=jnp.where(begins, step, state.since),
    )


def cooldown(end: int, steps: int) -> optax.Schedule:
    """The rate's multiplier at the end of a run: it falls linearly, from 1 to 1/steps in the last step.

    Args:
      end: number of steps of the run.
      steps: number of steps, before the end, in which it falls; 0: it stays 1.
    """
    if steps == 0:
        return optax.constant_schedule(1.0)
    return lambda step: jnp.clip((end - step) / steps, 0.0, 1.0)


def warmup(steps: int) -> optax.Schedule:
    """The rate's multiplier at the start: 1/steps in the first step, growing linearly to 1 (Goyal et al. 2017)."""
    return optax.linear_schedule(1 / steps, 1.0, steps - 1) if steps > 1 else optax.constant_schedule(1.0)
