"""The commands of `python -m alexnet_jax`: six of them here, the others in the modules of this folder."""

import argparse
import dataclasses
import json
import os
import sys

from alexnet_jax.cli import common, ensemble, experiment, explore, predict, report, retrieve

# Heavy imports are inside the functions that use them, so that --help is fast.


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; errors that the user can correct are printed without a traceback."""
    commands = parser()
    options, rest = commands.parse_known_args(arguments)
    if options.command == "doctor":
        options.flags = [f"--config={options.config}", *rest]
    elif options.command == "experiment":
        options.flags = rest
    elif rest:
        commands.error(f"unrecognized arguments: {' '.join(rest)}")
    # Before the import of TensorFlow, which only reads data here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # this avoids two warnings
    from alexnet_jax.errors import UsageError, missing_package

    try:
        options.run(options)
    except (UsageError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {missing_package(error)}")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    program = argparse.ArgumentParser(prog="python -m alexnet_jax", description="AlexNet in JAX; main.py trains it.")
    commands = program.add_subparsers(dest="command", required=True)

    _add_summary(commands)
    _add_data_commands(commands)

    evaluate = commands.add_parser("evaluate", help="errors of a run or of weights, from one view and from ten")
    common.add_network(evaluate)
    evaluate.add_argument(
        "--dataset",
        help="with --weights: the data set, as config.dataset; with --workdir: the folder:PATH of moved images",
    )
    evaluate.add_argument("--split", default="", help="with --weights: the split, as config.eval_split")
    evaluate.add_argument("--data_dir", help="folder of the data, instead of the run's own")
    evaluate.add_argument("--batch_size", type=common.positive, help="images at a time, instead of the run's own")
    evaluate.add_argument("--json", action="store_true", help="also print the errors as one JSON object")
    evaluate.add_argument("--coordinator", default="", help="HOST:PORT of process 0, if there are several processes")
    evaluate.add_argument("--num_processes", type=int, default=0, help="number of processes")
    evaluate.add_argument("--process_id", type=int, default=-1, help="the number of this process, from 0")
    evaluate.add_argument("--timeout", type=int, default=100, help="seconds until a silent process counts as lost")
    evaluate.set_defaults(run=_evaluate)

    convert = commands.add_parser("convert", help="write weights of PyTorch, Caffe or a run as one .safetensors file")
    convert.add_argument("source", help=".safetensors, .pth, .ckpt, .caffemodel, bvlc_alexnet.npy, or a workdir")
    convert.add_argument("dest", help="the .safetensors file to write")
    convert.add_argument(
        "--layout",
        choices=("alexnet_jax", "torchvision"),
        default="alexnet_jax",
        help="of the file to write; torchvision: a state dict for torchvision's alexnet",
    )
    convert.add_argument("--mean", help="for a .caffemodel: its mean .binaryproto; default: ILSVRC-2012's mean colour")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write a network with its weights as one file for serving")
    common.add_network(export)
    export.add_argument("--output", required=True, help="the file to write; for savedmodel, the folder")
    export.add_argument(
        "--format", choices=("stablehlo", "savedmodel"), default="stablehlo", help="for JAX, or for TensorFlow"
    )
    export.add_argument(
        "--views",
        type=int,
        choices=(1, 5, 10),
        default=1,
        help="number of views of each image; 5 are those of the 10 that are not mirrored",
    )
    export.set_defaults(run=_export)

    for module in (report, explore, predict, retrieve, ensemble, experiment):
        module.add(commands)
    return program


def _add_summary(commands):
    summary = commands.add_parser("summary", help="print the table of layers, sizes and parameters")
    summary.add_argument("--architecture", default="PAPER", help="PAPER, SLIDES, LENET5, ...; any other name lists all")
    summary.add_argument("--batch_size", type=common.positive, help="batch size; default 1, with --communication 128")
    summary.add_argument(
        "--communication", action="store_true", help="print instead what the devices send to each other in a step"
    )
    summary.add_argument(
        "--devices", type=common.positive, default=2, help="with --communication: the number of devices"
    )
    summary.add_argument(
        "--tower",
        type=common.positive,
        help="with --communication: number of devices that share the towers; default 2, or 1 for a network of one "
        "tower and for weird_trick",
    )
    summary.add_argument("--placement", choices=("towers", "weird_trick"), default="towers", help="as in config.mesh")
    summary.set_defaults(run=_summary)


def _add_data_commands(commands):
    prepare = commands.add_parser("prepare", help="make square images of ImageNet, or of your own images, once")
    prepare.add_argument("--source", required=True, help="tfds:NAME, tars:FOLDER (ImageNet's 2 tars) or folder:FOLDER")
    prepare.add_argument("--data_dir", default="", help="TFDS's folder; default ~/tensorflow_datasets")
    prepare.add_argument("--dataset", default="imagenet2012", help="name of the data set, for config.dataset")
    prepare.add_argument("--image_size", type=common.positive, default=256, help="side of the images in pixels")
    prepare.add_argument(
        "--workers",
        type=common.positive,
        help="number of processes; default: one for each core, if the memory is enough",
    )
    prepare.add_argument(
        "--encoding", choices=("jpeg", "raw"), default="jpeg", help="raw: pixels, larger but faster to read"
    )
    prepare.add_argument(
        "--broken", choices=("fatal", "skip"), default="fatal", help="what to do with images that do not decode"
    )
    prepare.set_defaults(run=_prepare)

    doctor = commands.add_parser(
        "doctor",
        help="check machine, data and config before days of training",
        epilog="Fields of the config are set as for main.py: --config.FIELD=VALUE.",
    )
    doctor.add_argument("--config", required=True, help="FILE[:VARIANT], as for main.py")
    doctor.add_argument("--workdir", default=".", help="folder of the later run; default the current folder")
    doctor.add_argument("--output", default=".", help="folder for doctor.png; default the current folder")
    doctor.add_argument(
        "--duplicates",
        choices=("sample", "all", "none"),
        default="sample",
        help="images that are searched for duplicates; all reads the whole data set once",
    )
    doctor.set_defaults(run=_doctor)


def _summary(options):
    from alexnet_jax.errors import UsageError
    from alexnet_jax.network import architectures, networks

    try:
        architecture = networks.named(options.architecture)
    except ValueError as error:
        raise UsageError(f"--architecture: {error}") from error
    if not options.communication:
        from alexnet_jax.network.summary import summary

        print(summary(architecture, options.batch_size or 1))
        return
    from alexnet_jax.training.communication import communication

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
    try:
        from alexnet_jax.data import hide_accelerators_from_tensorflow
        from alexnet_jax.data.cloud import prepare

        hide_accelerators_from_tensorflow()
        names = ("source", "data_dir", "image_size", "dataset", "encoding", "broken", "workers")
        print(f"Prepared: {prepare(**{name: getattr(options, name) for name in names})}")
    except KeyboardInterrupt:
        print("\nStopped; the same command continues from there.", file=sys.stderr)
        sys.exit(130)


def _doctor(options):
    from alexnet_jax import config, doctor

    config = config.from_flags(options.flags)
    common.set_up_devices()
    findings = doctor.examine(
        config,
        workdir=options.workdir,
        output=options.output,
        duplicates=options.duplicates,
        tell=lambda finding: print(finding, flush=True),
    )
    counts = {level: sum(f.level == level for f in findings) for level in ("problem", "warning")}
    print(", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items()))
    if counts["problem"]:
        sys.exit(1)


def _evaluate(options):
    from alexnet_jax import hosts
    from alexnet_jax.errors import UsageError
    from alexnet_jax.evaluation import saved

    if options.weights and not options.dataset:
        raise UsageError("--dataset is missing: a file of weights does not name a data set. Give --dataset=NAME.")
    common.check_network(options)
    if options.workdir and options.split:
        raise UsageError("--split is only for --weights; a run is evaluated on its own data set. Leave it out.")
    common.set_up_devices()
    with hosts.session(options.coordinator, options.num_processes, options.process_id, options.timeout):
        if options.weights:
            with common.own_flags():
                errors = saved.evaluate_weights(
                    options.weights,
                    dataset=options.dataset,
                    split=options.split,
                    data_dir=options.data_dir or "",
                    batch_size=options.batch_size or 128,
                )
        else:
            errors = saved.evaluate_workdir(
                options.workdir,
                which=options.checkpoint,
                dataset=options.dataset,
                data_dir=options.data_dir,
                batch_size=options.batch_size,
            )
    if options.json:
        hosts.say(json.dumps({name: dataclasses.asdict(e) for name, e in errors.items()}))


def _convert(options):
    from alexnet_jax import convert

    weights = convert.convert(options.source, options.dest, options.mean, options.layout)
    print(f"Read: {weights.source}")
    print(f"Parameters: {sum(a.size for layer in weights.params.values() for a in layer.values()):,}")
    print(f"Classes: {weights.classes}")
    print(f"Images: {weights.preprocessing}")
    print(f"Wrote: {options.dest}")


def _export(options):
    import jax

    from alexnet_jax import data, export

    common.check_network(options)
    # Nothing here needs the accelerator, and another program may use its memory.
    jax.config.update("jax_platforms", "cpu")
    if options.format == "savedmodel":
        data.hide_accelerators_from_tensorflow()
    path = export.check_path(options.output, options.format)
    weights = common.read_network(options)
    export.export(weights, path, format=options.format, views=options.views)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    print(f"Read: {weights.source}")
    print(f"Wrote: {path} ({sum(file.stat().st_size for file in files) / 1e6:.1f} MB)")
    shape = ", ".join(map(str, weights.mean_image.shape))
    print(f"Input: images (n, {shape}) uint8: {weights.preprocessing}")
    print(f"Output: probabilities (n, {weights.architecture[-1].units}) float32; views of an image: {options.views}")
    print(f"Classes: {weights.classes}")
    print("Checked: for random images, one and three at a time, the file gives the same probabilities as the network")
    print(f"To use it: {export.LOADING[options.format].format(path=str(path))}")
