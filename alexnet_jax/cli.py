"""The commands of `python -m alexnet_jax`: summary, prepare, evaluate."""

import argparse
import dataclasses
import json
import os
import sys

# Heavy imports stand where they are used, so that --help is quick.


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; errors that the user can mend are told in a sentence."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax", description="AlexNet in JAX: side jobs.")
    commands = parser.add_subparsers(dest="command", required=True)

    summary = commands.add_parser("summary", help="print the table of layers, sizes and parameters")
    summary.add_argument("architecture", nargs="?", default="PAPER", help="PAPER, SLIDES or QUICKSTART")
    summary.add_argument("--batch_size", type=_positive, help="pictures; default 1, for --communication 128")
    summary.add_argument("--communication", action="store_true", help="what devices send each other in a step instead")
    summary.add_argument("--devices", type=_positive, default=2, help="with --communication: how many there are")
    summary.add_argument(
        "--tower", type=_positive, help="with --communication: devices that share the towers; default both"
    )
    summary.add_argument("--placement", choices=("towers", "weird_trick"), default="towers", help="as config.mesh's")
    summary.set_defaults(run=_summary)

    prepare = commands.add_parser("prepare", help="make ImageNet's tars into square pictures, once")
    prepare.add_argument("--data_dir", default="", help="TFDS's folder; default ~/tensorflow_datasets")
    prepare.add_argument("--tars", default="", help="folder of the two tars; default DATA_DIR/downloads/manual")
    prepare.add_argument("--image_size", type=int, default=256, help="side of the pictures in pixels")
    prepare.set_defaults(run=_prepare)

    evaluate = commands.add_parser("evaluate", help="errors of a run's checkpoint, one view and ten")
    evaluate.add_argument("--workdir", required=True, help="folder of the run")
    evaluate.add_argument("--checkpoint", choices=("last", "best"), default="last")
    evaluate.add_argument("--data_dir", help="instead of the run's own")
    evaluate.add_argument("--batch_size", type=int, help="instead of the run's own")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object more")
    evaluate.add_argument("--coordinator", default="", help="HOST:PORT of process 0, if there are several processes")
    evaluate.add_argument("--num_processes", type=int, default=0, help="how many there are")
    evaluate.add_argument("--process_id", type=int, default=-1, help="which of them this is, from 0 on")
    evaluate.add_argument("--timeout", type=int, default=100, help="seconds until a silent process counts as lost")
    evaluate.set_defaults(run=_evaluate)

    options = parser.parse_args(arguments)
    # Before TensorFlow is imported, which only reads data here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and so without two lines of warning
    from alexnet_jax.config import UsageError

    try:
        options.run(options)
    except UsageError as error:
        sys.exit(f"error: {error}")


def _positive(text):
    """Reads an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}; accepted is an integer of at least 1")
    return number


def _summary(options):
    from alexnet_jax import architectures
    from alexnet_jax.config import UsageError

    if options.architecture not in architectures.NAMED:
        raise UsageError(f"{options.architecture!r} is no network; accepted are {', '.join(architectures.NAMED)}.")
    architecture = architectures.NAMED[options.architecture]
    if not options.communication:
        from alexnet_jax.summary import summary

        print(summary(architecture, options.batch_size or 1))
        return
    from alexnet_jax.communication import communication

    most = architectures.towers_of(architecture) if options.placement == "towers" else 1
    try:
        table = communication(
            architecture,
            kind=options.placement,
            tower=options.tower or min(2, most),
            devices=options.devices,
            batch_size=options.batch_size or 128,
        )
    except ValueError as error:
        raise UsageError(
            str(error).replace("--config.mesh.tower", "--tower").replace("mesh.tower", "--tower")
        ) from error
    print(table)


def _prepare(options):
    from alexnet_jax.data import hide_accelerators_from_tensorflow, imagenet

    hide_accelerators_from_tensorflow()
    print(f"Prepared: {imagenet.prepare(options.data_dir, options.image_size, options.tars)}")


def _evaluate(options):
    from alexnet_jax import data, hosts, loop

    data.hide_accelerators_from_tensorflow()
    with hosts.session(options.coordinator, options.num_processes, options.process_id, options.timeout):
        errors = loop.evaluate_workdir(
            options.workdir, which=options.checkpoint, data_dir=options.data_dir, batch_size=options.batch_size
        )
    if options.json:
        hosts.say(json.dumps({name: dataclasses.asdict(e) for name, e in errors.items()}))
