"""The update rule (paper, section 5)."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

Rule = Literal["decoupled", "paper", "source2012", "caffe", "lars"]
RULES = get_args(Rule)
BIAS = 2.0  # the 2012 program's rate of biases, divided by its first rate of weights
TRUST = 0.001  # LARS: at rate 1, a kernel moves by this share of its norm


def update_rule(rule: Rule, rate, *, momentum: float, weight_decay, bias_rate=None) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum.

    With the rate eps, the gradient g of the batch's mean loss, weights w and velocity v:

      "paper"      v <- momentum v - weight_decay eps w - eps g
                   w <- w + v
      "source2012" as "paper", but biases have no weight decay, and twice the rate (the program sets
                   this rate once and never changes it: give it as bias_rate)
      "caffe"      as "source2012", but the rate of the biases stays twice that of the kernels (Caffe, and the 2012
                   program's files for CIFAR-10)
      "decoupled"  v <- momentum v - eps g
                   w <- w + v - eps weight_decay / (1 - momentum) w
      "lars"       v <- momentum v - eps r (g + weight_decay w)
                   w <- w + v,  r = 0.001 |w| / |g + weight_decay w|  for each layer's kernels;
                   biases have no weight decay and r = 0.001: eps = 10 moves them as 0.01 does in the paper

    "paper" and "decoupled" shrink a weight by the same share over time: the paper's decay passes
    through the velocity, which multiplies it by 1 / (1 - momentum). eps is inside the velocity, so
    after eps drops, the velocity still contains steps of the old eps. `optax.sgd` does not do this.
    "lars" is the rule of You, Gitman and Ginsburg (2017), for large batches.

    Rates are numbers or traced arrays. The state of the rule does not depend on them, so a step may build it
    again with each new rate. Parameters with rate 0 do not move, even with a velocity, as in the 2012 program.

    Args:
      rule: "decoupled", "paper", "source2012", "caffe" or "lars".
      rate: eps, a scalar; or a tree of scalars, one for each layer: {"conv1": 0.001, ...}.
      momentum: in [0, 1).
      weight_decay: the paper's 0.0005; or a tree of scalars, one for each layer.
      bias_rate: the rate of the biases, in the same form as `rate`; None for the rule's own.

    Raises:
      ValueError: for another rule.
    """
    kernels, biases = functools.partial(_named, "kernel"), functools.partial(_named, "bias")
    if bias_rate is None:
        bias_rate = jax.tree.map(lambda eps: BIAS * eps, rate) if rule in ("source2012", "caffe") else rate
    rates = rate, bias_rate
    decays = weight_decay, weight_decay if rule in ("paper", "decoupled") else 0.0
    descend = _link(lambda eps, u, w: -eps * u, rates)
    decay = _link(lambda share, u, w: u + share * w, decays)
    stand_still = _link(lambda eps, u, w: jnp.where(eps == 0, 0, u), rates)
    match rule:
        case "paper" | "source2012" | "caffe":
            links = decay, descend, optax.trace(momentum)
        case "decoupled":
            shrink = _link(lambda eps, share, u, w: u - eps * share / (1 - momentum) * w, rates, decays)
            links = descend, optax.trace(momentum), shrink
        case "lars":  # as optax.lars, but that has one rate for all layers
            links = (
                optax.masked(optax.scale(TRUST), biases),
                decay,
                optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), kernels),
                descend,
                optax.trace(momentum),
            )
        case _:
            raise ValueError(f"update_rule is {rule!r}; accepted are {', '.join(map(repr, RULES))}.")
    return optax.chain(*links, stand_still)


def _link(f, *settings):
    """A link of a chain that applies f(*values, update, weight) to each array, with the array's own values.

    Each of `settings` is a pair: for kernels and for biases, each a scalar, or a tree of one scalar for each layer.
    """

    def update(updates, params):
        values = [
            jax.tree.map(
                lambda is_bias, of_kernel, of_bias: of_bias if is_bias else of_kernel,
                _named("bias", updates),
                *(jax.tree.broadcast(setting, updates) for setting in pair),
            )
            for pair in settings
        ]
        return jax.tree.map(f, *values, updates, params)

    return optax.stateless(update)


def _named(name, params):
    """A tree of booleans: whether each parameter has this name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(path) and path[-1].key == name, params)
