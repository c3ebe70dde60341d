"""Contestants of train_step.py in PyTorch: the obvious code, with PyTorch's own layers."""

import functools

import numpy as np
import torch
from shared import DECAY, MOMENTUM, RATE
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """The network: all maps in one tensor, groups where towers do not talk.

    `layers` are from train_step_jax.plain_layers, and `shapes` are the kernels' shapes there, by layer.
    """

    def __init__(self, layers, shapes):
        super().__init__()
        self.layers, self.weighted = layers, nn.ModuleDict()
        for layer in layers:
            match layer.kind:
                case "Conv":
                    inputs = layer.groups * shapes[layer.name][2]
                    # Padding that differs before and after is done by hand.
                    padding = layer.padding[0] if layer.padding[0] == layer.padding[1] else 0
                    arguments = inputs, layer.maps, layer.size, layer.stride, padding
                    if layer.mask is None:
                        self.weighted[layer.name] = nn.Conv2d(*arguments, groups=layer.groups)
                    else:
                        self.weighted[layer.name] = MaskedConv(layer.mask, *arguments)
                case "Dense":
                    self.weighted[layer.name] = nn.Linear(*shapes[layer.name])
                case "Subsample":
                    self.weighted[layer.name] = Subsample(*shapes[layer.name], layer.size)
                case "Input" if layer.scale is not None:
                    self.register_buffer("scale", torch.tensor(layer.scale).reshape(-1, 1, 1), persistent=False)
                case "RBF":
                    self.register_buffer("codes", torch.tensor(layer.codes), persistent=False)

    def forward(self, x):
        """(N, C, H, W) -> (N, K)."""
        for layer in self.layers:
            match layer.kind:
                case "Input":
                    x = x if layer.scale is None else x * self.scale.to(x.dtype)
                case "Conv" | "Dense" | "Subsample":
                    if layer.kind == "Conv" and layer.padding[0] != layer.padding[1]:
                        x = functional.pad(x, layer.padding * 2)
                    x = self.weighted[layer.name](x)
                case "Dropout" if layer.rescale:
                    x = functional.dropout(x, layer.rate, self.training)
                case "Dropout" if self.training:
                    x = x * torch.empty_like(x).bernoulli_(1 - layer.rate)
                case "Dropout":
                    x = x * (1 - layer.rate)
                case "RBF":
                    x = -(x[:, None] - self.codes).square().sum(-1)
                case _:
                    x = without_weights(layer, x)
        return x


class MaskedConv(nn.Conv2d):
    """A convolution without those weights where the mask (h, w, C, O) is 0."""

    def __init__(self, mask, *arguments):
        super().__init__(*arguments)
        self.register_buffer("mask", torch.tensor(mask.transpose(3, 2, 0, 1).copy()), persistent=False)

    def forward(self, x):
        """(N, C, H, W) -> (N, O, H', W')."""
        return functional.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class Subsample(nn.Module):
    """LeNet-5's subsampling."""

    def __init__(self, maps, size):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(maps)), nn.Parameter(torch.zeros(maps))
        self.size = size

    def forward(self, x):
        """(N, C, H, W) -> (N, C, H', W')."""
        return self.weight[:, None, None] * functional.avg_pool2d(x, self.size) + self.bias[:, None, None]


def without_weights(layer, x):
    """A layer that has no weights and is the same in training and at test time."""
    match layer.kind:
        case "ReLU":
            return functional.relu(x)
        case "Tanh":
            return layer.amplitude * torch.tanh(layer.slope * x)
        case "LRN":  # towers as images: a view where maps come first
            a = x.reshape(len(x) * layer.groups, -1, *x.shape[2:])
            return functional.local_response_norm(a, layer.n, layer.alpha * layer.n, layer.beta, layer.k).reshape(
                x.shape
            )
        case "SameMapLRN":
            means = functional.avg_pool2d(x.square(), layer.n, 1, layer.n // 2)
            return x / (layer.k + layer.alpha * means) ** layer.beta
        case "MaxPool":
            return functional.max_pool2d(x, layer.size, layer.stride, ceil_mode=layer.round_up)
        case "AveragePool":
            return functional.avg_pool2d(x, layer.size, layer.stride, ceil_mode=layer.round_up, count_include_pad=False)
        case "Flatten":
            return x.flatten(1)


def to_torch(kernel, layer):
    """A kernel of PlainFlax as PyTorch's weight."""
    match layer.kind:
        case "Conv":
            return kernel.transpose(3, 2, 0, 1)
        case "Dense":
            if layer.sees:  # rows (H W C) -> (C H W)
                kernel = kernel.reshape(*layer.sees, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
            return kernel.T
    return kernel


def to_plain(weight, layer):
    """The way back."""
    match layer.kind:
        case "Conv":
            return weight.transpose(2, 3, 1, 0)
        case "Dense":
            kernel = weight.T
            if layer.sees:
                high, wide, maps = layer.sees
                kernel = kernel.reshape(maps, high, wide, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
            return kernel
    return weight


def read_network(path, layers):
    """The network with the weights of a file, which are read one after the other."""
    with np.load(path) as arrays, torch.no_grad():
        shapes = {key.removesuffix("/kernel"): arrays[key].shape for key in arrays if key.endswith("/kernel")}
        network = Network(layers, shapes)
        for layer in layers:
            if layer.name in network.weighted:
                module = network.weighted[layer.name]
                module.weight.copy_(torch.tensor(to_torch(arrays[f"{layer.name}/kernel"], layer).copy()))
                module.bias.copy_(torch.tensor(arrays[f"{layer.name}/bias"]))
    return network


def read_batch(path, device):
    """The images (N, C, H, W) float32 and labels (N,) of a file; the images are repeated until there are N."""
    with np.load(path) as arrays:
        images = torch.tensor(arrays["images"].transpose(0, 3, 1, 2).copy(), device=device)
        labels = torch.tensor(arrays["labels"], device=device)
    return images[torch.arange(len(labels), device=device) % len(images)], labels


def use_gpu():
    """Products of float32 get the digits of JAX's own (TF32), and convolutions are chosen by trial, as by XLA."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def gradients_of(model, layers):
    """The gradients that are in a model, by layer: kernel and bias in plain Flax's layout."""
    found = {}
    for layer in layers:
        if layer.name in model.weighted:
            module = model.weighted[layer.name]
            weight, bias = module.weight.grad.cpu().numpy(), module.bias.grad.cpu().numpy()
            found[layer.name] = {"kernel": to_plain(weight, layer), "bias": bias}
    return found


def contestant(folder, layers, *, maps_last, compiled, dtype, batch):
    """What train_step_jax.contestant returns, in PyTorch; `compiled` is a mode of torch.compile, or None.

    In "float64" all is float64.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        use_gpu()
    layout = torch.channels_last if maps_last else torch.contiguous_format
    images, labels = read_batch(folder / f"{batch}.npz", device)
    images = images.contiguous(memory_format=layout)
    torch.manual_seed(0)
    model = read_network(folder / "plain.npz", layers).to(device, memory_format=layout)
    if dtype == "float64":
        model, images = model.double(), images.double()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    called = torch.compile(model, mode=compiled) if compiled else model
    cast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")
    rubbish = getattr(layers[-1], "rubbish", None)

    def loss_of(logits, labels=labels):
        if rubbish is not None:
            logits = functional.pad(logits, (0, 1), value=-rubbish)
        return functional.cross_entropy(logits, labels)

    def step():
        torch.compiler.cudagraph_mark_step_begin()  # without CUDA graphs it does nothing
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with cast():
            loss = loss_of(called(images))
        loss.backward()
        optimizer.step()

    def forward():
        torch.compiler.cudagraph_mark_step_begin()
        model.eval()
        with torch.no_grad(), cast():
            called(images)

    def gradients():
        model.eval()
        return [of_image(k) for k in range(len(labels))]

    def of_image(k):
        model.zero_grad(set_to_none=True)
        with cast():
            loss = loss_of(model(images[k : k + 1]), labels[k : k + 1])
        loss.backward()
        return loss.item(), gradients_of(model, layers)

    return {
        "step": step,
        "forward": forward,
        "gradients": gradients,
        "wait": lambda _: torch.cuda.synchronize() if device == "cuda" else None,
        "allocated": lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "on_cpu": device == "cpu",
    }
