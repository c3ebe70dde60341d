"""The paper's ideas in a narrow network, on digits that come with the packages.

python main.py --config=configs/quickstart.py --workdir=/tmp/alexnet
"""

from configs import alexnet


def get_config():
    """The paper's recipe, scaled to 4,000 pictures of 28x28 pixels and two CPU cores."""
    config = alexnet.get_config()
    config.architecture = "QUICKSTART"
    config.dataset = "digits"
    config.image_size = 32  # so that crops of 28 have places to move to
    config.augment.flip = False  # a mirrored digit is another digit, or none
    config.num_epochs = 15
    config.batch_size = 64
    config.plateau.patience = 3
    config.checkpoint_every_steps = 500
    return config
