"""The paper's network on your own images: 200 to 50,000 photographs, in one folder for each class.

    python main.py --config=configs/folder.py --workdir=/ckpt/mine --config.dataset=folder:PATH
    python main.py --config=configs/folder.py:finetune --workdir=/ckpt/mine --config.dataset=folder:PATH \
        --config.pretrained=FILE

The second command starts from weights of the paper's network: the workdir of a run, or a file that
`python -m alexnet_jax convert` wrote. docs/fidelity.md lists each difference from the paper.

On 3,000 photographs of ten classes it ended at 23.1% error, 22.9% with ten views (RESULTS.md). A step took about 2 s on
a 2-core CPU, so 2,600 steps are 83 to 95 minutes there (2026-11-29, seed 0). On 200 of the photographs, 300 steps ended
at 58.7%.
"""

from configs import alexnet

VARIANTS = ("scratch", "finetune")


def get_config(variant: str = "scratch"):
    """The paper's recipe, with its lengths in steps, not in epochs: an epoch of 200 images has about three."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/folder.py has no variant {variant!r}; accepted are {', '.join(VARIANTS)}.")
    config = alexnet.get_config()
    config.dataset = "folder:images"
    config.batch_size = 64
    config.num_steps = 2600
    config.eval_every_steps = 250
    config.checkpoint_every_steps = 250
    config.plateau.drops = 0  # the errors of a small validation set vary too much to set the rate by them
    config.cooldown = 0.5
    config.augment.min_area = 0.5
    if variant == "scratch":
        config.architecture = "PAPER_FAN_IN"
    else:
        config.learning_rate = 1e-3
        config.num_steps = 2000
    return config
