"""The four-layer network on CIFAR-10 with and without normalization (paper, section 3.3: 11% and 13%).

For the network and the recipe, the paper refers to its code. Here the network is that of figure 1, with a recipe that a
CPU can run: mirrored images, weight decay, eight epochs, a learning rate that drops twice.
"""

import functools

from alexnet_jax.experiments import runs, seeds
from alexnet_jax.experiments.runs import Setting

CONFIG = "configs/cifar10.py"
DEFAULTS = (
    "--config.augment.flip=true",
    "--config.learning_rate=0.002",
    "--config.weight_decay=0.004",
    "--config.schedule=((6,'*',2e-4),(7,'*',2e-5))",
    "--config.plateau.drops=0",
    "--config.num_epochs=8",
    "--config.report=false",
)
SEEDS = 3
NETWORKS = {"": 13.0, "_LRN": 11.0}


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped."""
    of_both = {"endings": NETWORKS}
    return runs.carry_out(setting, functools.partial(seeds.plan, **of_both), functools.partial(seeds.write, **of_both))
