"""The recipe (paper, sections 4 and 5): all settings that stay the same while a network trains."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.network.architectures import weighted
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training import augment, optimizer
from alexnet_jax.training.schedule import cooldown, warmup


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings that stay the same in training; static to the compiler."""

    network: AlexNet
    seed: int
    mean_at: augment.MeanAt
    crop: bool
    flip: bool
    min_area: float  # smallest share of an image that a crop covers; 1: the paper's crops of one size
    group: int  # number of consecutive examples that share one crop and one flip
    pca_std: float
    pca_scale: str
    pca_rescale: bool
    pca_steps: int  # colour shifts stop after this many steps; 0: they never stop
    accumulate: int  # number of parts of a batch, computed one after the other
    learning_rate: float
    warmup_steps: int
    end: int  # number of steps of the run
    cooldown_steps: int  # the rate falls linearly in so many steps before the end
    schedule: tuple[tuple[int, str, float], ...]  # (step, layer or "*", rate): the rate from this step on
    momentum: float
    weight_decay: float
    weight_decays: tuple[tuple[str, float], ...]  # (layer, decay) of the layers that have one of their own
    update_rule: optimizer.Rule
    plateau: tuple[tuple[str, float], ...]  # arguments of schedule.after_evaluation

    def key(self, use: str) -> jax.Array:
        """The random key for "init", "augment" or "dropout"."""
        return jax.random.split(jax.random.key(self.seed), 3)[("init", "augment", "dropout").index(use)]

    def rule(self, rate=1.0, bias_rate=1.0) -> optax.GradientTransformation:
        """The update rule with these rates; its state does not depend on them."""
        decay = self.weight_decay
        if self.weight_decays:
            decay = dict.fromkeys(weighted(self.network.architecture), decay) | dict(self.weight_decays)
        return optimizer.update_rule(
            self.update_rule, rate, bias_rate=bias_rate, momentum=self.momentum, weight_decay=decay
        )

    def rate(self, state, layer: str = "*"):
        """The learning rate of a layer's kernels in the step after `state`; "*": of layers that the schedule omits."""
        rate = self.learning_rate
        for name in dict.fromkeys(("*", layer)):
            for step, scheduled, value in self.schedule:
                if scheduled == name:
                    rate = jnp.where(state.step >= step, value, rate)
        return rate * self.ramp(state.step) * state.schedule.scale

    def ramp(self, step):
        """What warm-up and cooldown multiply the rates by, in the step after `step` steps."""
        return warmup(self.warmup_steps)(step) * cooldown(self.end, self.cooldown_steps)(step)

    def bias_rate(self, state, layer: str):
        """The learning rate of a layer's biases.

        In the 2012 program it is set once: by the program's notes, only the rates of weights drop, and its
        files end with 0.02 for biases and 0.00001 for weights.
        """
        rate = self.rate(state, layer)
        if self.update_rule == "caffe":
            return optimizer.BIAS * rate
        if self.update_rule != "source2012":
            return rate
        return jnp.where(rate == 0, 0.0, optimizer.BIAS * self.learning_rate * self.ramp(state.step))
