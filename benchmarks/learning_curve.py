"""The training loss of the same network here and in PyTorch, on the same batches, from the same weights.

    pip install torch
    python benchmarks/learning_curve.py --output=DIR --config.dataset=folder:PATH
    python benchmarks/learning_curve.py --output=DIR --config.dataset=folder:PATH --dtype=float64

This project takes its own training step, with the rule "paper" and without dropout. PyTorch gets the same augmented
images and labels, and takes its step with torch.optim.SGD, which is the same rule while the rate is constant. The
network in PyTorch is that of train_step_torch.py. The script writes losses.csv and losses.png, and prints the largest
relative difference of the two losses. Two runs in float32 drift apart: rounding decides at the kinks of ReLU and
between equal numbers in a pool, and each such decision changes all later steps. In float64 this happens much later.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path

import torch

# isort: split
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
import train_step_jax
import train_step_torch
from matplotlib.figure import Figure

from alexnet_jax import config as config_lib
from alexnet_jax.data import batches, survey
from alexnet_jax.network import towers
from alexnet_jax.training import setup
from alexnet_jax.training.step import augmented, init_state, train_step

DEFAULTS = {"architecture": "PAPER_QUARTER_FAN_IN_NO_DROPOUT", "image_size": 128, "update_rule": "paper"}
CONFIG = str(Path(__file__).parent.parent / "configs" / "imagenette.py")


def config_of(flags):
    """The config that --config.FIELD=VALUE flags give, with the defaults of this script."""
    defaults = [f"--config.{name}={value}" for name, value in DEFAULTS.items()]
    config = config_lib.from_flags([f"--config={CONFIG}", *defaults, *flags])
    config_lib.check(config)
    if config.weight_decays or config.cooldown or config.warmup_epochs or config.schedule:
        raise SystemExit("error: PyTorch here has one rate and one weight decay; leave out what changes them.")
    return config


def losses(config, steps, dtype):
    """Yields the loss of each step, here and in PyTorch.

    Args:
      config: of the run; its update_rule is "paper", and its architecture has no dropout.
      steps: number of steps.
      dtype: "float32" or "float64", of weights and activations in both.
    """
    data = setup.open_data(config)
    recipe = setup.recipe_for(config, data, towers.ONE_DEVICE)
    architecture = recipe.network.architecture
    recipe = dataclasses.replace(recipe, network=recipe.network.clone(dtype=np.dtype(dtype)))
    statistics = survey.survey(data.train, image_size=config.image_size, num_classes=architecture[-1].units)
    statistics = jax.tree.map(np.float32, statistics)
    state = init_state(recipe=recipe)
    state = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float32 else a, state)
    network = in_torch(architecture, jax.device_get(state.params), dtype)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    order = batches.Order.of_run(config, len(data.train))
    order = {"order": order, "batch_size": config.batch_size, "image_size": config.image_size}
    for step, batch in enumerate(batches.train_batches(data.train, start=0, stop=steps, **order)):
        images = np.array(augmented(recipe, batch, statistics, step))  # the same draws as in train_step
        state, metrics = train_step(state, batch, statistics, recipe=recipe)
        optimizer.zero_grad(set_to_none=True)
        inputs = torch.tensor(images.transpose(0, 3, 1, 2).astype(dtype))
        logits = network(inputs)[:, : architecture[-1].units]  # our last layer may have one output more than classes
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(batch["label"], dtype=torch.long))
        loss.backward()
        optimizer.step()
        yield float(metrics["loss"]), loss.item()


def in_torch(architecture, params, dtype):
    """The network of train_step_torch.py with our parameters."""
    layers = train_step_jax.plain_layers(architecture)
    plain = train_step_jax.to_plain(params, layers)
    network = train_step_torch.Network(layers, {name: arrays["kernel"].shape for name, arrays in plain.items()})
    network = network.to(getattr(torch, dtype))
    with torch.no_grad():
        for layer in layers:
            if layer.name in plain:
                module, kernel = network.weighted[layer.name], plain[layer.name]["kernel"]
                module.weight.copy_(torch.tensor(train_step_torch.to_torch(kernel, layer).copy()))
                module.bias.copy_(torch.tensor(plain[layer.name]["bias"]))
    return network


def write(folder, rows):
    """Writes losses.csv and losses.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "losses.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "here", "PyTorch"), *rows])
    figure = Figure((6, 3.6), layout="constrained")
    axis = figure.subplots()
    step, here, there = zip(*rows, strict=True)
    axis.plot(step, there, color="0.7", lw=4, label="PyTorch")
    axis.plot(step, here, color="C0", lw=1, label="this project")
    axis.set(xlabel="step", ylabel="training loss (nats)")
    axis.legend()
    figure.savefig(folder / "losses.png", dpi=160)


def main():
    """Runs both, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, help="folder for losses.csv and losses.png")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options, rest = parser.parse_known_args()
    config, rows = config_of(rest), []
    with jax.enable_x64(options.dtype == "float64"):
        for step, (here, there) in enumerate(losses(config, options.steps, options.dtype), 1):
            rows.append((step, here, there))
            print(f"step {step}: here {here:.9g}, PyTorch {there:.9g}", flush=True)
    write(options.output, rows)
    off = [abs(here - there) / there for _, here, there in rows]
    print(f"Largest relative difference: {max(off):.2g}, at step {1 + int(np.argmax(off))} of {len(off)}")


if __name__ == "__main__":
    main()
