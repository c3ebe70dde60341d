"""The command `ensemble`: the errors of several networks' averaged probabilities."""

import dataclasses
import itertools
import json
from pathlib import Path

from alexnet_jax.cli import common


def add(commands) -> None:
    """Adds ensemble to the commands."""
    ensemble = commands.add_parser("ensemble", help="errors of the averaged probabilities of several runs")
    ensemble.add_argument("--workdir", action="append", default=[], help="folder of a run; give one for each network")
    ensemble.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="FILE",
        help="or a file that --save wrote; you can give both kinds",
    )
    ensemble.add_argument(
        "--save", metavar="FOLDER", help="folder for the predictions of the runs, as NAME-DIGEST-VIEWS.npz"
    )
    ensemble.add_argument("--checkpoint", choices=("last", "best"), default="last", help="checkpoint of each run")
    ensemble.add_argument(
        "--views",
        type=int,
        choices=(1, 5, 10),
        help="number of views of each image; default: first 1, then as many as the runs allow",
    )
    ensemble.add_argument("--split", help="split to evaluate on, instead of the runs' eval_split")
    ensemble.add_argument("--data_dir", help="folder of the data, instead of the runs' own")
    ensemble.add_argument(
        "--average",
        choices=("equal", "searched"),
        default="equal",
        help="searched: also search weights, on every second example; the errors are then those of the other examples",
    )
    ensemble.add_argument("--paper", action="store_true", help="also print the paper's table 2 with these networks")
    ensemble.add_argument("--json", action="store_true", help="also print the errors as one JSON object")
    ensemble.set_defaults(run=_ensemble)


def _ensemble(options):
    from alexnet_jax.errors import UsageError
    from alexnet_jax.evaluation import ensemble, predict

    if options.save and not Path(options.save).is_dir():
        raise UsageError(f"--save={options.save}, but this folder does not exist. Create it, or give another.")
    common.set_up_devices()
    saved = [ensemble.load(path) for path in options.predictions]
    runs = [_open(workdir, options) for workdir in options.workdir]
    views = _views(options, runs, saved)
    for weights, _, _ in runs:
        predict.check_views(weights, max(views))
    groups = [[one.member for one in saved if one.views == n] + [member for _, _, member in runs] for n in views]
    for group in groups:
        ensemble.check(group)
        if {member.digest for member in group} != {member.digest for member in groups[0]}:
            raise UsageError(
                "--predictions with 1 view and with more views are of different networks. Give both of each network."
            )
    made = saved + [
        one for workdir, run in zip(options.workdir, runs, strict=True) for one in _run(workdir, run, views, options)
    ]
    rows = {n: _report([one for one in made if one.views == n], options) for n in views}
    if options.paper:
        members = [one for one in made if one.views == max(views)]
        print("\n" + ensemble.paper_table(ensemble.paper_rows(members), members[0].member.split))
    if options.json:
        print(
            json.dumps({n: {name: dataclasses.asdict(e) for name, e in errors.items()} for n, errors in rows.items()})
        )


def _open(workdir, options):
    """The weights of a run, its evaluation split, and the Member for both."""
    from alexnet_jax import convert
    from alexnet_jax.errors import UsageError
    from alexnet_jax.evaluation import ensemble
    from alexnet_jax.files import copies
    from alexnet_jax.training import setup

    with copies.opened(workdir, "--workdir") as folder:
        config = setup.config_of(folder)
        weights = convert.read(folder, checkpoint=options.checkpoint)
    opened = common.open_split(
        config.dataset,
        options.data_dir or config.data_dir,
        options.split or config.eval_split,
        config.image_size,
        config.train_split,
    )
    before, now = weights.class_names, opened.class_names
    pairs = enumerate(itertools.zip_longest(before, now)) if before and now else ()
    if changed := [(k, one, other) for k, (one, other) in pairs if one != other]:
        k, one, other = changed[0]
        raise UsageError(
            f"{workdir} was trained on other classes than {config.dataset} has now: class {k} was {one}, and is "
            f"{other}. Give the data that it was trained on."
        )
    if not config.num_classes and (opened.num_classes or 0) > (known := weights.architecture[-1].units):
        raise UsageError(
            f"{workdir} was trained on {known} classes, but {config.dataset} now has {opened.num_classes}. Give the "
            "data that it was trained on."
        )
    return weights, opened.evaluation, ensemble.member_of(weights, opened.evaluation, opened.class_names)


def _views(options, runs, saved):
    """The numbers of views: --views, else those of the saved predictions, else one and as many as all runs allow."""
    from alexnet_jax.errors import UsageError

    there = {one.views for one in saved}
    if options.views is not None and there - {options.views}:
        raise UsageError(
            f"--views is {options.views}, but --predictions have {sorted(there)} views. Leave one of them out."
        )
    if there:
        return sorted(there)
    return [options.views] if options.views else sorted({1, min((weights.views for weights, _, _ in runs), default=1)})


def _run(workdir, run, views, options):
    """Yields a run's predictions, and saves them if --save is given."""
    from alexnet_jax.evaluation import ensemble
    from alexnet_jax.evaluation.trained import Trained

    weights, source, member = run
    trained = Trained.of(weights, batch_size=128)
    for n in views:
        print(f"{member.network}: {member.examples} images of {member.split}, views of each: {n}", flush=True)
        made = ensemble.predict(trained, source, member, n)
        if options.save:
            path = Path(options.save) / f"{Path(workdir).resolve().name}-{member.digest[:8]}-{n}.npz"
            ensemble.save(made, path)
        yield made


def _report(members, options):
    """Prints and returns the errors of the members and of the ensemble, all with the same number of views."""
    from alexnet_jax.evaluation import ensemble

    first, searched = members[0], options.average == "searched"
    views = {1: "one view", 5: "ten views (the five unmirrored)", 10: "ten views"}[first.views]
    rows = ensemble.compare(members, searched)
    print("\n" + ensemble.table(f"{first.member.split}, {views}", rows))
    if searched:
        half = rows["mean of these"].examples
        print(f"These are errors on {half} of the {len(first.labels)} images. The weights were searched on the others.")
    return rows
