"""CIFAR-10 with and without normalization (paper, section 3.3: 11% and 13%).

The networks are cuda-convnet's, to which the paper refers. CONV_LOCAL_11PCT_FIRST is CONV_LOCAL_13PCT with nothing but
normalization added. So the difference of these two is what normalization does. The published pair differs also in the
width of a layer and in the weight decay. The experiment `cifar` has that pair.

The published runs have 160 epochs and more. These have 40 by default, with all images from the beginning, and both
drops of the rate at the end.
"""

import functools

from alexnet_jax.experiments import runs, seeds
from alexnet_jax.experiments.runs import Setting

CONFIG = "configs/cifar10.py:conv_local_13pct"
DEFAULTS = (
    "--config.early_epochs=0",
    "--config.schedule=((32,'*',1e-4),(36,'*',1e-5))",
    "--config.num_epochs=40",
    "--config.report=false",
)
SEEDS = 2
NETWORKS = {"CONV_LOCAL_13PCT": 13.0, "CONV_LOCAL_11PCT_FIRST": 11.0}


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped."""
    both = {"networks": NETWORKS}
    return runs.carry_out(setting, functools.partial(seeds.plan, **both), functools.partial(seeds.write, **both))
