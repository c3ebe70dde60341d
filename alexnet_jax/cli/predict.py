"""The commands `predict`, for the classes of images, and `submit`, for the file of a challenge."""

import json
import shutil
import sys

from alexnet_jax.cli import common


def add(commands) -> None:
    """Adds predict and submit to the commands."""
    predict = commands.add_parser("predict", help="the most probable classes of images")
    _add_network(predict)
    predict.add_argument(
        "--top", type=common.positive, default=5, help="number of classes to show for each image; default 5"
    )
    predict.add_argument(
        "--names", help="file with the names of the classes, one in each line, instead of the run's own"
    )
    predict.add_argument("--json", action="store_true", help="print one JSON object for each image")
    predict.set_defaults(run=_predict)

    submit = commands.add_parser(
        "submit", help="write the five most probable classes of each test image in the format of ILSVRC's server"
    )
    _add_network(submit)
    submit.add_argument("--output", required=True, help="the text file to write, one line for each image")
    submit.add_argument(
        "--mapping", help="for ILSVRC's classes: meta.mat of its development kit, or lines 'ILSVRC2012_ID WordNet-id'"
    )
    submit.set_defaults(run=_submit)


def _add_network(parser):
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders of images, or - for stdin")
    common.add_network(parser)
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 5, 10),
        default=1,
        help="number of views of each image; 5 are those of the 10 that are not mirrored",
    )


def _open(options):
    """The names of the images and the network, checked."""
    from alexnet_jax.evaluation import predict
    from alexnet_jax.evaluation.trained import Trained

    common.check_network(options)
    names = predict.find(options.images)
    common.set_up_devices()
    weights = common.read_network(options)
    predict.check_views(weights, options.views)
    return names, Trained.of(weights, batch_size=min(len(names), 64))  # so that a few images do not need a whole batch


def _predict(options):
    from alexnet_jax.errors import UsageError
    from alexnet_jax.evaluation import predict

    files, trained = _open(options)
    names = predict.class_names(trained.weights, options.names)
    sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are not valid text
    unread = 0
    for made in predict.predictions(trained, files, options.views):
        if made.error:
            unread += 1
            print(f"error: {made.name}: {made.error}", file=sys.stderr, flush=True)
            best = []
        else:
            best = [(k, names[k], float(made.probabilities[k])) for k in predict.best(made.probabilities, options.top)]
        if options.json:
            print(_as_json(made, best), flush=True)
        elif best:
            print(_as_bars(made.name, best) if sys.stdout.isatty() else _as_line(made.name, best), flush=True)
    if unread:
        raise UsageError(f"{unread} of {len(files)} files cannot be read as images; see the errors above.")


def _as_json(made, best):
    if made.error:
        return json.dumps({"image": made.name, "error": made.error})
    top = [{"class": int(k), "name": name, "probability": probability} for k, name, probability in best]
    return json.dumps({"image": made.name, "top": top})


def _as_line(image, best):
    return f"{image}: " + ", ".join(f"{name} {probability:.1%}" for _, name, probability in best)


def _as_bars(image, best):
    columns = shutil.get_terminal_size().columns
    width = min(max(len(name) for _, name, _ in best), columns // 2)
    room = max(columns - width - len("  " + " 100.0% ") - 1, 1)  # a full line would wrap on some terminals
    lines = [image]
    for _, name, probability in best:
        eighths = round(8 * room * probability)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
        lines.append(f"  {name[:width]:<{width}} {probability:6.1%} {bar}".rstrip())
    return "\n".join(lines)


def _submit(options):
    from tqdm import tqdm

    from alexnet_jax.evaluation import predict, submission
    from alexnet_jax.files import write_whole

    output = common.output(options.output)
    files, trained = _open(options)
    ids = submission.class_ids(predict.class_names(trained.weights), options.mapping)
    made = predict.predictions(trained, submission.by_file_name(files), options.views)
    lines = list(tqdm(submission.lines(made, ids), total=len(files), unit="image", disable=None))
    write_whole(output, "".join(line + "\n" for line in lines))
    print(f"Wrote: {output} ({len(lines)} lines)")
