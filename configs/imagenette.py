"""Full AlexNet on Imagenette, ten classes of ImageNet, for one GPU.

    python main.py --config=configs/imagenette.py --workdir=/ckpt/imagenette

TFDS downloads 1.5 GB once. This project has not yet run it to the end.
"""

from configs import alexnet


def get_config():
    """The paper's recipe on TFDS `imagenette`."""
    config = alexnet.get_config()
    config.dataset = "imagenette"
    config.checkpoint_every_steps = 500
    return config
