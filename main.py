"""Trains a network: python main.py --config=configs/alexnet.py --workdir=/ckpt"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "File of the run's config.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, events and results.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    """Runs training; errors that the user can mend are told in a sentence."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; fields are set as --config.FIELD=VALUE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported, here so that --help is quick
    from alexnet_jax import data, train
    from alexnet_jax.config import UsageError

    data.hide_accelerators_from_tensorflow()
    try:
        train.train(CONFIG.value, WORKDIR.value)
    except (UsageError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
