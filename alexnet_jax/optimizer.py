"""The update rule and the schedule of its rate (paper, section 5)."""

import functools
from typing import Literal, get_args

import jax
import optax

Rule = Literal["decoupled", "paper", "lars"]
RULES = get_args(Rule)
TRUST = 0.001  # share of a kernel's norm that LARS moves at the rate 1


def update_rule(rule: Rule, rate, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum, at one rate.

    With the rate eps, the gradient g of the batch's mean loss, weights w and velocity v:

      "paper"      v <- momentum v - weight_decay eps w - eps g
                   w <- w + v
      "decoupled"  v <- momentum v - eps g
                   w <- w + v - eps weight_decay / (1 - momentum) w
      "lars"       v <- momentum v - eps r (g + weight_decay w)
                   w <- w + v,  r = 0.001 |w| / |g + weight_decay w|  for each layer's kernels;
                   biases have no weight decay and r = 0.001, so that eps = 10 moves them as
                   the paper's 0.01 does

    The first two remove the same share of a weight over time: the paper's decay passes through
    the velocity, which multiplies it by 1 / (1 - momentum). eps is inside the velocity,
    so that after a drop of eps the velocity still carries steps of the old one, which
    `optax.sgd` does not do. "lars" is optax.lars, for large batches (You, Gitman, Ginsburg 2017).

    The rate is an ordinary number or a traced array: the chain's state does not depend
    on it, so a step may build the chain anew at each rate.

    Args:
      rule: "decoupled", "paper" or "lars".
      rate: eps, a scalar.
      momentum: in [0, 1).
      weight_decay: the paper's 0.0005.

    Raises:
      ValueError: for another rule.
    """
    match rule:
        case "paper":
            return optax.chain(
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(rate),
                optax.trace(momentum),
            )
        case "decoupled":
            return optax.chain(
                optax.scale_by_learning_rate(rate),
                optax.trace(momentum),
                optax.add_decayed_weights(-rate * weight_decay / (1 - momentum)),
            )
        case "lars":
            kernels, biases = functools.partial(_named, "kernel"), functools.partial(_named, "bias")
            return optax.chain(
                optax.masked(optax.scale(TRUST), biases),
                optax.lars(
                    rate,
                    weight_decay,
                    weight_decay_mask=kernels,
                    trust_coefficient=TRUST,
                    trust_ratio_mask=kernels,
                    momentum=momentum,
                ),
            )
    raise ValueError(f"update_rule is {rule!r}; accepted are {', '.join(map(repr, RULES))}.")


def _named(name, params):
    """Which of the parameters have a name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == name, params)


def warmup(steps: int) -> optax.Schedule:
    """The rate's multiplier at the start: 1/steps for the first step, growing linearly to 1 (Goyal et al. 2017)."""
    return optax.linear_schedule(1 / steps, 1.0, steps - 1) if steps > 1 else optax.constant_schedule(1.0)


def plateau_schedule(*, factor: float, patience: int, drops: int, threshold: float):
    """The rate's multiplier: times `factor` whenever the validation error stops improving.

    Its state holds the multiplier in `scale`; `update({}, state, value=error)` feeds it one error.

    Args:
      factor: the paper's 0.1.
      patience: evaluations in a row without improvement before a drop.
      drops: how often it may drop; the paper's 3.
      threshold: improvement that counts, as a share of the best error so far.
    """
    return optax.contrib.reduce_on_plateau(
        factor=factor, patience=patience, rtol=threshold, cooldown=0, min_scale=factor**drops
    )
