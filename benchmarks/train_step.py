"""How fast a network learns: this project's step beside plain Flax and PyTorch.

    python benchmarks/train_step.py                              # PAPER, batches of 128, float32
    python benchmarks/train_step.py --network=CIFAR_FOUR_LAYER
    python benchmarks/train_step.py --batch=1024 --dtype=bfloat16        # for an accelerator
    pip install torch                                            # optional: with PyTorch as well

All contestants have the same weights and the same batch, which lies on the device: float32 parameters, a forward and a
backward pass in --dtype, and the update by SGD with momentum and weight decay. First their losses and gradients at test
time are compared, in float32; then each is timed in turn, several rounds long. Plain Flax is what one writes first:
`nn.Conv` with groups, `reduce_window` and JAX's derivatives of it. PyTorch is run eager and compiled, with maps first
and with maps last, and the best of the four is what others are compared with. Prints medians of images/s of a step and
of a forward pass, the medians of the rounds' ratios to PyTorch's best, and the seconds until the first step is done.
"""

import argparse
import contextlib
import functools
import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

with contextlib.suppress(ImportError):
    import torch  # before JAX and TensorFlow: their copies of LLVM do not bear each other in the other order
    from torch import nn as torch_nn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax import AlexNet, networks, update_rule
from alexnet_jax.architectures import (
    LRN,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    ReLU,
    layer_names,
    towers_of,
)

KNOWN = Input, Conv, ReLU, LRN, MaxPool, AveragePool, Flatten, Dense, Dropout
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4  # weights that hardly move keep the numbers, and so the times, what they are


class PlainFlax(nn.Module):
    """The network as one writes it first: all maps in one array, groups where towers do not talk."""

    architecture: tuple
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train=False):
        """(N, H, W, C) -> (N, K) float32."""
        towers = towers_of(self.architecture)
        for name, layer in zip(layer_names(self.architecture), self.architecture, strict=True):
            match layer:
                case Input():
                    x = x.astype(self.dtype)
                case Conv():
                    padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
                    groups = 1 if layer.sees == "all" or name == "conv1" else towers
                    x = nn.Conv(
                        layer.maps,
                        (layer.size, layer.size),
                        layer.stride,
                        [padding] * 2,
                        feature_group_count=groups,
                        dtype=self.dtype,
                        name=name,
                    )(x)
                case Dense():
                    x = nn.Dense(layer.units, dtype=self.dtype, name=name)(x)
                case ReLU():
                    x = nn.relu(x)
                case LRN():
                    of_tower = x.reshape(*x.shape[:-1], towers, -1).astype(jnp.float32)
                    window = (1,) * 4 + (layer.n,)
                    edges = [(0, 0)] * 4 + [(layer.n // 2, layer.n // 2)]
                    sums = jax.lax.reduce_window(of_tower**2, 0.0, jax.lax.add, window, (1,) * 5, edges)
                    x = (of_tower / (layer.k + layer.alpha * sums) ** layer.beta).reshape(x.shape).astype(self.dtype)
                case MaxPool() | AveragePool():
                    pool = (
                        nn.max_pool
                        if isinstance(layer, MaxPool)
                        else functools.partial(nn.avg_pool, count_include_pad=False)
                    )
                    beyond = [-(side - layer.size) % layer.stride if layer.round_up else 0 for side in x.shape[1:3]]
                    x = pool(x, (layer.size,) * 2, (layer.stride,) * 2, [(0, pixels) for pixels in beyond])
                case Flatten():
                    x = x.reshape(len(x), -1)
                case Dropout():
                    mask = (
                        jax.random.bernoulli(self.make_rng("dropout"), 1 - layer.rate, x.shape)
                        if train
                        else 1 - layer.rate
                    )
                    x = x * mask
        return x.astype(jnp.float32)


def to_plain(params, architecture, shapes):
    """This project's parameters as PlainFlax's: towers side by side, fc6's rows pixel by pixel."""
    towers, plain = towers_of(architecture), {}
    for name, p in params.items():
        kernel = jnp.concatenate(list(p["kernel"]), -1)
        if name in shapes:  # (T H W C/T, O) -> (H W T C/T, O)
            high, wide, maps = shapes[name]
            kernel = kernel.reshape(towers, high * wide, maps // towers, -1).swapaxes(0, 1).reshape(kernel.shape)
        plain[name] = {"kernel": kernel, "bias": p["bias"].reshape(-1)}
    return plain


def first_dense(network, images):
    """The shape (H, W, C) of the maps that the first dense layer sees, by its name."""
    names = layer_names(network.architecture)
    at = next(k for k, layer in enumerate(network.architecture) if isinstance(layer, Flatten))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    seen = jax.eval_shape(lambda v: network.apply(v, images, mutable=["intermediates"]), variables)[1]["intermediates"]
    dense = next(names[k] for k in range(at, len(names)) if isinstance(network.architecture[k], Dense))
    return {dense: seen[f"{names[at - 1]}_output"][0].shape[1:]}


def in_jax(model, params, batch):
    """A contestant: its step, its forward pass, its loss and gradients at test time."""
    images, labels = batch
    rule = update_rule("decoupled", RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def loss_of(params, images, train, key=None):
        logits = model.apply({"params": params}, images, train=train, rngs={"dropout": key} if train else {})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, velocity, key):
        loss, gradients = jax.value_and_grad(loss_of)(params, images, True, key)
        updates, velocity = rule.update(gradients, velocity, params)
        return optax.apply_updates(params, updates), velocity, loss

    state = [jax.tree.map(jnp.copy, params), rule.init(params)]
    forward = jax.jit(lambda params: model.apply({"params": params}, images))

    def step():
        state[0], state[1], loss = train(*state, jax.random.key(0))
        loss.block_until_ready()

    return {
        "step": step,
        "forward": lambda: forward(state[0]).block_until_ready(),
        "gradients": lambda: jax.device_get(
            jax.jit(jax.value_and_grad(loss_of), static_argnums=2)(params, images, False)
        ),
    }


def torch_module(architecture):
    """The same network of PyTorch's own layers."""
    towers = towers_of(architecture)

    class TowersLRN(torch_nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.norm = torch_nn.LocalResponseNorm(layer.n, layer.alpha * layer.n, layer.beta, layer.k)

        def forward(self, x):  # towers as pictures: a view where maps come first
            return self.norm(x.reshape(len(x) * towers, -1, *x.shape[2:])).reshape(x.shape)

    class PaperDropout(torch_nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.rate = layer.rate

        def forward(self, x):
            return x * torch.empty_like(x).bernoulli_(1 - self.rate) if self.training else x * (1 - self.rate)

    modules, first = {}, True
    for name, layer in zip(layer_names(architecture), architecture, strict=True):
        match layer:
            case Conv():
                before, after = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
                if before != after:
                    modules[f"{name}_pad"] = torch_nn.ZeroPad2d((before, after, before, after))
                    before = 0
                groups = 1 if layer.sees == "all" or first else towers
                modules[name] = torch_nn.LazyConv2d(layer.maps, layer.size, layer.stride, before, groups=groups)
                first = False
            case Dense():
                modules[name] = torch_nn.LazyLinear(layer.units)
            case ReLU():
                modules[name] = torch_nn.ReLU()
            case LRN():
                modules[name] = TowersLRN(layer)
            case MaxPool(size, stride, round_up):
                modules[name] = torch_nn.MaxPool2d(size, stride, ceil_mode=round_up)
            case AveragePool(size, stride, round_up):
                modules[name] = torch_nn.AvgPool2d(size, stride, ceil_mode=round_up, count_include_pad=False)
            case Flatten():
                modules[name] = torch_nn.Flatten()
            case Dropout():
                modules[name] = PaperDropout(layer)
    model = torch_nn.Sequential()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def in_torch(architecture, plain, shapes, batch, *, maps_last, compiled, dtype):
    """A contestant in PyTorch; `plain` are PlainFlax's parameters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if maps_last else torch.contiguous_format
    images = torch.tensor(np.asarray(batch[0]).transpose(0, 3, 1, 2).copy(), device=device).contiguous(
        memory_format=layout
    )
    labels = torch.tensor(np.asarray(batch[1]), device=device, dtype=torch.long)
    torch.manual_seed(0)
    model = torch_module(architecture).to(device)
    model(images[:2])
    with torch.no_grad():
        for name, p in plain.items():
            module, kernel = model.get_submodule(name), np.array(p["kernel"])
            if kernel.ndim == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            elif name in shapes:  # rows (H W C) -> (C H W)
                kernel = kernel.reshape(*shapes[name], -1).transpose(2, 0, 1, 3).reshape(kernel.shape).T
            else:
                kernel = kernel.T
            module.weight.copy_(torch.tensor(np.ascontiguousarray(kernel)))
            module.bias.copy_(torch.tensor(np.array(p["bias"])))
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    called = torch.compile(model) if compiled else model
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == jnp.bfloat16)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def step():
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with cast():
            loss = torch_nn.functional.cross_entropy(called(images), labels)
        loss.backward()
        optimizer.step()
        wait()

    def forward():
        model.eval()
        with torch.no_grad(), cast():
            called(images)
        wait()

    def gradients():
        model.eval()
        loss = torch_nn.functional.cross_entropy(model(images), labels)
        found = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        return loss.item(), {name: g.cpu().numpy() for name, g in zip(names, found, strict=True)}

    return {"step": step, "forward": forward, "gradients": gradients}


def norms(gradients):
    """The Euclidean norm of each gradient by (layer, "kernel" or "bias"); PyTorch calls kernels weights."""
    if any("." in name for name in gradients):
        return {tuple(name.replace("weight", "kernel").split(".")): np.linalg.norm(g) for name, g in gradients.items()}
    return {(layer, name): np.linalg.norm(g) for layer, p in gradients.items() for name, g in p.items()}


def check(contestants):
    """Ends the program unless all have the same loss and the same norm of each gradient, to 0.1%."""
    wanted = None
    for name, contestant in contestants.items():
        loss, gradients = contestant["gradients"]()
        found = {"loss": float(loss), **norms(gradients)}
        wanted = wanted or found
        off = max(abs(found[key] - value) / abs(value) for key, value in wanted.items())
        if not off < 1e-3:
            sys.exit(f"error: {name} has another loss or gradient than this project, by {off:.1e} of its norm.")
        print(f"{name}: loss {found['loss']:.6f}, norms of the gradients within {off:.1e}")


def first_steps(contestants):
    """Seconds that each contestant's first step takes, most of them to compile; the second is not timed."""
    seconds = {}
    for name, contestant in contestants.items():
        began = time.perf_counter()
        contestant["step"]()
        seconds[name] = time.perf_counter() - began
        for what in ("step", "forward", "forward"):
            contestant[what]()
    return seconds


def measure(contestants, batch_size, rounds):
    """Images/s of each contestant's steps and forward passes, in each round."""
    rates = {name: {"step": [], "forward": []} for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            for what, found in rates[name].items():
                began, calls = time.perf_counter(), 0
                while calls < 2 or time.perf_counter() - began < 2:
                    contestant[what]()
                    calls += 1
                found.append(calls * batch_size / (time.perf_counter() - began))
    return rates


def print_table(rates, seconds):
    """A line a contestant; ratios are the medians over the rounds."""
    peers = [name for name in rates if name.startswith("PyTorch")] or ["plain Flax"]
    print(
        "| | step, images/s | lowest | highest | ratio | forward, images/s | lowest | highest | ratio | first step, s |"
    )
    print("|---" * 10 + "|")
    for name in rates:
        cells = [name]
        for what, mine in rates[name].items():
            best = max((rates[peer][what] for peer in peers), key=statistics.median)
            ratio = statistics.median(a / b for a, b in zip(mine, best, strict=True))
            cells += [f"{statistics.median(mine):.1f}", f"{min(mine):.1f}", f"{max(mine):.1f}", f"{ratio:.2f}"]
        print("| " + " | ".join([*cells, f"{seconds[name]:.1f}"]) + " |")


def main():
    """Checks, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="PAPER", choices=sorted(networks.NAMED))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    architecture, dtype = networks.NAMED[options.network], jnp.dtype(options.dtype)
    if strange := sorted({type(layer).__name__ for layer in architecture} - {known.__name__ for known in KNOWN}):
        sys.exit(f"error: the other contestants have no {', '.join(strange)}. Choose another --network, such as PAPER.")

    first, draw = architecture[0], np.random.default_rng(0)
    images = draw.normal(scale=60, size=(options.batch, first.size, first.size, first.channels))
    batch = jnp.asarray(images, jnp.float32), jnp.asarray(draw.integers(0, architecture[-1].units, options.batch))
    network = AlexNet(architecture, dtype=dtype)
    params = jax.jit(network.init)(jax.random.key(0), batch[0][:1])["params"]
    shapes = first_dense(network, batch[0][:1])
    plain = to_plain(params, architecture, shapes)

    def ours_and_plain(dtype):
        return {
            "this project": in_jax(AlexNet(architecture, dtype=dtype), params, batch),
            "plain Flax": in_jax(PlainFlax(architecture, dtype), plain, batch),
        }

    contestants = ours_and_plain(dtype)
    if "torch" in sys.modules:
        for maps_last, compiled in itertools.product((False, True), repeat=2):
            name = f"PyTorch, {'compiled' if compiled else 'eager'}, maps {'last' if maps_last else 'first'}"
            contestants[name] = in_torch(
                architecture, plain, shapes, batch, maps_last=maps_last, compiled=compiled, dtype=dtype
            )
    peers = {name: contestant for name, contestant in contestants.items() if "eager" in name}
    check(ours_and_plain(jnp.dtype("float32")) | peers)
    seconds = first_steps(contestants)
    rates = measure(contestants, options.batch, options.rounds)
    device = jax.devices()[0].device_kind
    print(f"\n{options.network}, batches of {options.batch}, {options.dtype}, {device}, {options.rounds} rounds\n")
    print_table(rates, seconds)


if __name__ == "__main__":
    main()
