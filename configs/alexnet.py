"""AlexNet on ImageNet, as in the paper.

    python main.py --config=configs/alexnet.py --workdir=/ckpt
    python main.py --config=configs/alexnet.py:slides --workdir=/ckpt

The paper's result, ILSVRC-2012 validation, ten views: top-1 error 40.7%, top-5 18.2%.
Not yet run to the end here.
"""

from ml_collections import ConfigDict

VARIANTS = ("paper", "slides")


def get_config(variant: str = "paper") -> ConfigDict:
    """The paper's recipe, or the network of the slides trained by it."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/alexnet.py has no variant {variant!r}; accepted are {', '.join(VARIANTS)}.")
    config = ConfigDict()
    config.architecture = "SLIDES" if variant == "slides" else "PAPER"
    config.dtype = "float32"  # of the activations; or bfloat16
    config.seed = 0

    # Data (section 2). data_dir "" is TFDS's default, ~/tensorflow_datasets.
    config.dataset = "imagenet2012"
    config.data_dir = ""
    config.train_split = "train"
    config.eval_split = ""  # the first there is of validation, val, test
    config.image_size = 256
    config.num_classes = 0  # 0: as many as the dataset says

    # Augmentation (section 4.1)
    config.augment = ConfigDict()
    config.augment.crop = True
    config.augment.flip = True
    config.augment.pca_std = 0.1  # 0 switches it off
    config.augment.pca_scale = "eigenvalue"

    # Learning (section 5)
    config.batch_size = 128
    config.num_epochs = 90
    config.num_steps = 0  # above 0: overrides num_epochs
    config.learning_rate = 0.01
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.weight_decay_form = "decoupled"  # or "paper": inside the velocity
    config.plateau = ConfigDict()  # of the validation error, looked at once an epoch
    config.plateau.factor = 0.1
    config.plateau.patience = 5  # the paper does not say
    config.plateau.drops = 3
    config.plateau.threshold = 1e-3

    # Evaluation (sections 4.1 and 6)
    config.eval_batch_size = 128
    config.ten_views = True  # at the end of the run

    # Machine. mesh.tower=2 puts the two towers on two devices.
    config.mesh = ConfigDict()
    config.mesh.tower = 1
    config.checkpoint_every_steps = 1000  # and at the end of each epoch
    config.log_every_steps = 20
    config.profile = False  # trace the steps 10 to 15 after the start, for TensorBoard's profiler
    return config
