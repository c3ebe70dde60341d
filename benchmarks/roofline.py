"""How close a training step comes to the limit of the device, and which operations take its time.

    python benchmarks/roofline.py                                        # PAPER, batches of 128, float32
    python benchmarks/roofline.py --batch=1024 --dtype=bfloat16          # for a GPU
    python benchmarks/roofline.py --network=CIFAR_FOUR_LAYER --steps=20

The lower bound for a layer's time is the longer of two times: its floating-point operations at the speed of a large
matrix product, and its smallest number of bytes at the speed of a copy. Both speeds are measured on the device in the
same run, in --dtype. The bound is computed for the forward and the backward pass separately; the sum over all layers
is the roofline. Only layers with weights count operations, two for each multiply-add; other layers compute little,
and their bytes bound them. Smallest number of bytes: a pass reads its maps, gradients and weights once and writes its
results once. Element-wise layers (ReLU, dropout) move nothing, because they can be fused into others. Weights and
their gradients are float32; the update reads gradient, weight and velocity, and writes weight and velocity.

The step is that of benchmarks/train_step.py. JAX's profiler traces --steps of it, and each operation of the compiled
program counts for the layer in its name. "traced" is the time of a layer's operations in one step, summed over threads.
The script prints a table by layer, the share of the roofline that is reached, and the slowest operations. A convolution
that saves multiplications (Winograd's, here or in a GPU library) can be faster than its bound. For a CPU or a GPU.
"""

import argparse
import collections
import dataclasses
import math
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from layers import shapes_of  # before JAX: it brings PyTorch
from train_step_jax import in_jax

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
import shared

from alexnet_jax import AlexNet
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import Dropout, Flatten, Input, Local, ReLU, Tanh, layer_names

NUMBER_BY_NUMBER = Input, ReLU, Tanh, Dropout, Flatten
PARAMETER = 4  # bytes
SECONDS = 0.3  # shortest measurement
CONTAINERS = "while", "call", "conditional"  # their time is the time of the operations inside them
ONE_BY_ONE = {"xla_gpu_enable_command_buffer": ""}  # the trace of a GPU shows a command buffer as one operation


@dataclasses.dataclass(frozen=True)
class Work:
    """What a layer does in a step: floating-point operations and least bytes, forward and backward."""

    forward: tuple[float, float]
    backward: tuple[float, float]

    def bound(self, peak, bandwidth):
        """The bound in seconds, for these speeds."""
        return sum(max(flops / peak, moved / bandwidth) for flops, moved in (self.forward, self.backward))


def work_of(architecture, batch_size, dtype):
    """The Work of each layer that does work, and of the update, by name, in the order of the layers."""
    outputs, kernels = shapes_of(architecture, batch_size)
    names, found, parameters, of_input = layer_names(architecture), {}, 0, True
    for before, name, layer in zip(names, names[1:], architecture[1:], strict=False):
        if isinstance(layer, NUMBER_BY_NUMBER):
            continue
        x, y = (math.prod(outputs[n]) * dtype.itemsize for n in (before, name))
        # A weight of a convolution is used at each place of the maps, one of a dense or local layer once.
        weights = math.prod(kernels.get(name, (0,)))
        places = batch_size if isinstance(layer, Local) else math.prod(outputs[name][:-1])
        flops = 2 * places * weights
        gradients = 1 if of_input else 2  # of the weights, and of the maps unless they are images
        found[name] = Work(
            (flops, x + y + PARAMETER * weights),
            (gradients * flops, gradients * x + y + gradients * PARAMETER * weights),
        )
        parameters, of_input = parameters + weights, False
    found["update"] = Work((0, 0), (0, 5 * PARAMETER * parameters))
    return found


def place_of(path, names):
    """The layer and the pass of an operation by its path, such as jit(train)/transpose(jvp(AlexNet))/conv1/add_any."""
    way = "backward" if "transpose(" in path else "forward"
    words = [word.removeprefix("into_") for word in re.findall(r"\w+", path)]
    if named := [word for word in words if word in names]:
        return named[0], way
    if not path or "AlexNet" in path:
        return "unnamed", way if path else ""
    return ("loss", way) if "jvp(" in path else ("update", "")


def operations_of(program, traced, names):
    """Layer, pass and kind of each traced operation, less containers, by its name.

    `program` is the compiled step's text, `traced` are names of operations, `names` those of layers.
    """
    found, paths = dict.fromkeys(traced, ("unnamed", "", "")), {}
    for line in program.splitlines():
        if operation := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\((.*)", line):
            name, kind, rest = operation.groups()
            own = re.findall(r'op_name="([^"]*)"', rest)
            # An operation that the compiler added has no path. It counts for the operation whose result it copies.
            of_inputs = (paths[other] for other in re.findall(r"%([\w.-]+)", rest) if paths.get(other))
            paths[name] = own[0] if own else next(of_inputs, "")
            if name in found:
                found[name] = (*place_of(paths[name], names), kind if not own else own[0].rpartition("/")[2])
                if kind in CONTAINERS:
                    del found[name]
    return found


def trace(contestant, steps):
    """The program of the compiled step, and milliseconds a step of each operation in it by name."""
    train, state, inputs = contestant["train"], contestant["state"], contestant["inputs"]
    compiled = train.lower(*state, *inputs).compile(compiler_options=ONE_BY_ONE)
    *state, loss = compiled(*state, *inputs)
    loss.block_until_ready()
    profiler = jax.profiler.ProfileOptions()
    profiler.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=profiler):
            for _ in range(steps):
                *state, loss = compiled(*state, *inputs)
                loss.block_until_ready()
        (written,) = Path(directory).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(written)).planes)
    times = collections.Counter()
    on_gpu = any(plane.name.startswith("/device:GPU") for plane in planes)
    for plane in planes:
        for line in plane.lines:
            # For a GPU, only the lines of its streams: other lines repeat them.
            if on_gpu and not (plane.name.startswith("/device:GPU") and line.name.startswith("Stream")):
                continue
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    times[stats["hlo_op"]] += event.duration_ns / 1e6 / steps
    return compiled.as_text(), times


def print_layers(names, work, times, batch_size, peak, bandwidth):
    """One line for each layer; `times` are milliseconds in a step by layer."""
    columns = "forward, GFLOP/image", "step, GFLOP/image", "step, MB", "bound by", "bound, ms", "traced, ms"
    rows = []
    for name in [name for name in (*names, "loss", "update", "unnamed") if name in work or name in times]:
        cells = [name, *[""] * 5]
        if name in work:
            layer = work[name]
            flops, moved = (a + b for a, b in zip(layer.forward, layer.backward, strict=True))
            cells[1:3] = (f"{f / batch_size / 1e9:.3f}" for f in (layer.forward[0], flops))
            cells[3:5] = f"{moved / 1e6:.1f}", "operations" if flops / peak > moved / bandwidth else "bytes"
            cells[5] = f"{1e3 * layer.bound(peak, bandwidth):.3f}"
        rows.append([*cells, f"{times[name]:.3f}"])
    shared.print_table(["", *columns], rows)


def print_costliest(operations, times, count):
    """One line for each of the slowest operations."""
    rows = []
    for name, milliseconds in times.most_common(count):
        layer, way, kind = operations[name]
        rows.append([name, layer, way, f"{milliseconds:.3f}", f"{milliseconds / times.total():.1%}", kind])
    shared.print_table(["operation", "layer", "pass", "ms a step", "share", "what it is"], rows)


def main():
    """Counts, measures, traces, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="PAPER", choices=sorted(networks.NAMED))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=3, help="to trace, at most")
    parser.add_argument("--costliest", type=int, default=10, help="operations to list")
    parser.add_argument("--seconds", type=float, default=120, help="about this long; fewer steps on a slow machine")
    options = parser.parse_args()
    architecture, dtype = networks.NAMED[options.network], jnp.dtype(options.dtype)
    work = work_of(architecture, options.batch, dtype)
    print(f"{options.network}, batches of {options.batch}, {options.dtype}; {shared.machine()}; ", end="")
    peak, bandwidth = shared.matrix_rate(dtype), shared.copy_rate()
    print(f"for the bounds: {peak / 1e9:.1f} GFLOP/s in {options.dtype}, {bandwidth / 1e9:.1f} GB/s\n")

    first, draw = architecture[0], np.random.default_rng(0)
    images = draw.normal(scale=60, size=(options.batch, first.size, first.size, first.channels))
    batch = jnp.asarray(images, jnp.float32), jnp.asarray(draw.integers(0, architecture[-1].units, options.batch))
    network = AlexNet(architecture, dtype=dtype)
    params = jax.jit(network.init)(jax.random.key(0), batch[0][:1])["params"]
    contestant = in_jax(network, params, batch, getattr(architecture[-1], "rubbish", None))
    shared.say("compiling and timing the step")
    jax.block_until_ready(contestant["step"]())
    end, one = shared.end_after(options.seconds), shared.seconds(contestant["step"], jax.block_until_ready)
    together = shared.sent_together(jax.default_backend() == "cpu", one, SECONDS)
    taken = statistics.median(
        shared.seconds_a_call(contestant["step"], jax.block_until_ready, SECONDS, together)
        for _ in shared.rounds(3, end)
    )
    fits = int((end - time.perf_counter()) / taken)
    shared.say("tracing")
    program, times = trace(contestant, max(1, min(options.steps, fits)))
    names = layer_names(architecture)
    operations = operations_of(program, times, names)
    times = collections.Counter({name: times[name] for name in operations})
    by_layer = collections.Counter()
    for name, (layer, _, _) in operations.items():
        by_layer[layer] += times[name]
    print_layers(names, work, by_layer, options.batch, peak, bandwidth)
    roofline = sum(layer.bound(peak, bandwidth) for layer in work.values())
    print(f"\nA step takes {1e3 * taken:.3f} ms, {options.batch / taken:.1f} images/s; at the roofline ", end="")
    print(
        f"{1e3 * roofline:.3f} ms, {options.batch / roofline:.1f} images/s: {roofline / taken:.1%} of it are reached.\n"
    )
    print_costliest(operations, times, options.costliest)


if __name__ == "__main__":
    main()
