"""The fields of a config: their types and accepted values; errors are found before any work starts."""

import dataclasses
import difflib
import json
import math
import re
import sys
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from alexnet_jax.errors import UsageError
from alexnet_jax.files import local, read_json, stores, write_whole
from alexnet_jax.network import architectures, networks
from alexnet_jax.training import optimizer

CHECKOUT = Path(__file__).parents[1]
"""The folder that holds configs/, if this package is used from a checkout."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field's type, the values it accepts (in words and as a test), and whether a resumed run may change it."""

    kind: type
    accepted: str
    accepts: object = lambda value: True
    free: bool = False


def _one_of(*values: str) -> Field:
    return Field(str, "one of " + ", ".join(values), lambda value: value in values)


# The step, and what is compared with it, is an int32. A key is made of 32 bits of the seed.
_SEED = Field(int, "an integer of at least 0, below 2^32", lambda value: 0 <= value < 2**32)
_EVERY = Field(int, "an integer of at least 1", lambda value: value >= 1)
_POSITIVE = Field(int, "an integer of at least 1, below 2^31", lambda value: 1 <= value < 2**31)
_NOT_NEGATIVE = Field(int, "an integer of at least 0, below 2^31", lambda value: 0 <= value < 2**31)
_SHARE = Field(float, "a number from 0 up to, not including, 1", lambda value: 0 <= value < 1)
_ABOVE_ZERO = Field(float, "a number above 0", lambda value: value > 0)
_AT_LEAST_ZERO = Field(float, "a number of at least 0", lambda value: value >= 0)
_TEXT = Field(str, "text")
_FLAG = Field(bool, "True or False")
_SCHEDULE = Field(
    tuple,
    "a tuple of (epoch, layer, rate), such as ((25, '*', 0.001), (67, 'conv1', 0.0)), with '*' for all layers "
    "that are not named, epochs and rates of at least 0, in the order of the epochs",
    lambda value: _is_schedule(value),
)


_DECAYS = Field(
    tuple,
    "a tuple of (layer, decay), such as (('conv1', 0.0), ('fc10', 0.01)), each layer once, decays of at least 0",
    lambda value: (
        all(
            isinstance(entry, tuple)
            and list(map(type, entry)) in ([str, float], [str, int])
            and 0 <= entry[1] < math.inf
            for entry in value
        )
        and len({layer for layer, _ in value}) == len(value)
    ),
)


def _is_schedule(value: tuple) -> bool:
    if not all(isinstance(entry, tuple) and len(entry) == 3 for entry in value):
        return False
    numbers = [number for epoch, _, rate in value for number in (epoch, rate)]
    if not all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers):
        return False
    epochs = [epoch for epoch, _, _ in value]
    return all(isinstance(layer, str) for _, layer, _ in value) and epochs == sorted(epochs)


def _is_network(value: str) -> bool:
    """As networks.exists; but raises ValueError, with the reason, if the network cannot be changed as its name says."""
    try:
        networks.named(value)
    except networks.UnknownNetworkError:
        return False
    return True


def _free(field: Field) -> Field:
    return dataclasses.replace(field, free=True)


# Free fields may differ when a run is resumed: they change how far or where it runs, not what a step computes. With a
# cooldown, the length of a run is not free, because the rates of its last steps depend on it.
FIELDS = {
    "dataset": Field(str, "'digits', 'imagenet2012', 'folder:PATH' or the name of a TFDS dataset", bool),
    "data_dir": _free(_TEXT),
    "train_split": _TEXT,
    "eval_split": _TEXT,
    "image_size": _POSITIVE,
    "num_classes": _NOT_NEGATIVE,
    "architecture": Field(str, networks.ACCEPTED, _is_network),
    "dtype": _one_of("float32", "bfloat16"),
    "pretrained": _TEXT,
    "seed": _SEED,
    "shuffle": _FLAG,
    "early_share": Field(float, "a number above 0, at most 1", lambda value: 0 < value <= 1),
    "early_epochs": _NOT_NEGATIVE,
    "batch_size": _POSITIVE,
    "num_epochs": _free(_POSITIVE),
    "num_steps": _free(_NOT_NEGATIVE),
    "mean_at": _one_of("crop", "center"),
    "augment.crop": _FLAG,
    "augment.flip": _FLAG,
    "augment.min_area": Field(float, "a number above 0, at most 1", lambda value: 0 < value <= 1),
    "augment.group": _POSITIVE,
    "augment.pca_std": _AT_LEAST_ZERO,
    "augment.pca_scale": _one_of("eigenvalue", "stdev"),
    "augment.pca_rescale": _FLAG,
    "augment.pca_epochs": _AT_LEAST_ZERO,
    "accumulate": _free(_POSITIVE),
    "learning_rate": _ABOVE_ZERO,
    "rate_batch_size": _NOT_NEGATIVE,
    "warmup_epochs": _AT_LEAST_ZERO,
    "cooldown": Field(float, "a number from 0 to 1", lambda value: 0 <= value <= 1),
    "momentum": _SHARE,
    "weight_decay": _AT_LEAST_ZERO,
    "weight_decays": _DECAYS,
    "update_rule": _one_of(*optimizer.RULES),
    "schedule": _SCHEDULE,
    "plateau.factor": Field(float, "a number between 0 and 1", lambda value: 0 < value < 1),
    "plateau.patience": _POSITIVE,
    "plateau.patience_steps": _NOT_NEGATIVE,
    "plateau.drops": _NOT_NEGATIVE,
    "plateau.threshold": Field(float, "a number between 0 and 1", lambda value: 0 < value < 1),
    "mesh.tower": _free(_POSITIVE),
    "mesh.placement": _free(_one_of("towers", "weird_trick")),
    "eval_batch_size": _free(_POSITIVE),
    "views": _free(Field(int, "1, 5 or 10", lambda value: value in (1, 5, 10))),
    "eval_every_steps": _NOT_NEGATIVE,
    "data_on_device": _free(_one_of("auto", "always", "never")),
    "checkpoint_every_steps": _free(_EVERY),
    "log_every_steps": _free(_EVERY),
    "profile": _free(_FLAG),
    "report": _free(_FLAG),
}

NEWER = {
    "report": True,
    "plateau.patience_steps": 0,
    "eval_every_steps": 0,
    "cooldown": 0.0,
    "augment.min_area": 1.0,
    "weight_decays": (),
    "shuffle": True,
    "early_share": 1.0,
    "early_epochs": 0,
    "data_on_device": "auto",
}
"""Fields that older runs lack, with the value that means what those runs did."""


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UsageError for a field that is unknown, missing, of another type or out of range."""
    values = flatten(config)
    for name in values:
        check_name(name)
    for name, field in FIELDS.items():
        if name not in values:
            raise UsageError(f"config lacks the field {name!r} ({field.accepted}). Start from configs/alexnet.py.")
        check_value(name, values[name])
    local(values["dataset"].removeprefix("folder:"), "config.dataset")
    for name in ("data_dir", "pretrained"):
        if not stores.is_address(values[name]):
            local(values[name], f"config.{name}")
    architecture = networks.named(config.architecture)
    size = architecture[0].size
    if config.image_size < size:
        raise UsageError(
            f"config.image_size is {config.image_size}; accepted is {size}, the input of "
            f"{config.architecture}, or more. Set --config.image_size={size} or choose another architecture."
        )
    weighted = architectures.weighted(architecture)
    named = [("schedule", layer) for _, layer, _ in config.schedule if layer != "*"]
    named += [("weight_decays", layer) for layer, _ in config.weight_decays]
    for field, layer in named:
        if layer not in weighted:
            others = "'*' and the layers" if field == "schedule" else "the layers"
            raise UsageError(
                f"config.{field} names the layer {layer!r}; accepted are {others} of {config.architecture} that have "
                f"weights, {', '.join(weighted)}. Correct that entry."
            )


def check_name(name: str) -> None:
    """Raises UsageError if no field has this dotted name."""
    if name not in FIELDS:
        close = difflib.get_close_matches(name, FIELDS)
        hint = f"did you mean {close[0]!r}?" if close else "accepted are " + ", ".join(FIELDS) + "."
        raise UsageError(f"config has no field {name!r}; {hint} Correct or remove it.")


def check_value(name: str, value: object) -> None:
    """Raises UsageError if a field does not accept a value."""
    field = FIELDS[name]
    right_type = type(value) is field.kind or (field.kind is float and type(value) is int)
    finite = not isinstance(value, float) or math.isfinite(value)
    try:
        accepted = right_type and finite and field.accepts(value)
    except ValueError as error:
        raise UsageError(f"config.{name} is {value!r}, but {error} Set --config.{name} to another value.") from error
    if not accepted:
        raise UsageError(
            f"config.{name} is {value!r}; accepted is {field.accepted}. Set --config.{name} to such a value."
        )


def check_resumable(config: ml_collections.ConfigDict, saved: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raises UsageError if a run in workdir was started with values that a resumed run may not change."""
    now, before = (with_newer(flatten(values)) for values in (config, saved))
    for name in sorted(now.keys() | before.keys()):
        length = name in ("num_epochs", "num_steps") and (now.get("cooldown") or before.get("cooldown"))
        if name in FIELDS and FIELDS[name].free and not length:
            continue
        if name not in now or name not in before:
            raise UsageError(
                f"{workdir} holds a run of another version of this program: {name}={before.get(name)!r} there, but "
                f"{now.get(name)!r} now. Give another --workdir, or resume it with the version that started it."
            )
        if name == "dataset" and all(str(config[name]).startswith("folder:") for config in (now, before)):
            continue  # images may be moved; setup.check_contents compares what is in the folders
        if name == "pretrained" and Path(now[name]).name == Path(before[name]).name != "":
            continue  # it may be moved, and only a run that begins reads it
        if name == "architecture" and now[name].upper() == before[name].upper():
            continue
        if now[name] != before[name]:
            raise UsageError(
                f"{workdir} holds a run with {name}={before[name]!r}, and this one has {name}={now[name]!r}. "
                f"To resume it, set --config.{name}={before[name]}; to start again, give another --workdir."
            )


def with_newer(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """The fields of an older run, by their dotted names behind `prefix`, and the newer fields that it lacks."""
    parents = {name.rpartition(".")[0] for name in values}
    return {
        f"{prefix}{name}": value for name, value in NEWER.items() if f"{prefix}{name}".rpartition(".")[0] in parents
    } | values


def from_flags(arguments: list[str]) -> ml_collections.ConfigDict:
    """The config that --config=FILE[:VARIANT] and --config.FIELD=VALUE give, read as main.py reads them.

    Raises:
      UsageError: if there is no such file, or a flag is wrong.
    """
    argv, values = ["", *arguments], flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    # Config files import each other as configs.NAME, which Python would not find from another working directory.
    beside = next((a.partition("=")[2] for a in arguments if a.startswith("--config=")), "")
    folders = map(str, (*Path(beside).absolute().parents[1:2], CHECKOUT))
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        if rest := values(argv)[1:]:
            raise UsageError(f"unknown arguments: {' '.join(rest)}; fields are set as --config.FIELD=VALUE")
        config.value.keys()  # a missing file is noticed only here
    except (flags.Error, AttributeError, OSError) as error:
        raise UsageError(what_is_wrong(error, argv)) from error
    return config.value


def what_is_wrong(error: Exception, argv: list[str]) -> str:
    """The flag parser's message; if a field is wrong, the message of the checks here, which know what it accepts."""
    words = str(error).strip()
    try:
        for name in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE):
            check_name(name)
        if refused := re.match(r"flag --config\.([^=]+)=(.*?): ", words):
            check_value(*refused.groups())
    except UsageError as better:
        return str(better)
    return words


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Nested fields by dotted name, e.g. {"mesh.tower": 1}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def save(config: ml_collections.ConfigDict, path: Path) -> None:
    """Writes the config as JSON, completely or not at all."""
    write_whole(path, json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")


def load(path: Path) -> ml_collections.ConfigDict:
    """Reads what save wrote. Raises UsageError if the file is damaged, or a field does not accept its value."""
    advice = "Copy it again, or start a new run in another --workdir."
    config = ml_collections.ConfigDict(_with_tuples(read_json(path, dict, advice)))
    for name, value in flatten(config).items():
        if name in FIELDS:
            try:
                check_value(name, value)
            except UsageError as error:
                raise UsageError(f"{path} is damaged, or of another version of this program: {error}") from error
    return config


def _with_tuples(value):
    """Turns lists into tuples: JSON has no tuples, and a config has no lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
