"""The command experiment: the paper's claims, measured again."""

import sys

from alexnet_jax.cli import common
from alexnet_jax.experiments import ALL


def add(commands) -> None:
    """Adds `experiment` to the commands."""
    experiment = commands.add_parser(
        "experiment",
        help="measure the paper's claims again; takes the config's flags as main.py does",
        description="Sets of runs, and a table of their results: "
        + "; ".join(f"{n}: {w}" for n, (_, w) in ALL.items()),
        epilog="Fields of the config are set as in main.py: --config.FIELD=VALUE.",
        allow_abbrev=False,
    )
    experiment.add_argument("name", choices=ALL, help="the experiment, as above")
    experiment.add_argument("--workdir", required=True, help="folder for the runs and the table")
    experiment.add_argument("--config", help="config file that the runs start from; default: the experiment's own")
    experiment.add_argument("--seeds", type=common.positive, help="number of runs that differ only by their seed")
    experiment.add_argument("--pretrain", help="for six_conv: the data set for pretraining, as config.dataset")
    experiment.add_argument(
        "--only", metavar="NAME,NAME", help="make only these runs: names of their folders, without -seedN"
    )
    experiment.set_defaults(run=_experiment, flags=[])


def _experiment(options):
    import importlib

    from alexnet_jax import config as config_lib
    from alexnet_jax.errors import UsageError

    if (options.name == "six_conv") != bool(options.pretrain):
        raise UsageError(
            "six_conv needs --pretrain=DATASET, and no other experiment accepts it. Its networks with six convolutions "
            "are first trained on this data set; a large one is best."
        )
    if options.name == "baseline" and options.only:
        raise UsageError("--only chooses runs, but baseline has none. Leave it out.")
    common.set_up_devices()
    module = importlib.import_module(f"alexnet_jax.experiments.{ALL[options.name][0]}")
    name, _, variant = module.CONFIG.partition(":")
    file = options.config or f"{config_lib.CHECKOUT / name}{':' * bool(variant)}{variant}"
    if not options.config and not (config_lib.CHECKOUT / name).exists():
        raise UsageError(f"{name} is not part of an installed package. Give --config=FILE, or use a checkout.")
    given = {flag.lstrip("-").partition("=")[0] for flag in options.flags}
    # A flag of the user replaces the default, because the values of a tuple that is given twice would be joined.
    defaults = [flag for flag in module.DEFAULTS if flag.lstrip("-").partition("=")[0] not in given]
    config = config_lib.from_flags([f"--config={file}", *defaults, *options.flags])
    config_lib.check(config)
    from alexnet_jax import hosts
    from alexnet_jax.experiments.runs import Setting
    from alexnet_jax.files import copies

    only = tuple(options.only.split(",")) if options.only else ()
    try:
        with hosts.workdir(options.workdir, "run", "experiment") as folder:
            folder = folder.resolve()
            setting = Setting(options.name, config, options.seeds or module.SEEDS, folder, options.pretrain or "", only)
            text = module.run(setting)
            wrote = copies.named(f"\n{text}\nWrote: {folder}")
    except KeyboardInterrupt:
        print("\nStopped; the same command continues from here.")
        sys.exit(130)
    print(wrote if text else "Stopped; the same command continues from here.")
