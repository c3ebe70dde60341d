"""The four-layer network on CIFAR-10 (paper, figure 1 and section 3.3).

    python main.py --config=configs/cifar10.py --workdir=/tmp/cifar10
    python main.py --config=configs/cifar10.py:tanh --workdir=/tmp/cifar10
    python main.py --config=configs/cifar10.py:lrn --workdir=/tmp/cifar10

In figure 1, each network has the best of several rates. The rate here is not tuned, and this project has not yet
run these networks to the end.
"""

from configs import alexnet

VARIANTS = {"relu": "CIFAR_FOUR_LAYER", "tanh": "CIFAR_FOUR_LAYER_TANH", "lrn": "CIFAR_FOUR_LAYER_LRN"}


def get_config(variant: str = "relu"):
    """The setting of figure 1: no regularization of any kind."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/cifar10.py has no variant {variant!r}; accepted are {', '.join(VARIANTS)}.")
    config = alexnet.get_config()
    config.architecture = VARIANTS[variant]
    config.dataset = "cifar10"
    config.image_size = 32
    config.augment.crop = False
    config.augment.flip = False
    config.augment.pca_std = 0.0
    config.weight_decay = 0.0
    config.num_epochs = 20
    config.views = 1  # the whole image
    return config
