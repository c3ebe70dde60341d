"""Contestants of train_step.py in JAX: this project, and the obvious code in Flax."""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared import DECAY, MOMENTUM, RATE

from alexnet_jax import AlexNet, hosts, update_rule
from alexnet_jax.network import networks
from alexnet_jax.network.architectures import LRN, RBF, Conv, Dense, Flatten, Input, layer_names, towers_of

CANDIDATES, CHECKED = 32, 3  # images of the check
DRAWN = 128  # different images of a batch; a larger one repeats them


def plain_layers(architecture):
    """The layers for code that does not use this project and has all maps in one array: fields, `kind` and `name`.

    Conv and LRN get `groups` if towers do not exchange data. The first Dense gets `sees`, the shape (H, W, C) of its
    input maps. Tables, codes and scales become NumPy arrays.
    """
    names, shapes, found, maps = layer_names(architecture), output_shapes(architecture), [], None
    for name, before, layer in zip(names, (None, *names), architecture, strict=False):
        fields = {"kind": type(layer).__name__, "name": name, **vars(layer)}
        groups = 1 if fields.get("sees") == "all" or name == "conv1" else towers_of(architecture)
        match layer:
            case Input(scale=scale):
                fields["scale"] = None if scale == 1 else np.float64(scale)
            case Conv(padding=padding, table=table):
                fields |= {"groups": groups, "padding": padding if isinstance(padding, tuple) else (padding,) * 2}
                fields["mask"] = None if table is None else mask_of(layer, shapes[before][-1])
            case LRN(n, alpha=alpha, average=average):
                fields |= {"groups": groups, "alpha": alpha / n if average else alpha}
            case Flatten():
                maps = shapes[before]
            case Dense():
                fields["sees"], maps = maps, None
            case RBF(codes):
                fields["codes"] = np.float32([[1 if pixel == "#" else -1 for pixel in code] for code in codes])
        found.append(SimpleNamespace(**fields))
    return found


def output_shapes(architecture):
    """The shape of each layer's output by name, without the batch: (H, W, C) or (units,)."""
    first, network = architecture[0], AlexNet(architecture)
    image = jax.ShapeDtypeStruct((1, first.size, first.size, first.channels), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    _, sown = jax.eval_shape(lambda v, x: network.apply(v, x, mutable="intermediates"), variables, image)
    shapes = {name.removesuffix("_output"): found[0].shape[1:] for name, found in sown["intermediates"].items()}
    return {"input": image.shape[1:], **shapes}


def mask_of(layer, inputs):
    """Which weights (h, w, C, O) a convolution with a table has: 0 or 1."""
    mask = np.zeros((layer.size, layer.size, inputs, layer.maps), np.float32)
    for output, seen in enumerate(layer.table):
        mask[..., list(seen), output] = 1
    return mask


def to_plain(params, layers):
    """This project's parameters, or their gradients, as PlainFlax's: towers side by side, fc6's rows pixel by pixel."""
    plain = {}
    for layer in layers:
        if layer.name in params:
            kernel, bias = (np.asarray(params[layer.name][name]) for name in ("kernel", "bias"))
            towers, kernel = len(kernel), np.concatenate(list(kernel), -1)
            match layer.kind:
                case "Conv" if layer.mask is not None:
                    whole = np.zeros(layer.mask.shape, kernel.dtype)
                    whole.swapaxes(2, 3)[layer.mask.swapaxes(2, 3) == 1] = kernel.ravel()
                    kernel = whole
                case "Dense" if layer.sees:  # (T H W C/T, O) -> (H W T C/T, O)
                    high, wide, maps = layer.sees
                    kernel = kernel.reshape(towers, high * wide, maps // towers, -1).swapaxes(0, 1)
                    kernel = kernel.reshape(high * wide * maps, -1)
            plain[layer.name] = {"kernel": kernel, "bias": bias.reshape(-1)}
    return plain


class PlainFlax(nn.Module):
    """The obvious code: all maps in one array, groups where towers do not exchange data."""

    layers: tuple
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train=False):
        """(N, H, W, C) -> (N, K), in float32 at least."""
        for layer in self.layers:
            self.sow("intermediates", f"{layer.name}_input", x)
            match layer.kind:
                case "Input":
                    x = (x if layer.scale is None else x * layer.scale).astype(self.dtype)
                case "Conv":
                    x = nn.Conv(
                        layer.maps,
                        (layer.size, layer.size),
                        layer.stride,
                        [layer.padding] * 2,
                        feature_group_count=layer.groups,
                        mask=layer.mask,
                        dtype=self.dtype,
                        name=layer.name,
                    )(x)
                case "Dense":
                    x = nn.Dense(layer.units, dtype=self.dtype, name=layer.name)(x)
                case "Subsample":
                    x = PlainSubsample(layer.size, self.dtype, name=layer.name)(x)
                case "Dropout" if layer.rescale:
                    x = nn.Dropout(layer.rate, deterministic=not train)(x)
                case "Dropout" if train:
                    x = x * jax.random.bernoulli(self.make_rng("dropout"), 1 - layer.rate, x.shape)
                case "Dropout":
                    x = x * (1 - layer.rate)
                case _:
                    x = without_weights(layer, x)
        return at_least_float32(x)


class PlainSubsample(nn.Module):
    """LeNet-5's subsampling."""

    size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """(N, H, W, C) -> (N, H', W', C)."""
        kernel = self.param("kernel", nn.initializers.ones, x.shape[-1:]).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(self.dtype)
        return kernel * nn.avg_pool(x, (self.size,) * 2, (self.size,) * 2) + bias


def at_least_float32(x):
    """In float32, or in float64 if it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def without_weights(layer, x):
    """A layer that has no weights and is the same in training and at test time."""
    match layer.kind:
        case "ReLU":
            return nn.relu(x)
        case "Tanh":
            return layer.amplitude * jnp.tanh(layer.slope * x)
        case "LRN":
            a = at_least_float32(x.reshape(*x.shape[:-1], layer.groups, -1))
            window, edges = (1,) * 4 + (layer.n,), [(0, 0)] * 4 + [(layer.n // 2, layer.n // 2)]
            sums = jax.lax.reduce_window(a**2, 0.0, jax.lax.add, window, (1,) * 5, edges)
            return (a / (layer.k + layer.alpha * sums) ** layer.beta).reshape(x.shape).astype(x.dtype)
        case "SameMapLRN":
            a = at_least_float32(x)
            means = nn.avg_pool(a**2, (layer.n, layer.n), padding="SAME")
            return (a / (layer.k + layer.alpha * means) ** layer.beta).astype(x.dtype)
        case "MaxPool" | "AveragePool":
            average = functools.partial(nn.avg_pool, count_include_pad=False)
            pool = nn.max_pool if layer.kind == "MaxPool" else average
            beyond = [-(side - layer.size) % layer.stride if layer.round_up else 0 for side in x.shape[1:3]]
            return pool(x, (layer.size,) * 2, (layer.stride,) * 2, [(0, pixels) for pixels in beyond])
        case "Flatten":
            return x.reshape(len(x), -1)
        case "RBF":
            return -jnp.square(x[:, None] - layer.codes.astype(x.dtype)).sum(-1)


def in_jax(model, params, batch, rubbish=None):
    """A contestant: calls that compile and take a step, predict, and give each image's loss and gradients at test time.

    Args:
      model: AlexNet or PlainFlax.
      params: its parameters; the first step donates them.
      batch: images (N, H, W, C) float32 and labels (N,).
      rubbish: as in architectures.RBF.
    """
    rule = update_rule("decoupled", RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def loss_of(params, images, labels, key=None):
        rngs = {} if key is None else {"dropout": key}
        logits = model.apply({"params": params}, images, train=key is not None, rngs=rngs)
        if rubbish is not None:
            logits = jnp.pad(logits, ((0, 0), (0, 1)), constant_values=-rubbish)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, velocity, images, labels, key):
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels, key)
        updates, velocity = rule.update(gradients, velocity, params)
        return optax.apply_updates(params, updates), velocity, loss

    state, inputs = [params, rule.init(params)], (*batch, jax.random.key(0))
    loss_and_gradients = jax.jit(jax.value_and_grad(loss_of))
    predict = jax.jit(lambda params, images: model.apply({"params": params}, images))
    device = jax.devices()[0]

    @functools.cache
    def compiled():
        return train.lower(*state, *inputs).compile()

    def gradients():
        images, labels = batch
        return [
            jax.device_get(loss_and_gradients(state[0], images[k : k + 1], labels[k : k + 1]))
            for k in range(len(labels))
        ]

    def step():
        state[0], state[1], loss = compiled()(*state, *inputs)
        return loss

    return {
        "train": train,
        "state": state,
        "inputs": inputs,
        "compile": compiled,
        "step": step,
        "forward": lambda: predict(state[0], batch[0]),
        "gradients": gradients,
        "wait": jax.block_until_ready,
        "allocated": lambda: (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "on_cpu": device.platform == "cpu",
    }


def write(path, arrays):
    """Writes {layer: {name: array}} for `read`."""
    np.savez(path, **{f"{layer}/{name}": a for layer, named in arrays.items() for name, a in named.items()})


def read(path):
    """{layer: {name: array}}, one array after the other, so that there is never a second copy of all of them."""
    found = {}
    with np.load(path) as arrays:
        for key in arrays:
            layer, _, name = key.partition("/")
            found.setdefault(layer, {})[name] = jnp.array(arrays[key])
    return found


def margins(layers, params, images):
    """How far each image is from a decision that rounding could turn: of a ReLU, or of a max pool.

    Args:
      layers: of plain_layers.
      params: PlainFlax's, float32.
      images: (N, H, W, C).

    Returns:
      (N,): the smallest |input| of a ReLU, or difference of the two largest numbers in a window, relative to the root
      of the mean square of that layer's inputs; computed in float64.
    """
    with jax.enable_x64(True):
        network, images = PlainFlax(tuple(layers), jnp.dtype("float64")), jnp.asarray(images, "float64")
        _, sown = network.apply({"params": params}, images, mutable="intermediates")
    found = np.full(len(images), np.inf)
    for layer in layers:
        if layer.kind in ("ReLU", "MaxPool"):
            x = np.asarray(sown["intermediates"][f"{layer.name}_input"][0])
            near = np.abs(x) if layer.kind == "ReLU" else lead_of_maxima(layer, x)
            found = np.minimum(found, near.reshape(len(x), -1).min(-1) / np.sqrt(np.square(x).mean()))
    return found


def lead_of_maxima(layer, x):
    """The difference of the two largest numbers in each window of a max pool; infinite where they are equal.

    Equal numbers are zeros of a ReLU, where no gradient goes on.
    """
    beyond = [(0, -(side - layer.size) % layer.stride if layer.round_up else 0) for side in x.shape[1:3]]
    x = np.pad(x, [(0, 0), *beyond, (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (layer.size,) * 2, (1, 2))[
        :, :: layer.stride, :: layer.stride
    ]
    second, first = np.moveaxis(np.partition(windows.reshape(*windows.shape[:4], -1), (-2, -1))[..., -2:], -1, 0)
    return np.where(first == second, np.inf, first - second)


def prepare(folder, network, batch_size, checked=True):
    """Draws weights and a batch, and writes them into a folder in the layouts of this project and of the others.

    batch.npz has the different images and all labels of the batch. check.npz, if the contestants are `checked`, has
    the CHECKED of CANDIDATES images that are farthest from ties (`margins`).

    Returns:
      plain_layers of the network, and the platform of the device ("cpu", "gpu").
    """
    try:
        architecture = networks.named(network)
    except ValueError as error:
        sys.exit(f"error: --network: {error}")
    first, draw = architecture[0], np.random.default_rng(0)
    size = first.size, first.size, first.channels
    images, candidates = (
        draw.normal(scale=60, size=(count, *size)).astype(np.float32) for count in (min(batch_size, DRAWN), CANDIDATES)
    )
    labels = draw.integers(0, architecture[-1].units, batch_size + CHECKED)
    params = jax.jit(AlexNet(architecture).init)(jax.random.key(0), images[:1])["params"]
    layers = plain_layers(architecture)
    plain = to_plain(params, layers)
    np.savez(folder / "batch.npz", images=images, labels=labels[CHECKED:])
    if checked:
        chosen = candidates[np.argsort(margins(layers, plain, candidates))[-CHECKED:]]
        np.savez(folder / "check.npz", images=chosen, labels=labels[:CHECKED])
    write(folder / "this project.npz", params)
    write(folder / "plain.npz", plain)
    return layers, jax.default_backend()


def contestant(folder, network, layers, *, ours, dtype, batch):
    """This project or plain Flax with the files of `prepare`, whose `batch` is "batch" or "check".

    In "float64" the parameters are float64 as well.
    """
    if ours:
        hosts.convolve_with_eigen()  # as main.py
    dtype, architecture = jnp.dtype(dtype), networks.named(network)
    exact = dtype == jnp.float64
    with jax.enable_x64(exact):
        model = AlexNet(architecture, dtype=dtype) if ours else PlainFlax(tuple(layers), dtype)
        with np.load(folder / f"{batch}.npz") as arrays:
            images, labels = jnp.array(arrays["images"]), jnp.array(arrays["labels"])
        batch = images[np.arange(len(labels)) % len(images)], labels
        params = read(folder / ("this project.npz" if ours else "plain.npz"))
        if exact:
            batch, params = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, (batch, params))
        made = in_jax(model, params, batch, getattr(architecture[-1], "rubbish", None))
    of_images = made["gradients"]

    def gradients():
        with jax.enable_x64(exact):
            found = of_images()
        return [(loss, to_plain(a, layers) if ours else a) for loss, a in found]

    return made | {"gradients": gradients}
