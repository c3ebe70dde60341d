"""Speed of each operation of the network: this project, compared with plain JAX and PyTorch.

    python benchmarks/layers.py                                  # batches of 32, float32
    python benchmarks/layers.py --only lrn1 lrn2
    python benchmarks/layers.py --batch=1024 --dtype=bfloat16    # for an accelerator
    pip install torch                                            # optional: with PyTorch as well

Operations have the names and sizes of PAPER's layers. Norms and pools take the maps of both towers in one array,
convolutions the maps that one tower sees. All contestants get the same random numbers on the device: images for
conv1, outputs of a ReLU for the others. Forward is the operation alone. Forward + backward gives the result and the
gradient with respect to every input, for a random cotangent. First all results are compared with plain JAX: the
largest difference may be LIMITS times the largest number. Then each is timed in turn, for several rounds. Plain JAX
is the obvious code: `reduce_window`, `conv_general_dilated`, Flax's `max_pool`, and JAX's derivatives of them.
PyTorch runs eager and compiled, with maps first and maps last; the others are compared with the best of the four.
GB/s counts each input and each result once, the smallest possible traffic; "of copy" is its share of the bandwidth of
adding one to a large array, measured in the same run.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory for PyTorch
sys.path.insert(0, str(Path(__file__).parent.parent))

with contextlib.suppress(ImportError):
    import torch  # before JAX and TensorFlow: in the other order their copies of LLVM crash
    from torch.nn import functional as torch_functional

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import shared

from alexnet_jax import AlexNet, convolution, local_response_norm, max_pool
from alexnet_jax.network.architectures import LRN, Conv, MaxPool, layer_names
from alexnet_jax.network.networks import PAPER

LIMITS = {"cpu float32": 1e-4, "float32": 1e-2, "bfloat16": 3e-2}  # accelerators multiply float32 with fewer digits
SECONDS = 0.3  # shortest measurement
TO_TORCH = (0, 3, 1, 2), (3, 2, 0, 1)  # the axes of maps and of kernels; and back:
FROM_TORCH = (0, 2, 3, 1), (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation, written three times.

    `shapes` are those of its inputs: maps (N, H, W, C) and, for a convolution, a kernel (h, w, C, O); the function of
    PyTorch takes them as (N, C, H, W) and (O, C, h, w). `image` says that the maps hold negative numbers as well.
    """

    shapes: tuple[tuple[int, ...], ...]
    ours: Callable
    plain: Callable
    torch: Callable
    picture: bool = False


def shapes_of(architecture, batch_size):
    """The shapes of a network's layers by name: of the outputs (N, ...), joined over towers, and of the kernels."""
    first = architecture[0]
    images = jax.ShapeDtypeStruct((batch_size, first.size, first.size, first.channels), jnp.float32)
    network = AlexNet(architecture)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    _, sown = jax.eval_shape(lambda v, x: network.apply(v, x, mutable="intermediates"), variables, images)
    outputs = {name.removesuffix("_output"): found[0].shape for name, found in sown["intermediates"].items()}
    return {"input": images.shape, **outputs}, {name: p["kernel"].shape for name, p in variables["params"].items()}


def operations(batch_size):
    """PAPER's operations by the names of its layers."""
    outputs, kernels = shapes_of(PAPER, batch_size)
    names, found = layer_names(PAPER), {}
    for before, name, layer in zip(names, names[1:], PAPER[1:], strict=False):
        x = outputs[before]
        match layer:
            case LRN():
                found[name] = _norm(layer, x)
            case MaxPool():
                found[name] = _pool(layer, x)
            case Conv():
                kernel = kernels[name][1:]  # of one tower
                found[name] = _convolution(layer, (*x[:3], kernel[2]), kernel, picture=before == "input")
    return found


def _norm(layer, shape):
    """A norm within all maps of an array of this shape."""

    def plain(x):
        a = x.astype(jnp.float32)
        window, edges = (1, 1, 1, layer.n), [(0, 0)] * 3 + [(layer.n // 2, layer.n // 2)]
        sums = jax.lax.reduce_window(a**2, 0.0, jax.lax.add, window, (1,) * 4, edges)
        return (a / (layer.k + layer.alpha * sums) ** layer.beta).astype(x.dtype)

    def in_torch(x):
        a = x.float() if x.device.type == "cpu" else x  # on a CPU it cannot average in bfloat16
        return torch_functional.local_response_norm(a, layer.n, layer.alpha * layer.n, layer.beta, layer.k).to(x.dtype)

    return Operation(
        (shape,), lambda x: local_response_norm(x, layer.n, layer.k, layer.alpha, layer.beta), plain, in_torch
    )


def _pool(layer, shape):
    """A max pool of maps of this shape."""
    size, stride = layer.size, layer.stride
    return Operation(
        (shape,),
        lambda x: max_pool(x, size, stride),
        lambda x: nn.max_pool(x, (size, size), (stride, stride)),
        lambda x: torch_functional.max_pool2d(x, size, stride),
    )


def _convolution(layer, shape, kernel, picture):
    """A convolution of maps of this shape with kernels (h, w, C, O)."""
    before, after = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
    strides, maps_last = (layer.stride,) * 2, ("NHWC", "HWIO", "NHWC")

    def in_torch(x, kernel):
        if before == after:
            return torch_functional.conv2d(x, kernel, stride=strides, padding=before)
        return torch_functional.conv2d(torch_functional.pad(x, (before, after) * 2), kernel, stride=strides)

    return Operation(
        (shape, kernel),
        lambda x, kernel: convolution(x, kernel, stride=layer.stride, padding=layer.padding),
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, strides, [(before, after)] * 2, dimension_numbers=maps_last
        ),
        in_torch,
        picture,
    )


def data_of(operation, dtype):
    """Random inputs of an operation and a cotangent of its result, of that dtype."""
    draw = np.random.default_rng(0)
    maps = draw.normal(scale=60, size=operation.shapes[0])
    kernels = [draw.normal(scale=0.01, size=shape) for shape in operation.shapes[1:]]
    inputs = [jnp.asarray(a, dtype) for a in (maps if operation.picture else maps.clip(0), *kernels)]
    result = jax.eval_shape(operation.plain, *inputs)
    return inputs, jnp.asarray(draw.normal(size=result.shape), dtype)


def in_jax(function, inputs, cotangent):
    """A contestant: calls that return the result, and the result and its gradients; how to wait; as NumPy's arrays."""

    def both(cotangent, *inputs):
        result, pull = jax.vjp(function, *inputs)
        return result, *pull(cotangent)

    forward, both = jax.jit(function), jax.jit(both)
    return {
        "forward": lambda: (forward(*inputs),),
        "forward + backward": lambda: both(cotangent, *inputs),
        "wait": jax.block_until_ready,
        "numpy": lambda arrays: [np.asarray(a, np.float32) for a in arrays],
    }


def in_torch(function, inputs, cotangent, *, maps_last, compiled):
    """A contestant in PyTorch; returns the same as in_jax."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if maps_last else torch.contiguous_format
    function = torch.compile(function, dynamic=False) if compiled else function

    def tensor(array, axes):
        found = torch.tensor(np.asarray(array, np.float32).transpose(axes).copy(), device=device)
        return found.to(getattr(torch, array.dtype.name)).contiguous(memory_format=layout)

    tensors = [tensor(a, axes).requires_grad_() for a, axes in zip(inputs, TO_TORCH, strict=False)]
    cotangent = tensor(cotangent, TO_TORCH[0])

    def forward():
        with torch.no_grad():
            return (function(*tensors),)

    def both():
        result = function(*tensors)
        return result, *torch.autograd.grad(result, tensors, cotangent)

    def to_numpy(found):  # the result and the first gradient are maps, the second gradient is a kernel
        axes = [FROM_TORCH[0], *FROM_TORCH]
        return [t.detach().float().cpu().numpy().transpose(a) for t, a in zip(found, axes, strict=False)]

    return {
        "forward": forward,
        "forward + backward": both,
        "wait": lambda _: torch.cuda.synchronize() if device == "cuda" else None,
        "numpy": to_numpy,
    }


def contestants_of(operation, inputs, cotangent):
    """The contestants by name."""
    found = {
        "this project": in_jax(operation.ours, inputs, cotangent),
        "plain JAX": in_jax(operation.plain, inputs, cotangent),
    }
    if "torch" in sys.modules:
        torch._dynamo.reset()  # otherwise it would compile the next size for any size
        torch.backends.cudnn.benchmark = True  # chooses its convolutions by timing them, as XLA does
        for maps_last, compiled in itertools.product((False, True), repeat=2):
            name = f"PyTorch, {'compiled' if compiled else 'eager'}, maps {'last' if maps_last else 'first'}"
            found[name] = in_torch(operation.torch, inputs, cotangent, maps_last=maps_last, compiled=compiled)
    return found


def check(contestants, limit):
    """Ends the program unless all have the results and gradients of plain JAX. This also compiles everything."""
    whats = "forward", "forward + backward"
    wanted = {what: contestants["plain JAX"]["numpy"](contestants["plain JAX"][what]()) for what in whats}
    for name, contestant in contestants.items():
        found = {what: contestant["numpy"](contestant[what]()) for what in whats}
        off = [
            float(np.abs(a - b).max() / np.abs(b).max())
            for what in whats
            for a, b in zip(found[what], wanted[what], strict=True)
        ]
        if not max(off) < limit:
            sys.exit(
                f"error: {name} differs from plain JAX by {max(off):.1e} of the largest number; limit: {limit:.0e}."
            )
        shared.say(f"{name}: result and gradients within {max(off):.1e}")


def measure(contestants, rounds):
    """Seconds of each contestant's calls, in each round."""
    together = 1 if jax.default_backend() == "cpu" else shared.QUEUED
    times = {name: {"forward": [], "forward + backward": []} for name in contestants}
    for _ in rounds:
        for name, contestant in contestants.items():
            for what, found in times[name].items():
                found.append(shared.seconds_a_call(contestant[what], contestant["wait"], SECONDS, together))
    return times


def least_bytes(operation, inputs, cotangent):
    """Bytes of what a forward pass, and a forward and a backward pass, read and write, each once."""
    read, written = sum(a.nbytes for a in inputs), cotangent.nbytes
    return {"forward": read + written, "forward + backward": 2 * (read + written)}


def print_table(times, moved, bandwidth):
    """One line for each contestant; ratios are medians over the rounds, above 1 if it is faster."""
    peers = [name for name in times if name.startswith("PyTorch")] or ["plain JAX"]
    columns = [f"{what}, ms | lowest | highest | ratio | GB/s | of copy" for what in moved]
    rows = []
    for name in times:
        cells = [name]
        for what, mine in times[name].items():
            best = min((times[peer][what] for peer in peers), key=statistics.median)
            ratio = statistics.median(b / a for a, b in zip(mine, best, strict=True))
            cells += [f"{1e3 * s:.3f}" for s in (statistics.median(mine), min(mine), max(mine))]
            rate = moved[what] / statistics.median(mine)
            cells += [f"{ratio:.2f}", f"{rate / 1e9:.1f}", f"{rate / bandwidth:.0%}"]
        rows.append(cells)
    shared.print_table(["", *" | ".join(columns).split(" | ")], rows)


def main():
    """Checks, times and prints one operation after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(operations(1)), choices=list(operations(1)))
    parser.add_argument("--seconds", type=float, default=300, help="about this long; fewer rounds on a slow machine")
    options = parser.parse_args()
    on_cpu = "cpu " if jax.default_backend() == "cpu" and options.dtype == "float32" else ""
    limit, end = LIMITS[on_cpu + options.dtype], shared.end_after(options.seconds)

    print(f"Batches of {options.batch}, {options.dtype}, at most {options.rounds} rounds; {shared.machine()}")
    bandwidth = shared.copy_rate()
    for done, name in enumerate(options.only):
        shared.say(f"{name}: compiling and checking all contestants")
        now = time.perf_counter()
        mine = now + (end - now) / (len(options.only) - done)
        operation = operations(options.batch)[name]
        inputs, cotangent = data_of(operation, jnp.dtype(options.dtype))
        contestants = contestants_of(operation, inputs, cotangent)
        check(contestants, limit)
        shared.say(f"{name}: timing")
        times = measure(contestants, shared.rounds(options.rounds, mine))
        print(f"\n{name}: {' and '.join(str(shape) for shape in operation.shapes)}\n")
        print_table(times, least_bytes(operation, inputs, cotangent), bandwidth)


if __name__ == "__main__":
    main()
