"""A trained network on all devices of this machine: the probabilities of images, and the output of any layer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import convert
from alexnet_jax.convert import Weights
from alexnet_jax.data import batches
from alexnet_jax.data.sources import Source
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import predict
from alexnet_jax.network import towers
from alexnet_jax.network.architectures import Architecture, Dropout, layer_names
from alexnet_jax.network.model import AlexNet, param_specs
from alexnet_jax.training import augment


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network with its weights on devices; the devices share each batch.

    Attributes:
      weights: the weights on the host.
      network: AlexNet with a placement on all devices; each device has the whole network.
      params, mean_image: on the devices.
      batch_size: images at a time; smaller batches are filled up to it, so that only one program is compiled.
    """

    weights: Weights
    network: AlexNet
    params: dict
    mean_image: jax.Array
    batch_size: int

    @classmethod
    def of(cls, weights: Weights, batch_size: int = 64, devices: Sequence[jax.Device] | None = None) -> "Trained":
        """Puts weights on devices, by default on all; batch_size is rounded up to a multiple of their number."""
        devices = jax.devices() if devices is None else devices
        placement = towers.place(weights.architecture, devices=devices)
        network = AlexNet(weights.architecture, placement=placement)
        return cls(
            weights=weights,
            network=network,
            params=jax.tree.map(placement.put_whole, weights.params, param_specs(network)),
            mean_image=jax.device_put(weights.mean_image, placement.sharding(P())),
            batch_size=batch_size + -batch_size % len(devices),
        )

    @classmethod
    def read(cls, path: str | Path, checkpoint: Literal["last", "best"] = "last", batch_size: int = 64) -> "Trained":
        """Reads a run's workdir, or a file of weights; arguments and errors as in convert.read."""
        return cls.of(convert.read(path, checkpoint=checkpoint), batch_size)

    @property
    def image_size(self) -> int:
        """Side S of the images in pixels."""
        return len(self.weights.mean_image)

    def probabilities(self, images: np.ndarray, views: int = 1) -> np.ndarray:
        """(n, S, S, 3) uint8 images -> (n, K) float32 class probabilities; views as in errors.predict."""
        made = self._in_batches(images, functools.partial(_probabilities, views=views))
        if not np.isfinite(made).all():
            raise UsageError(
                f"the network's answers are not finite numbers ({self.weights.source}): its weights are too large, or "
                "damaged. Give another checkpoint or file."
            )
        return made

    def features(self, images: np.ndarray, layer: str) -> np.ndarray:
        """(n, S, S, 3) uint8 images -> (n, D) float32, a layer's output for their central crops, flattened.

        Raises:
          UsageError: if the network has no such layer; see also last_hidden.
        """
        check_layer(self.weights.architecture, layer)
        return self._in_batches(images, functools.partial(_features, layer=layer))

    def over(self, source: Source, make: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Applies a function to the images of a split, each example once and in order.

        Args:
          source: the split (data/sources.py).
          make: the function, such as `self.probabilities`.

        Yields:
          The result of make, and the labels (n,) int32, for up to batch_size examples.
        """
        for batch in batches.eval_batches(source, batch_size=self.batch_size, image_size=self.image_size):
            here = batch["mask"]
            yield make(batch["image"][here]), batch["label"][here]

    def _in_batches(self, images, function):
        accepted = self.weights.mean_image.shape
        if np.ndim(images) != 4 or images.shape[1:] != accepted:
            raise UsageError(
                f"images have shape {np.shape(images)}; accepted is (n, {', '.join(map(str, accepted))}). Rescale the "
                f"shorter side to {self.image_size} pixels and cut out the centre."
            )
        made = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            filled = np.concatenate([part, np.zeros((self.batch_size - len(part), *accepted), part.dtype)])
            rows = jax.device_put(filled, self.network.placement.sharding(self.network.placement.batch))
            rows = function(self.params, rows, self.mean_image, network=self.network, mean_at=self.weights.mean_at)
            made.append(np.asarray(rows)[: len(part)])
        return np.concatenate(made)


def last_hidden(architecture: Architecture) -> str:
    """The name of the last hidden layer, whose output the paper uses to compare images (section 6.1).

    For PAPER it is relu7, with 4096 numbers. Dropout layers do not count, because at test time they only halve these.
    """
    hidden = list(zip(layer_names(architecture), architecture, strict=True))[1:-1]
    return next(name for name, layer in reversed(hidden) if not isinstance(layer, Dropout))


def check_layer(architecture: Architecture, layer: str) -> None:
    """Raises UsageError unless the network has a layer with this name."""
    names = layer_names(architecture)[1:]
    if layer not in names:
        raise UsageError(f"layer is {layer!r}; this network has {', '.join(names)}. Give one of them.")


@functools.partial(jax.jit, static_argnames=("network", "mean_at", "views"))
def _probabilities(params, images, mean_image, *, network, mean_at, views):
    def on_device(params, images, mean_image):
        return predict(params, images, mean_image, network=network, views=views, mean_at=mean_at)

    return _spread(on_device, network)(params, images, mean_image)


@functools.partial(jax.jit, static_argnames=("network", "mean_at", "layer"))
def _features(params, images, mean_image, *, network, mean_at, layer):
    size = network.architecture[0].size

    def on_device(params, images, mean_image):
        of_image, of_crop = augment.means(mean_image, size, mean_at)
        crops = jax.vmap(functools.partial(augment.center_crop, size=size))(images - of_image) - of_crop
        _, sown = network.apply({"params": params}, crops, mutable="intermediates")
        (output,) = sown["intermediates"][f"{layer}_output"]
        return output.reshape(len(output), -1).astype(np.float32)  # (n, D)

    return _spread(on_device, network)(params, images, mean_image)


def _spread(on_device, network):
    batch = network.placement.batch
    return towers.spread(on_device, network.placement.mesh, (param_specs(network), batch, P()), batch)
