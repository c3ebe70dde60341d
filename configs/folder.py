"""The paper's network on your own images: 200 to 50,000 photographs, in one folder for each class.

    python main.py --config=configs/folder.py --workdir=/ckpt/mine --config.dataset=folder:PATH
    python main.py --config=configs/folder.py:finetune --workdir=/ckpt/mine --config.dataset=folder:PATH \
        --config.pretrained=FILE

The second command starts from weights of the paper's network: the workdir of a run, or a file that
`python -m alexnet_jax convert` wrote. docs/fidelity.md lists each difference from the paper.

Only the initial weights were compared with the paper's (RESULTS.md). The other values are first guesses: this project
has not yet run this config to the end. The doctor estimated 2 h 17 min for 5,000 steps on a 2-core CPU (2026-11-27).
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
    config.num_steps = 5000
    config.eval_every_steps = 250
    config.plateau.patience = 4  # 1,000 steps
    config.checkpoint_every_steps = 250
    if variant == "scratch":
        config.architecture = "PAPER_FAN_IN"
    else:
        config.learning_rate = 1e-3
        config.num_steps = 2000
    return config
