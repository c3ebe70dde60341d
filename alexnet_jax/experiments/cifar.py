"""cuda-convnet's networks for CIFAR-10, each with its own recipe, beside their published errors (paper, section 3.3).

The recipes are those of configs/cifar10.py. The published errors are cuda-convnet's, on the test set.
"""

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UsageError
from alexnet_jax.experiments import runs, tables
from alexnet_jax.experiments.runs import Outcomes, Setting, Trial

FILE = "configs/cifar10.py"
CONFIG = f"{FILE}:80sec"
DEFAULTS = ("--config.report=false",)
SEEDS = 2
PUBLISHED = {
    "80sec": 26.0,
    "19pct": 19.0,
    "18pct": 18.0,
    "conv_local_13pct": 13.0,
    "conv_local_11pct_first": 11.0,
    "conv_local_11pct": 11.0,
}
"""The published test error in %, by the variant of the config; the shortest run first."""
RECIPE = (
    *("architecture", "weight_decays", "schedule", "num_epochs", "early_share", "early_epochs", "mean_at", "views"),
    *("augment.crop", "augment.flip", "update_rule"),
)
"""The fields in which the variants differ."""


def run(setting: Setting) -> str | None:
    """Runs the experiment. Returns the table as text, or None if it was stopped.

    Raises:
      UsageError: if a field that each recipe sets was changed, or without a checkout, which has the recipes.
    """
    if not (config_lib.CHECKOUT / FILE).exists():
        raise UsageError(f"{FILE}, which has the recipes, is not part of an installed package. Use a checkout.")
    given = config_lib.flatten(setting.config)
    for name, value in recipe(CONFIG.partition(":")[2]).items():
        if given[name] != value:
            raise UsageError(
                f"config.{name} is {given[name]!r}, but each network of this experiment has its own. Leave it out. "
                "For shorter runs, set --config.num_steps."
            )
    return runs.carry_out(setting, plan, write)


def plan(setting: Setting, _: Outcomes) -> list[Trial]:
    """Every network with the first seed, then with the next, and so on."""
    return [setting.trial(name, recipe(name), seed=seed) for seed in range(setting.seeds) for name in PUBLISHED]


def recipe(variant: str) -> dict[str, object]:
    """The fields of a variant's recipe, by their dotted names."""
    config = config_lib.flatten(config_lib.from_flags([f"--config={config_lib.CHECKOUT / FILE}:{variant}"]))
    return {name: config[name] for name in RECIPE}


def write(setting: Setting, done: Outcomes) -> str:
    """Writes the table of errors, and a plot; returns the table as text."""
    rows, marks = [], []
    for name, published in PUBLISHED.items():
        outcomes, count = runs.results(done, [f"{name}-seed{seed}" for seed in range(setting.seeds)])
        views = "ten_views" if any("ten_views" in outcome for outcome in outcomes) else "one_view"
        errors = [outcome[views]["top1_error"] for outcome in outcomes]
        mean = tables.Mean.of(errors) if errors else ""
        rows.append([name, views.replace("_", " "), published, count, mean, " ".join(f"{e:.2f}" for e in errors)])
        if errors:
            marks.append(tables.Mark(name, mean, published))
    tables.plot(setting.folder / "table.png", "top-1 error, %", marks)
    header = ["recipe", "tested by", "published", "seeds", "top-1", "top-1 of each seed"]
    return tables.write(
        setting.folder / "table", header, rows, "Errors in %: the mean over seeds ± its standard error.\n"
    )
