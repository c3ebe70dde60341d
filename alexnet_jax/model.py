"""The network (paper, section 3): one Flax module that interprets an architecture.

Towers are the first axis of every parameter: kernels have shape (T, h, w, C, O/T),
dense weights (T, I, O/T), biases (T, O/T). Activations are a list, one array a tower.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import architectures, layers, towers
from alexnet_jax.architectures import LRN, Conv, Dense, Dropout, Flatten, Input, MaxPool, ReLU


class AlexNet(nn.Module):
    """A network of layers: `AlexNet(PAPER).init(key, images)`, `.apply(variables, images)`.

    Attributes:
      architecture: tuple of layers, as in architectures.py.
      dtype: type of the activations; parameters and logits are float32.
      placement: how weights and pictures are spread over devices, for calls under towers.spread.
    """

    architecture: architectures.Architecture
    dtype: jnp.dtype = jnp.float32
    placement: towers.Placement = towers.ONE_DEVICE

    @nn.compact
    def __call__(self, images, *, train=False, index=None):
        """Computes the logits of a batch.

        Args:
          images: (N, H, W, channels), H = W = the architecture's input size; pixels in 0..255,
            float with the mean subtracted (uint8 is accepted and taken as it is). Under
            towers.spread these are the device's own pictures, and so are the logits.
          train: whether units drop out; needs `rngs={"dropout": key}`.
          index: (N,) integers that name the examples: a mask is drawn from (key, layer,
            index, tower), so that it does not depend on the number of devices. Default: 0..N-1,
            which under towers.spread would give all devices the same masks.

        Returns:
          (N, K) float32 logits. Each layer's output, joined over this device's towers, is sown
          into the collection "intermediates" as NAME_output (Linen keeps NAME for the parameters).

        Raises:
          ValueError: if the architecture is none (architectures.check) or the images do not have its size.
        """
        architectures.check(self.architecture)
        size, channels = self.architecture[0].size, self.architecture[0].channels
        if images.shape[1:] != (size, size, channels):
            raise ValueError(f"images have shape {images.shape}; this network takes (N, {size}, {size}, {channels}).")
        place, count = self.placement, architectures.towers_of(self.architecture)
        index = jnp.arange(images.shape[0]) if index is None else index

        hs = [images.astype(self.dtype)] * (count // place.copies)  # each tower sees the picture
        split = False  # whether hs are all pictures at this device's neurons (one weird trick)
        for name, layer in zip(architectures.layer_names(self.architecture), self.architecture, strict=True):
            match layer:
                case Input():
                    continue
                case Conv() | Dense():
                    local, outputs = place.local_shape(layer, count)
                    before, split = split, place.splits(layer, count)
                    if layer.sees == "all" or before:
                        with jax.named_scope(f"into_{name}"):
                            joined = place.join(hs, before, split)
                        hs = [joined] * local if layer.sees == "all" else jnp.split(joined, local, -1)
                    hs = _Weights(layer, local, outputs, self.dtype, name=name)(hs)
                case ReLU():
                    hs = [nn.relu(h) for h in hs]
                case LRN():
                    hs = [layers.local_response_norm(h, **dataclasses.asdict(layer)) for h in hs]
                case MaxPool(size, stride):
                    hs = [layers.max_pool(h, size, stride) for h in hs]
                case Flatten():
                    hs = [h.reshape(h.shape[0], -1) for h in hs]  # (N, H W C)
                case Dropout() if train:
                    key = self.make_rng("dropout")
                    tower, *neurons = place.neurons(hs, split)
                    with jax.named_scope(name):
                        examples = towers.gather_rows(index) if split else index
                    hs = [_drop(key, examples, tower + t, neurons, h, layer) for t, h in enumerate(hs)]
                case Dropout(rescale=False):
                    hs = [h * (1 - layer.rate) for h in hs]
            self.sow("intermediates", f"{name}_output", towers.concatenate(hs))
        with jax.named_scope("into_logits"):
            logits = place.join(hs, split, False)
        # The last layer of an odd number of classes was rounded up to the towers.
        return logits[:, : self.architecture[-1].units].astype(jnp.float32)


def param_specs(network: AlexNet) -> dict[str, dict[str, jax.sharding.PartitionSpec]]:
    """How each parameter of a network is spread by its placement."""
    layers_by_name = zip(architectures.layer_names(network.architecture), network.architecture, strict=True)
    count = architectures.towers_of(network.architecture)
    return {
        name: network.placement.specs(layer, count) for name, layer in layers_by_name if isinstance(layer, Conv | Dense)
    }


class _Weights(nn.Module):
    """A Conv or Dense layer of the towers on this device."""

    layer: Conv | Dense
    local: int
    outputs: int  # of one tower
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hs):
        layer = self.layer
        window = (layer.size, layer.size) if isinstance(layer, Conv) else ()
        shape = (self.local, *window, hs[0].shape[-1], self.outputs)
        kernel = self.param("kernel", nn.initializers.normal(layer.std), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.constant(layer.bias), (self.local, self.outputs)).astype(self.dtype)
        if isinstance(layer, Dense):
            return [h @ kernel[t] + bias[t] for t, h in enumerate(hs)]  # (N, units/T)
        convolve = functools.partial(layers.convolution, stride=layer.stride, padding=layer.padding)
        return [convolve(h, kernel[t]) + bias[t] for t, h in enumerate(hs)]  # (N, H', W', maps/T)


def _drop(key, index, tower, neurons, h, layer):
    """Drops units of h, one mask for each (example, tower), of which a device may need a part."""
    first, width = neurons

    def mask(i):
        key_of_tower = jax.random.fold_in(jax.random.fold_in(key, i), tower)
        drawn = jax.random.bernoulli(key_of_tower, 1 - layer.rate, (*h.shape[1:-1], width))
        return lax.dynamic_slice_in_dim(drawn, first, h.shape[-1], axis=-1)

    kept = jnp.where(jax.vmap(mask)(index), h, 0)
    return kept / (1 - layer.rate) if layer.rescale else kept
