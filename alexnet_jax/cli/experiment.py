"""The command experiment: the paper's claims, measured again."""

import sys
from pathlib import Path

from alexnet_jax.cli import common
from alexnet_jax.experiments import ALL


def add(commands) -> None:
    """Adds `experiment` to the commands."""
    experiment = commands.add_parser(
        "experiment",
        help="the paper's claims, measured again; takes the config's flags as main.py does",
        description="Sets of runs, and a table of their results: "
        + "; ".join(f"{n}: {w}" for n, (_, w) in ALL.items()),
        epilog="Fields of the config are set as in main.py: --config.FIELD=VALUE.",
        allow_abbrev=False,
    )
    experiment.add_argument("name", choices=ALL, help="what is measured")
    experiment.add_argument("--workdir", required=True, help="folder for the runs and the table")
    experiment.add_argument(
        "--config", help="file of the config that the runs start from; default: the experiment's own"
    )
    experiment.add_argument("--seeds", type=common.positive, help="number of runs that differ only by their seed")
    experiment.add_argument("--pretrain", help="for six_conv: the data set to train on first, as config.dataset")
    experiment.set_defaults(run=_experiment, flags=[])


def _experiment(options):
    import importlib

    from alexnet_jax import config as config_lib
    from alexnet_jax.errors import UsageError

    if (options.name == "six_conv") != bool(options.pretrain):
        raise UsageError(
            "six_conv needs --pretrain=DATASET, and no other experiment takes it: a data set, the larger the better, "
            "on which its networks with six convolutions are trained first."
        )
    common.set_up_devices()
    module = importlib.import_module(f"alexnet_jax.experiments.{ALL[options.name][0]}")
    if not options.config and not Path(module.CONFIG).exists():
        raise UsageError(f"{module.CONFIG} does not exist here. Start this in the checkout, or give --config=FILE.")
    given = {flag.lstrip("-").partition("=")[0] for flag in options.flags}
    # A tuple that is given twice would be joined.
    defaults = [flag for flag in module.DEFAULTS if flag.lstrip("-").partition("=")[0] not in given]
    config = config_lib.from_flags([f"--config={options.config or module.CONFIG}", *defaults, *options.flags])
    config_lib.check(config)
    from alexnet_jax.experiments.runs import Setting

    folder = Path(options.workdir).expanduser().resolve()
    setting = Setting(options.name, config, options.seeds or module.SEEDS, folder, options.pretrain or "")
    try:
        text = module.run(setting)
    except KeyboardInterrupt:
        print("\nStopped; the same command continues from here.")
        sys.exit(130)
    print(f"\n{text}\nWrote: {folder}" if text else "Stopped; the same command continues from here.")
