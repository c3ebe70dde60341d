"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) on the digits that come with the packages, or on TFDS's mnist.

python main.py --config=configs/lenet5.py --workdir=/tmp/lenet5
python main.py --config=configs/lenet5.py:mnist --workdir=/tmp/lenet5
"""

from configs import alexnet

VARIANTS = ("digits", "mnist")


def get_config(variant: str = "digits"):
    """Plain gradient descent on centred digits, as they are."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/lenet5.py has no variant {variant!r}; accepted are {', '.join(VARIANTS)}.")
    config = alexnet.get_config()
    config.architecture = "LENET5"
    config.dataset = variant
    config.image_size = 30  # so that crops of 28 move by a pixel
    config.augment.flip = False
    config.augment.pca_std = 0.0
    config.batch_size = 16
    config.num_epochs = 40
    config.learning_rate = 0.002
    config.schedule = ((28, "*", 2e-4), (36, "*", 2e-5))  # by hand, as theirs
    config.plateau.drops = 0
    config.weight_decay = 0.0
    config.ten_views = False  # a view is the whole picture
    config.checkpoint_every_steps = 500
    return config
