"""AlexNet on ImageNet, as in the paper; and its variants, with the changes that VARIANTS lists.

    python main.py --config=configs/alexnet.py --workdir=/ckpt
    python main.py --config=configs/alexnet.py:slides --workdir=/ckpt

The paper's result, ILSVRC-2012 validation, ten views: top-1 error 40.7%, top-5 18.2%.
This project has not yet run it to the end.
"""

from ml_collections import ConfigDict

VARIANTS = {
    "paper": {},
    # The one-column network of a seminar on the paper, with the paper's recipe.
    "slides": {"architecture": "SLIDES"},
    # The authors' own program; epochs and rates come from the notes in its layer-params-145.cfg.
    "source2012": {
        "architecture": "SOURCE_2012",
        "update_rule": "source2012",
        "mean_at": "center",
        "augment.group": 32,
        "augment.pca_scale": "stdev",
        "augment.pca_rescale": True,
        "augment.pca_epochs": 67.0,
        "schedule": ((25, "*", 1e-3), (51, "*", 1e-4), (67, "conv1", 1e-5), (72, "conv1", 0.0), (79, "*", 1e-5)),
        "plateau.drops": 0,
        "num_epochs": 91,
    },
    # "1 CNN*" (section 6), in two runs. The first trains on all of ImageNet's Fall 2011 release (21,843 classes); the
    # user must have it as a folder with train/ and val/. The second trains on ILSVRC-2012 and starts with the first
    # run's weights in all layers but the last. The paper does not say how; epochs and rates come from the notes in
    # the 2012 program's layer-params-146-2012-2011.cfg.
    "six_conv_pretrain": {
        "architecture": "SIX_CONV",
        "dataset": "folder:~/imagenet_fall2011",
        "schedule": ((6, "*", 1e-3),),
        "plateau.drops": 0,
        "num_epochs": 8,
    },
    "six_conv_finetune": {
        "architecture": "SIX_CONV",
        "pretrained": "/ckpt/six_conv_pretrain",
        "learning_rate": 1e-3,
        "augment.pca_epochs": 38.0,
        "schedule": (
            *((0, "conv1", 1e-4), (0, "fc9", 1e-2), (5, "conv1", 1e-5), (7, "conv1", 0.0), (9, "fc9", 1e-3)),
            *((22, "*", 1e-4), (22, "fc9", 1e-4), (42, "*", 1e-5), (42, "fc9", 1e-5)),
        ),
        "plateau.drops": 0,
        "num_epochs": 54,
    },
    # The paper's ablations: sections 3.1 to 3.4, 4.1, 4.2, 5 and 7.
    "tanh": {"architecture": "PAPER_TANH"},
    "one_gpu": {"architecture": "ONE_GPU"},
    "one_column": {"architecture": "PAPER_ONE_COLUMN"},
    "no_lrn": {"architecture": "PAPER_NO_LRN"},
    "no_overlap": {"architecture": "PAPER_NO_OVERLAP"},
    "no_crops": {"augment.crop": False, "augment.flip": False},
    "no_colors": {"augment.pca_std": 0.0},
    "no_dropout": {"architecture": "PAPER_NO_DROPOUT"},
    "no_decay": {"weight_decay": 0.0},
    "no_conv2": {"architecture": "PAPER_NO_CONV2"},
    "no_conv3": {"architecture": "PAPER_NO_CONV3"},
    "no_conv4": {"architecture": "PAPER_NO_CONV4"},
    "no_conv5": {"architecture": "PAPER_NO_CONV5"},
    "no_fc6": {"architecture": "PAPER_NO_FC6"},  # without fc7, the network would be the same
    # For many devices. Not tried on ImageNet. On the digits (configs/quickstart.py with 512 images a step, two epochs
    # of warm-up, one seed, 2-core CPU, 2026-11-24), the rates 2, 5, 10, 20 and 40 gave top-1 errors of 4.5, 2.7, 9.6,
    # 5.7 and 90%. The paper's rule with the rate 0.01 and without a warm-up gave 5.1%.
    "large_batch": {"batch_size": 4096, "update_rule": "lars", "learning_rate": 5.0, "warmup_epochs": 5.0},
}


def get_config(variant: str = "paper") -> ConfigDict:
    """The paper's recipe, with the changes of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/alexnet.py has no variant {variant!r}; accepted are {', '.join(VARIANTS)}.")
    config = ConfigDict()
    config.architecture = "PAPER"
    config.pretrained = ""  # a run's workdir or a file of weights, to start all layers but the last
    config.dtype = "float32"  # of the activations; or bfloat16
    config.seed = 0

    # Data (section 2). data_dir "" is TFDS's default, ~/tensorflow_datasets.
    config.dataset = "imagenet2012"
    config.data_dir = ""
    config.train_split = "train"
    config.eval_split = ""  # "": the first of validation, val and test that exists
    config.image_size = 256
    config.num_classes = 0  # 0: as many as the dataset has
    config.mean_at = "crop"  # or "center": subtract the mean's central crop from every crop

    # Augmentation (section 4.1)
    config.augment = ConfigDict()
    config.augment.crop = True
    config.augment.flip = True
    config.augment.min_area = 1.0  # below 1: crops cover a random share of the image, this or more (docs/training.md)
    config.augment.group = 1  # number of consecutive images that share one crop and one flip
    config.augment.pca_std = 0.1  # 0 switches it off
    config.augment.pca_scale = "eigenvalue"  # or "stdev"
    config.augment.pca_rescale = False  # whether to divide the shifted image by 1 + pca_std
    config.augment.pca_epochs = 0.0  # above 0: colour shifts stop after this many epochs

    # Learning (section 5)
    config.shuffle = True  # False: the stored order in every epoch
    config.early_epochs = 0  # these first epochs use only the first early_share of the training examples
    config.early_share = 1.0
    config.batch_size = 128
    config.accumulate = 1  # parts of a batch, one after the other: the same step with less memory (not on a CPU)
    config.num_epochs = 90
    config.num_steps = 0  # above 0: overrides num_epochs
    config.learning_rate = 0.01
    config.rate_batch_size = 0  # above 0: rates are for this batch size, and scale with batch_size
    config.warmup_epochs = 0.0  # the rate grows linearly in these first epochs
    config.cooldown = 0.0  # the rate falls linearly to 0 in this last share of the run
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.weight_decays = ()  # (layer, decay) of layers that have one of their own
    config.update_rule = "decoupled"  # or "paper": the decay inside the velocity; or "source2012", "caffe", "lars"
    config.schedule = ()  # (epoch, layer, rate): from this epoch, in place of learning_rate; "*": layers not named
    # Drops of the rate when the validation error stops improving (docs/training.md). The paper gives no patience.
    config.plateau = ConfigDict({"factor": 0.1, "patience": 5, "patience_steps": 1000, "drops": 3, "threshold": 1e-3})

    # Evaluation (sections 4.1 and 6)
    config.eval_batch_size = 128
    config.eval_every_steps = 0  # steps from one evaluation to the next; 0: at the end of each epoch
    config.views = 10  # of an image, at the end of the run; or 5, without mirrored views (digits); or 1

    # Machine. mesh.tower=2 puts the two towers on two devices (section 3.2).
    config.mesh = ConfigDict()
    config.mesh.tower = 1
    config.mesh.placement = "towers"  # or "weird_trick" (Krizhevsky 2014), for more than two devices
    config.data_on_device = "auto"  # small training sets are decoded once (docs/training.md); or "always", "never"
    config.checkpoint_every_steps = 1000  # also at each evaluation
    config.log_every_steps = 20
    config.profile = False  # trace the steps 10 to 15 after the start, for TensorBoard's profiler
    config.report = True  # write report.html when the run ends

    config.update_from_flattened_dict(VARIANTS[variant])
    return config
