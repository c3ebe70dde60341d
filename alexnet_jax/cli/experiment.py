"""The command experiment: what the paper claims, measured again."""

from pathlib import Path

from alexnet_jax.cli import common
from alexnet_jax.experiments import NAMES


def add(commands) -> None:
    """Adds `experiment` to the commands."""
    experiment = commands.add_parser(
        "experiment", help="what the paper claims, measured again; takes the config's flags as main.py does"
    )
    experiment.add_argument("name", choices=NAMES, help="what is measured; see alexnet_jax/experiments/")
    experiment.add_argument("--workdir", required=True, help="folder for the runs and the table")
    experiment.add_argument("--config", help="that its runs vary; default: the experiment's own")
    experiment.add_argument("--seeds", type=common.positive, help="runs that differ only by their seed")
    experiment.add_argument("--pretrain", help="for six_conv: the data set to begin with, as config.dataset")
    experiment.set_defaults(run=_experiment, flags=[])


def _experiment(options):
    import importlib

    from alexnet_jax import config as config_lib
    from alexnet_jax.config import UsageError

    if (options.name == "six_conv") != (options.pretrain is not None):
        raise UsageError(
            "six_conv needs --pretrain=DATASET, and no other experiment takes it: a data set, the larger the better, "
            "on which its networks of six convolutions learn first."
        )
    common.set_up_devices()
    module = importlib.import_module(f"alexnet_jax.experiments.{NAMES[options.name]}")
    given = {flag.partition("=")[0] for flag in options.flags}
    defaults = [flag for flag in module.DEFAULTS if flag.partition("=")[0] not in given]
    config = config_lib.from_flags([f"--config={options.config or module.CONFIG}", *defaults, *options.flags])
    config_lib.check(config)
    from alexnet_jax.experiments.runs import Setting

    folder = Path(options.workdir).expanduser()
    setting = Setting(config, options.seeds or module.SEEDS, folder, options.pretrain or "")
    if text := module.run(setting):
        print(f"\n{text}\nWrote: {folder}")
    else:
        print("Stopped; the same command goes on from here.")
