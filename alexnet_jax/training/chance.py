"""Whether a network has left chance, in words; schedule.py has the numbers.

A loss that stays at chance, ln K, is the most frequent trouble with AlexNets. So a run says when it leaves chance, and
what to do if it does not.
"""

from alexnet_jax.training import schedule

PATIENCE = 2000  # a run that is still at chance after this many steps says so, once

# Steps that networks took to leave chance with their config's learning rate, seed 0 (RESULTS.md).
MEASURED: dict[str, tuple[int, str]] = {
    "QUICKSTART": (62, "4,000 digits"),
    "LENET5": (63, "4,000 digits"),
    "PAPER": (85, "Imagenette, 9,469 photographs"),
    "PAPER_FAN_IN": (61, "Imagenette, 3,000 photographs"),
    "PAPER_QUARTER_FAN_IN": (77, "Imagenette, 9,469 photographs"),
    "CIFAR_80SEC": (38, "CIFAR-10"),
    "CIFAR_18PCT": (78, "CIFAR-10"),
}


def measured(architecture: str) -> tuple[str, int, str] | None:
    """The measured network that an architecture is, or is a variant of; its steps to leave chance; and its data."""
    architecture = architecture.upper()
    of = [name for name in MEASURED if architecture == name or architecture.startswith(f"{name}_")]
    return (max(of, key=len), *MEASURED[max(of, key=len)]) if of else None


def length_field(config) -> str:
    """The field that sets the length of a run: num_steps, if it is given, overrides num_epochs."""
    return "num_steps" if config.num_steps else "num_epochs"


def tell(config, chance: float, say, write, step: int, metrics) -> None:
    """Says that a step has left chance, or that it is step PATIENCE and has not.

    Args:
      config: of the run.
      chance: the loss at chance, in nats.
      say: prints a line.
      write: write_scalars of the run's writer.
      step: number of steps done.
      metrics: of the last of them, on the host.
    """
    left = int(metrics["left_chance"])
    if left == step:
        say(f"step {step}: left chance: the running mean of the loss is below {schedule.LEFT:.0%} of {chance:.3f}")
        write(step, {"left_chance": 1.0})
    elif not left and step == PATIENCE:
        say(warning(step, config, chance, ever=False))


def warning(step: int, config, chance: float, *, ever: bool) -> str:
    """What to say of a run that is at chance at a step; `ever`: whether it had left chance before."""
    again = "again " if ever else ""
    return (
        f"WARNING: after {step} steps the network is {again}at chance: its loss is not below {schedule.LEFT:.0%} of "
        f"{chance:.3f}, the loss of a network that has learned nothing. What helps, most likely first:\n"
        f"{advice(config)}"
    )


def advice(config) -> str:
    """What to try when a run stays at chance, most likely first; one line each."""
    name, rate = config.architecture, config.learning_rate
    known = measured(name)
    took = ": {} took {} steps on {}".format(*known) if known else ""
    lines = [f"more steps (--config.{length_field(config)}){took}"]
    if "_FAN_IN" not in name:
        lines.append(f"initial weights scaled to the inputs of each layer (--config.architecture={name}_FAN_IN)")
    lines += [
        "a warm-up (--config.warmup_epochs=1 or more), if the loss rises in the first steps",
        f"another learning rate (--config.learning_rate={rate / 3:.2g} or {3 * rate:.2g})",
        "weights of a trained network to start from (--config.pretrained=FILE)",
        "a look at the images and labels (python -m alexnet_jax doctor)",
    ]
    return "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, 1))
