"""AlexNet on ImageNet, as in the paper.

    python main.py --config=configs/alexnet.py --workdir=/ckpt
    python main.py --config=configs/alexnet.py:slides --workdir=/ckpt
    python main.py --config=configs/alexnet.py:large_batch --workdir=/ckpt

The last is for many devices: 4096 pictures a step, LARS, a warm-up.

The paper's result, ILSVRC-2012 validation, ten views: top-1 error 40.7%, top-5 18.2%.
Not yet run to the end here.
"""

from ml_collections import ConfigDict

VARIANTS = ("paper", "slides", "large_batch")


def get_config(variant: str = "paper") -> ConfigDict:
    """The paper's recipe; the network of the slides trained by it; or the paper's for many devices at once."""
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
    config.accumulate = 1  # parts of a batch, one after the other: less memory on an accelerator, the same step
    config.num_epochs = 90
    config.num_steps = 0  # above 0: overrides num_epochs
    config.learning_rate = 0.01
    config.rate_batch_size = 0  # above 0: learning_rate is for this batch size, and grows in proportion
    config.warmup_epochs = 0.0  # in which the rate grows linearly
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.update_rule = "decoupled"  # or "paper": the decay inside the velocity; or "lars"
    config.plateau = ConfigDict()  # of the validation error, looked at once an epoch
    config.plateau.factor = 0.1
    config.plateau.patience = 5  # the paper does not say
    config.plateau.drops = 3
    config.plateau.threshold = 1e-3

    # Evaluation (sections 4.1 and 6)
    config.eval_batch_size = 128
    config.ten_views = True  # at the end of the run

    # Machine. mesh.tower=2 puts the two towers on two devices (section 3.2).
    config.mesh = ConfigDict()
    config.mesh.tower = 1
    config.mesh.placement = "towers"  # or "weird_trick" (Krizhevsky 2014), for more than two devices
    config.checkpoint_every_steps = 1000  # and at the end of each epoch
    config.log_every_steps = 20
    config.profile = False  # trace the steps 10 to 15 after the start, for TensorBoard's profiler

    if variant == "large_batch":
        config.batch_size = 4096
        config.update_rule = "lars"
        # Not tried on ImageNet. On the digits (configs/quickstart.py with 512 pictures a step, two epochs of warm-up,
        # one seed, 2-core CPU, 2026-11-24) the rates 2, 5, 10, 20 and 40 gave top-1 errors of 4.5, 2.7, 9.6, 5.7 and
        # 90%; the paper's rule at 0.01, without a warm-up, 5.1%.
        config.learning_rate = 5.0
        config.warmup_epochs = 5.0
    return config
