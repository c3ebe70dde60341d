"""Shared by several commands: the options for a network, and checks of the file to write."""

import contextlib

from alexnet_jax.files import local

# Heavy imports are inside the functions that use them, so that --help is fast.


def positive(text: str) -> int:
    """Reads an integer of at least 1."""
    import argparse

    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {text}; accepted is an integer of at least 1")
    return number


def add_network(parser, required: bool = True) -> None:
    """Adds --workdir or --weights, and --checkpoint."""
    network = parser.add_mutually_exclusive_group(required=required)
    network.add_argument("--workdir", help="folder of the run")
    network.add_argument("--weights", help="or a file of weights, as for convert")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="checkpoint of the run")


def read_network(options):
    """The convert.Weights for the options of add_network."""
    from alexnet_jax import convert

    check_network(options)
    return convert.read(options.workdir or options.weights, checkpoint=options.checkpoint)


def check_network(options) -> None:
    """Raises UsageError if --checkpoint is given with --weights."""
    from alexnet_jax.errors import UsageError

    if options.weights and options.checkpoint != "last":
        raise UsageError(
            f"--checkpoint={options.checkpoint} is only for --workdir, not for --weights. Give --workdir, or leave "
            "--checkpoint out."
        )


def output(path: str, suffix: str = ""):
    """Returns the path of a file to write. Raises UsageError for another suffix, or if its folder does not exist."""
    from alexnet_jax.errors import UsageError

    path = local(path, "--output")
    if suffix and path.suffix != suffix:
        raise UsageError(f"--output is {path}; accepted is a name that ends in {suffix}. Give such a name.")
    if not path.parent.is_dir():
        raise UsageError(
            f"--output is {path}, but the folder {path.parent} does not exist. Create it, or give another."
        )
    return path


@contextlib.contextmanager
def own_flags():
    """Replaces names of config fields in errors by the command's flags."""
    from alexnet_jax.errors import UsageError

    try:
        yield
    except UsageError as error:
        raise type(error)(str(error).replace("--config.eval_split", "--split").replace("--config.", "--")) from error


def open_split(dataset: str, data_dir: str, split: str, image_size: int, labels_of: str = "train"):
    """Opens one split; in the Dataset that is returned, it is `evaluation`. labels_of: as in sources.open_dataset."""
    from alexnet_jax.data import sources

    with own_flags():
        return sources.open_dataset(
            dataset, data_dir, image_size=image_size, train_split=None, eval_split=split, labels_of=labels_of
        )


def set_up_devices(convolutions: bool = True) -> None:
    """Sets up JAX and TensorFlow as main.py does: only JAX uses the accelerator, compiled programs are kept.

    `convolutions` makes convolutions on a CPU fast. Without, XLA keeps its default for a CPU, which multiplies large
    matrices faster.
    """
    from alexnet_jax import data, hosts

    data.hide_accelerators_from_tensorflow()
    hosts.keep_compiled()
    if convolutions:
        hosts.convolve_with_eigen()
