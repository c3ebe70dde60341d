"""Trains a network: python main.py --config=configs/alexnet.py --workdir=/ckpt"""

import os
import sys

try:
    from absl import app, flags
    from ml_collections import config_flags
except ModuleNotFoundError as error:
    sys.exit(f"error: the package {error.name} is not installed. Run: pip install -r requirements.txt")

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the run.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, events and results.")
flags.mark_flags_as_required(["config", "workdir"])
# For several processes. On Slurm, TPU pods, Kubernetes and Open MPI, JAX finds all of these values by itself.
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for all processes.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes; 1 means: do not look for others.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process; the first is 0.")
TIMEOUT = flags.DEFINE_integer("timeout", 100, "Seconds without an answer until a process counts as lost.")

USAGE = "usage: python main.py --config=configs/alexnet.py --workdir=FOLDER [--config.FIELD=VALUE ...]"


def parse_flags(argv):
    """Parses the command line. An error in it is printed without a traceback."""
    try:
        rest = flags.FLAGS(argv)
        CONFIG.value.keys()  # only this raises the error if the file does not exist
        return rest
    except (flags.Error, AttributeError, OSError) as error:
        from alexnet_jax.config import what_is_wrong  # not at the top, so that --help is quick

        sys.exit(f"error: {what_is_wrong(error, argv)}\n{USAGE}")


def main(argv):
    """Runs training. Errors that the user can correct are printed without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; set config fields as --config.FIELD=VALUE")
    # TensorFlow, which only reads data here, reads these variables when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # this avoids two lines of warnings
    # The imports are not at the top, so that --help is quick.
    from alexnet_jax.errors import UsageError, missing_package

    try:
        from alexnet_jax import data, hosts
        from alexnet_jax.training import loop

        data.hide_accelerators_from_tensorflow()
        hosts.keep_compiled()
        hosts.convolve_with_eigen()
        with hosts.session(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, TIMEOUT.value):
            loop.train(CONFIG.value, WORKDIR.value)
    except (UsageError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {missing_package(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
