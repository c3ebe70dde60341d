"""The update rule and the schedule of its rate (paper, section 5)."""

from typing import Literal, get_args

import optax

Form = Literal["decoupled", "paper"]
FORMS = get_args(Form)


def update_rule(form: Form, rate, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum, at one rate.

    With the rate eps, the gradient g of the batch's mean loss, weights w and velocity v:

      "paper"      v <- momentum v - weight_decay eps w - eps g
                   w <- w + v
      "decoupled"  v <- momentum v - eps g
                   w <- w + v - eps weight_decay / (1 - momentum) w

    Both remove the same share of a weight over time: the paper's decay passes through
    the velocity, which multiplies it by 1 / (1 - momentum). eps is inside the velocity,
    so that after a drop of eps the velocity still carries steps of the old one, which
    `optax.sgd` does not do.

    The rate is an ordinary number or a traced array: the chain's state does not depend
    on it, so a step may build the chain anew at each rate.

    Args:
      form: "decoupled" or "paper".
      rate: eps, a scalar.
      momentum: in [0, 1).
      weight_decay: the paper's 0.0005.

    Raises:
      ValueError: for another form.
    """
    match form:
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
    raise ValueError(f"weight_decay_form is {form!r}; accepted are {', '.join(map(repr, FORMS))}.")


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
