"""The network (paper, section 3): one Flax module that computes any architecture.

The first axis of every parameter is the tower: kernels have shape (T, h, w, C, O/T), dense
weights (T, I, O/T), biases (T, O/T); those of locally connected layers have the place, (H', W'), behind the tower.
Activations are a list with one array for each tower.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.network import architectures, layers, towers
from alexnet_jax.network.architectures import (
    LRN,
    RBF,
    WEIGHTED,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    Local,
    MaxPool,
    ReLU,
    SameMapLRN,
    Subsample,
    Tanh,
)


class AlexNet(nn.Module):
    """A network of layers: `AlexNet(PAPER).init(key, images)`, `.apply(variables, images)`.

    Attributes:
      architecture: tuple of layers, as in architectures.py.
      dtype: type of the activations; parameters are float32, logits too unless dtype is float64.
      placement: how weights and images are split over devices, for calls under towers.spread.
      natural: whether JAX can differentiate it in every way, not only backward, as in layers; gradients then cost more.
    """

    architecture: architectures.Architecture
    dtype: jnp.dtype = jnp.float32
    placement: towers.Placement = towers.ONE_DEVICE
    natural: bool = False

    @nn.compact
    def __call__(self, images, *, train=False, index=None):
        """Computes the logits of a batch.

        Args:
          images: (N, H, W, channels), H = W = the architecture's input size; pixels in 0..255, float with the mean
            subtracted (uint8 is accepted and used as it is). A network of one channel also accepts three channels.
            Under towers.spread, these are only this device's images, and so are the logits.
          train: whether to apply dropout; needs `rngs={"dropout": key}`.
          index: (N,) integers that identify the examples. A dropout mask is drawn from (key, layer, index, tower),
            so that it does not depend on the number of devices. Default: 0..N-1. Under towers.spread, this
            default would give all devices the same masks.

        Returns:
          (N, K) float32 logits. Each layer's output, with this device's towers joined, is stored (Flax: sown)
          in the collection "intermediates" as NAME_output (Linen keeps NAME for the parameters).

        Raises:
          ValueError: if architectures.check refuses the architecture, or the images do not have its input size.
        """
        architectures.check(self.architecture)
        place, count = self.placement, architectures.towers_of(self.architecture)
        index = jnp.arange(images.shape[0]) if index is None else index

        hs = []  # one array for each tower on this device
        split = False  # whether hs holds all images, but only this device's neurons (the weird trick)
        for name, layer in zip(architectures.layer_names(self.architecture), self.architecture, strict=True):
            match layer:
                case Input():
                    hs = [_image(images, layer, self.dtype)] * (count // place.copies)  # each tower sees it
                    continue
                case Conv() | Local() | Dense():
                    local, outputs = place.local_shape(layer, count)
                    before, split = split, place.splits(layer, count)
                    if layer.sees == "all" or before:
                        with jax.named_scope(f"into_{name}"):
                            joined = place.join(hs, before, split)
                        hs = [joined] * local if layer.sees == "all" else jnp.split(joined, local, -1)
                    hs = _Weights(layer, local, outputs, self.dtype, self.natural, name=name)(hs)
                case Subsample():
                    hs = _Subsample(layer, self.dtype, name=name)(hs)
                case LRN(sees="all"):
                    with jax.named_scope(f"into_{name}"):
                        joined = place.join(hs, False, False)
                    hs = place.own(_within_a_tower(layer, joined, self.natural), len(hs))
                case Dropout() if train:
                    key = self.make_rng("dropout")
                    tower, *neurons = place.neurons(hs, split)
                    with jax.named_scope(name):
                        examples = towers.gather_rows(index) if split else index
                        hs = [_drop(key, examples, tower + t, neurons, h, layer) for t, h in enumerate(hs)]
                case RBF():
                    hs, split = [_minus_distances(place.join(hs, split, False), layer)], False
                case _:
                    with jax.named_scope(name):
                        hs = [_within_a_tower(layer, h, self.natural) for h in hs]
            self.sow("intermediates", f"{name}_output", towers.concatenate(hs))
        with jax.named_scope("into_logits"):
            logits = place.join(hs, split, False)
        # The last layer was rounded up if its classes do not divide evenly into the towers.
        return logits[:, : self.architecture[-1].units].astype(jnp.promote_types(self.dtype, jnp.float32))


def param_specs(network: AlexNet) -> dict[str, dict[str, jax.sharding.PartitionSpec]]:
    """How each parameter of a network is split over the devices of its placement."""
    layers_by_name = zip(architectures.layer_names(network.architecture), network.architecture, strict=True)
    count = architectures.towers_of(network.architecture)
    return {
        name: network.placement.specs(layer, count) for name, layer in layers_by_name if isinstance(layer, WEIGHTED)
    }


class _Weights(nn.Module):
    """A Conv, Local or Dense layer of the towers on this device."""

    layer: Conv | Local | Dense
    local: int
    outputs: int  # of one tower
    dtype: jnp.dtype
    natural: bool

    @nn.compact
    def __call__(self, hs):
        layer, inputs = self.layer, hs[0].shape[-1]
        window = () if isinstance(layer, Dense) else (layer.size, layer.size)
        places = layers.places(hs[0], layer.size, layer.stride, layer.padding) if isinstance(layer, Local) else ()
        shape = (self.local, *places, *window, inputs, self.outputs)
        if tabled := isinstance(layer, Conv) and layer.table is not None:
            seen = [(i, o) for o, entry in enumerate(layer.table) for i in entry]
            shape = (self.local, *window, len(seen))  # one kernel for each connection in the table
        weights = math.prod(shape[1:]) / math.prod(places) / self.outputs  # of a kernel
        std = math.sqrt(2 / weights) if layer.std == "fan_in" else layer.std
        kernel = self.param("kernel", nn.initializers.normal(std), shape, jnp.float32).astype(self.dtype)
        constant = nn.initializers.constant(layer.bias)
        bias = self.param("bias", constant, (self.local, *places, self.outputs), jnp.float32).astype(self.dtype)
        if tabled:
            whole = jnp.zeros((self.local, *window, inputs, self.outputs), self.dtype)
            kernel = whole.at[..., *jnp.array(seen).T].set(kernel)
        if isinstance(layer, Dense):
            # One product for all towers: separating the kernel of each tower would copy it.
            return list(jnp.stack(hs) @ kernel + bias[:, None])  # (N, units/T)
        if isinstance(layer, Local):
            convolve = functools.partial(layers.locally_connected, stride=layer.stride, padding=layer.padding)
            return [convolve(h, kernel[t]) + bias[t] for t, h in enumerate(hs)]  # (N, H', W', maps/T)
        how = {"stride": layer.stride, "padding": layer.padding, "natural": self.natural}
        convolve = functools.partial(layers.convolution, **how)
        return [convolve(h, kernel[t]) + bias[t, None, None, None] for t, h in enumerate(hs)]  # (N, H', W', maps/T)


class _Subsample(nn.Module):
    """A Subsample layer of the towers on this device."""

    layer: Subsample
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hs):
        shape = (len(hs), hs[0].shape[-1])  # one weight and one bias for each map
        kernel = self.param("kernel", nn.initializers.ones, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32).astype(self.dtype)
        size = self.layer.size
        kernel, bias = kernel[:, None, None, None], bias[:, None, None, None]
        return [kernel[t] * layers.average_pool(h, size, size) + bias[t] for t, h in enumerate(hs)]


def _image(images, layer, dtype):
    """The images as the first layer sees them: with its number of channels, its scale and its type."""
    images = jnp.asarray(images)
    images = images.astype(jnp.promote_types(images.dtype, dtype))  # to float64 before, to bfloat16 after scaling
    accepted = (layer.size, layer.size, layer.channels)
    if layer.channels == 1 and images.shape[1:] == (layer.size, layer.size, 3):
        images = images.mean(-1, keepdims=True)
    if images.shape[1:] != accepted:
        raise ValueError(
            f"images have shape {images.shape}; this network takes (N, {', '.join(map(str, accepted))})"
            + (" or three channels, and then uses their mean." if layer.channels == 1 else ".")
        )
    scale = jnp.asarray(layer.scale, images.dtype).reshape(1, 1, 1, -1)
    return (images if layer.scale == 1 else images * scale).astype(dtype)


def _within_a_tower(layer, h, natural):
    """The output of a layer without weights for the maps or neurons of one tower, at test time."""
    match layer:
        case ReLU():
            return layers.relu(h, natural=natural)
        case Tanh(amplitude, slope):
            return amplitude * jnp.tanh(slope * h)
        case LRN(n, k, alpha, beta, average):
            return layers.local_response_norm(h, n, k, alpha, beta, average=average, natural=natural)
        case SameMapLRN(n, k, alpha, beta):
            return layers.same_map_response_norm(h, n, k, alpha, beta, natural=natural)
        case MaxPool(size, stride, round_up):
            return layers.max_pool(h, size, stride, round_up=round_up, natural=natural)
        case AveragePool(size, stride, round_up):
            return layers.average_pool(h, size, stride, round_up=round_up)
        case Flatten():
            return h.reshape(h.shape[0], -1)  # (N, H W C)
        case Dropout(rate, rescale):
            return h if rescale else h * (1 - rate)


def _minus_distances(h, layer):
    """(N, I) -> (N, K): minus the squared distances to the codes."""
    codes = jnp.array([[1 if pixel == "#" else -1 for pixel in code] for code in layer.codes], h.dtype)  # (K, I)
    return -jnp.square(h[:, None] - codes[None]).sum(-1)


def _drop(key, index, tower, neurons, h, layer):
    """Drops units of h with one mask for each (example, tower); a device may need only a part of each mask."""
    first, width = neurons

    def mask(i):
        key_of_tower = jax.random.fold_in(jax.random.fold_in(key, i), tower)
        drawn = jax.random.bernoulli(key_of_tower, 1 - layer.rate, (*h.shape[1:-1], width))
        return lax.dynamic_slice_in_dim(drawn, first, h.shape[-1], axis=-1)

    kept = jnp.where(jax.vmap(mask)(index), h, 0)
    return kept / (1 - layer.rate) if layer.rescale else kept
