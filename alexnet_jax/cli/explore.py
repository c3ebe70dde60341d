"""The command `explore`: a page that shows what a network makes of an image, or the same views as PNG files."""

import argparse
import sys
from pathlib import Path

from alexnet_jax.cli import common
from alexnet_jax.files import local, local_folder

FRESH = "alexnet_quickstart"  # the workdir of a quickstart that is trained for the page


def add(commands) -> None:
    """Adds `explore` to the commands."""
    explore = commands.add_parser(
        "explore",
        help="a page on this machine that shows what each layer makes of an image",
        epilog="Without --workdir and --weights, it offers to train the quickstart first.",
    )
    common.add_network(explore, required=False)
    explore.add_argument("--dataset", help="where the images of a run on folder:PATH are now, if they were moved")
    explore.add_argument("--data_dir", help="folder of the data, instead of the run's own")
    explore.add_argument("--index", help="a file that features wrote, with the same network: for nearest images")
    explore.add_argument("--codes", help="with --index: a file that codes wrote")
    explore.add_argument("--names", help="file with the names of the classes, one in each line")
    explore.add_argument("--image", help="an image file to begin with")
    explore.add_argument("--save", help="with --image: folder for the views as PNG files; no page is served")
    explore.add_argument("--port", type=common.positive, help="port of the page; default the first free from 7860 on")
    explore.add_argument("--open", action="store_true", help="open the page in a browser")
    explore.add_argument("--train", action="store_true", help="train the quickstart without asking")
    what_if = explore.add_argument_group("what if, with --save")
    what_if.add_argument("--tower_off", type=common.positive, metavar="N", help="switch tower N off, from 1")
    what_if.add_argument("--without_lrn", action="store_true", help="leave out local response normalization")
    what_if.add_argument("--dropout", type=int, metavar="SEED", help="draw dropout once")
    what_if.add_argument("--colours", type=int, metavar="SEED", help="draw colours once")
    what_if.add_argument("--corner", type=_corner, metavar="TOP,LEFT", help="corner of the crop, in pixels")
    explore.set_defaults(run=_explore)


def _corner(text):
    try:
        top, left = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is {text}; accepted are two numbers, such as 0,16") from error
    return top, left


def _explore(options):
    from alexnet_jax.errors import UsageError

    if options.save and not options.image:
        raise UsageError("--save needs an image. Give --image=FILE as well.")
    if options.codes and not options.index:
        raise UsageError("--codes needs the index that it belongs to. Give --index=FILE as well.")
    if not options.save:
        _needs_gradio()
    common.set_up_devices()
    if not (options.workdir or options.weights):
        _offer_quickstart(options)
    subject = _subject(options)
    from alexnet_jax.inspection.explore.subject import ImageError, read_image

    image = None
    if options.image:
        try:
            image = read_image(local(options.image, "--image"), subject.side)
        except ImageError as error:
            raise UsageError(f"--image={options.image} is not an image: {error}. Give another file.") from error
    if options.save:
        _save(options, subject, image)
        return
    from alexnet_jax.inspection.explore import page

    print("Compiling the network ...", flush=True)
    page.warm_up(subject)
    page.serve(subject, image, port=options.port, show=options.open)


def _needs_gradio():
    """Raises ModuleNotFoundError before anything else is done."""
    import importlib.util

    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")


def _subject(options):
    from alexnet_jax.files import copies
    from alexnet_jax.inspection.explore import subject
    from alexnet_jax.training import setup

    weights, data, seed = common.read_network(options), None, 0
    if options.workdir:
        with copies.opened(options.workdir, "--workdir") as workdir:
            config = setup.config_of(workdir, dataset=options.dataset, data_dir=options.data_dir)
            data, seed = setup.open_data(config), config.seed
            setup.check_contents(data, config, workdir)
    return subject.prepare(weights, data=data, seed=seed, index=options.index, codes=options.codes, names=options.names)


def _save(options, subject, image):
    from alexnet_jax.inspection.explore import slides
    from alexnet_jax.inspection.explore.forward import WhatIf

    what_if = WhatIf(
        towers_off=(options.tower_off - 1,) if options.tower_off else (),
        lrn=not options.without_lrn,
        dropout=options.dropout,
        colours=options.colours,
        corner=options.corner,
    )
    for path in slides.write(local_folder(options.save, "--save"), subject, image, what_if):
        print(f"Wrote: {path}")


def _offer_quickstart(options):
    """Trains the quickstart with an index of its training images, if the user agrees, and sets the options for it."""
    from alexnet_jax import config as config_lib
    from alexnet_jax.errors import UsageError
    from alexnet_jax.evaluation.trained import Trained, last_hidden
    from alexnet_jax.inspection import features
    from alexnet_jax.training import loop, setup

    workdir, index = Path(FRESH), Path(FRESH) / "index.npz"
    if not (workdir / "result.json").exists():
        if not (options.train or _agrees(workdir)):
            raise UsageError("there is no network to explore. Give --workdir, --weights or --train.")
        config = config_lib.from_flags([f"--config={config_lib.CHECKOUT}/configs/quickstart.py"])
        if not loop.train(config, workdir):
            raise UsageError("the training was stopped. The same command continues it.")
    options.workdir, options.index = str(workdir), options.index or str(index)
    if not index.exists():
        from alexnet_jax import convert

        trained = Trained.of(convert.read(workdir))
        data = setup.open_data(setup.config_of(workdir))
        features.write(index, trained, data.train, last_hidden(trained.weights.architecture), data.class_names)


def _agrees(workdir):
    if not sys.stdin.isatty():
        return False
    print("No network was given. The quickstart trains on 4,000 digits, in about a minute on two CPU cores.")
    return input(f"Train it now, in the folder {workdir}? [Y/n] ").strip().lower() in ("", "y", "yes")
