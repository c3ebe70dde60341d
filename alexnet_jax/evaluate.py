"""Top-1 and top-5 errors over a whole split, from one view or ten (paper, sections 4.1 and 6)."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax import augment, towers
from alexnet_jax.data import batches
from alexnet_jax.model import AlexNet, param_specs


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors in % over `examples` pictures of `views` views each, and their mean cross-entropy in nats."""

    top1_error: float
    top5_error: float
    loss: float
    examples: int
    views: int


def evaluate(
    params, source, statistics, *, network, batch_size, views=1, mean_at="crop", interrupted=lambda: False
) -> Errors | None:
    """Evaluates a network on each example of a source exactly once.

    Args:
      params: tree of parameters, towers first.
      source: a split (data/sources.py).
      statistics: Statistics of the training split; its mean image is subtracted.
      network: AlexNet with a placement on real devices.
      batch_size: pictures at a time, over all devices; a multiple of the devices that share a batch.
      views, mean_at: as in predict.
      interrupted: asked before each batch; True if evaluation shall be given up, the result is then None.
    """
    image_size = statistics.mean_image.shape[0]
    total, running = collections.Counter(), []
    placement = network.placement
    rows = placement.rows_here(batch_size)
    for batch in batches.eval_batches(source, batch_size=batch_size, image_size=image_size, rows=rows):
        if interrupted():
            return None
        batch = placement.put(batch, batch_size)
        running.append(
            count_errors(params, batch, statistics.mean_image, network=network, views=views, mean_at=mean_at)
        )
        if len(running) > 1:  # fetched one batch late, so that the device never waits for it
            total.update(_numbers(running.pop(0)))
    for counts in running:
        total.update(_numbers(counts))
    examples = total["examples"]
    assert examples == len(source), f"evaluated {examples} of {len(source)} examples"
    return Errors(
        top1_error=100 * total["top1_wrong"] / examples,
        top5_error=100 * total["top5_wrong"] / examples,
        loss=total["loss"] / examples,
        examples=examples,
        views=views,
    )


@functools.partial(jax.jit, static_argnames=("network", "views", "mean_at"))
def count_errors(params, batch, mean_image, *, network: AlexNet, views: int, mean_at: augment.MeanAt = "crop"):
    """Sums over the unmasked pictures of a batch: top1_wrong, top5_wrong, loss, examples.

    Args:
      params: tree of parameters.
      batch: image (N, S, S, 3) uint8, label (N,) int32, mask (N,) bool; N as the placement spreads it.
      mean_image: (S, S, 3) float32.
      network, views, mean_at: as in evaluate.
    """

    placement = network.placement

    def on_device(params, batch, mean_image):
        probabilities = predict(
            params, batch["image"], mean_image, network=network, views=views, mean_at=mean_at
        )  # (N, K)
        labels, mask = batch["label"], batch["mask"]
        _, best = lax.top_k(probabilities, min(5, probabilities.shape[-1]))  # (N, 5)
        hit = best == labels[:, None]
        probability = jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
        losses = -jnp.log(jnp.maximum(probability, jnp.finfo(jnp.float32).tiny))  # finite where it underflows
        counts = {
            "top1_wrong": jnp.sum(mask & ~hit[:, 0]),
            "top5_wrong": jnp.sum(mask & ~hit.any(1)),
            "loss": jnp.sum(jnp.where(mask, losses, 0)),
            "examples": jnp.sum(mask),
        }
        return lax.psum(counts, placement.batch_axes)

    in_specs = (param_specs(network), placement.batch, P())
    return towers.spread(on_device, placement.mesh, in_specs, P())(params, batch, mean_image)


def predict(params, images, mean_image, *, network: AlexNet, views: int, mean_at: augment.MeanAt = "crop"):
    """Class probabilities of a batch of pictures.

    Args:
      params: tree of parameters.
      images: (N, S, S, 3), pixels in 0..255.
      mean_image: (S, S, 3) float32.
      network: AlexNet.
      views: 1, the central crop; 10, the average of the softmax outputs of ten_crop's views
        (the paper's test); or 5, of those that are not mirrored.
      mean_at: as in augment.means.

    Returns:
      (N, K) float32.
    """
    size = network.architecture[0].size
    of_image, of_crop = augment.means(mean_image, size, mean_at)
    images = images.astype(jnp.float32) - of_image  # (N, S, S, 3)

    def probabilities(crops):
        return jax.nn.softmax(network.apply({"params": params}, crops - of_crop))

    if views == 1:
        return probabilities(jax.vmap(functools.partial(augment.center_crop, size=size))(images))
    crops = jax.vmap(functools.partial(augment.ten_crop, size=size), out_axes=1)(images)  # (10, N, size, size, 3)
    # One view after the other, so that the activations need the memory of one.
    return lax.map(probabilities, crops[:views]).mean(0)


def cross_entropy(logits, labels, rubbish: float | None = None):
    """(N,) losses in nats of (N, K) logits and (N,) labels; `rubbish` as in architectures.RBF."""
    if rubbish is not None:
        logits = jnp.pad(logits, ((0, 0), (0, 1)), constant_values=-rubbish)  # (N, K + 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _numbers(counts):
    return {name: value.item() for name, value in jax.device_get(counts).items()}
