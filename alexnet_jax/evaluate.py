"""Top-1 and top-5 errors over a whole split, from one view or ten (paper, sections 4.1 and 6)."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax import augment, towers
from alexnet_jax.data import batches
from alexnet_jax.model import AlexNet


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors in % over `examples` pictures of `views` views each, and their mean cross-entropy in nats."""

    top1_error: float
    top5_error: float
    loss: float
    examples: int
    views: int


def evaluate(params, source, statistics, *, network, mesh, batch_size, views=1, interrupted=()) -> Errors | None:
    """Evaluates a network on each example of a source exactly once.

    Args:
      params: tree of parameters, towers first, spread over the mesh.
      source: a split (data/sources.py).
      statistics: Statistics of the training split; its mean image is subtracted.
      network: AlexNet with `devices` as in the mesh.
      mesh: as towers.make_mesh makes it.
      batch_size: pictures at a time, over all devices; a multiple of the mesh's data axis.
      views: as in predict.
      interrupted: list that is no longer empty when evaluation shall be given up; the result is then None.
    """
    image_size = statistics.mean_image.shape[0]
    total, running = collections.Counter(), []
    for batch in batches.eval_batches(
        source, batch_size=batch_size, image_size=image_size, rows=process_rows(batch_size)
    ):
        if interrupted:
            return None
        running.append(
            count_errors(params, put(batch, mesh), statistics.mean_image, network=network, mesh=mesh, views=views)
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


@functools.partial(jax.jit, static_argnames=("network", "mesh", "views"))
def count_errors(params, batch, mean_image, *, network: AlexNet, mesh, views: int):
    """Sums over the unmasked pictures of a batch: top1_wrong, top5_wrong, loss, examples.

    Args:
      params: tree of parameters.
      batch: image (N, S, S, 3) uint8, label (N,) int32, mask (N,) bool, spread over "data".
      mean_image: (S, S, 3) float32.
      network, mesh, views: as in evaluate.
    """

    def on_device(params, batch, mean_image):
        probabilities = predict(params, batch["image"], mean_image, network=network, views=views)  # (N, K)
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
        return lax.psum(counts, towers.DATA)

    return towers.spread(on_device, mesh, (P(towers.TOWER), P(towers.DATA), P()), P())(params, batch, mean_image)


def predict(params, images, mean_image, *, network: AlexNet, views: int):
    """Class probabilities of a batch of pictures.

    Args:
      params: tree of parameters.
      images: (N, S, S, 3), pixels in 0..255.
      mean_image: (S, S, 3) float32; each view subtracts the mean at its own place.
      network: AlexNet.
      views: 1, the central crop; 10, the average of the softmax outputs of ten_crop's views
        (the paper's test); or 5, of those that are not mirrored.

    Returns:
      (N, K) float32.
    """
    size = network.architecture[0].size
    centered = images.astype(jnp.float32) - mean_image  # (N, S, S, 3)

    def probabilities(crops):
        return jax.nn.softmax(network.apply({"params": params}, crops))

    if views == 1:
        return probabilities(jax.vmap(functools.partial(augment.center_crop, size=size))(centered))
    crops = jax.vmap(functools.partial(augment.ten_crop, size=size), out_axes=1)(centered)  # (10, N, size, size, 3)
    # One view after the other, so that the activations need the memory of one.
    return lax.map(probabilities, crops[:views]).mean(0)


def cross_entropy(logits, labels):
    """(N,) losses in nats of (N, K) logits and (N,) labels."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _numbers(counts):
    return {name: value.item() for name, value in jax.device_get(counts).items()}


def process_rows(batch_size: int) -> slice:
    """The rows of each global batch that this process reads."""
    local = batch_size // jax.process_count()
    return slice(jax.process_index() * local, (jax.process_index() + 1) * local)


def put(batch: dict[str, np.ndarray], mesh) -> dict[str, jax.Array]:
    """Sends this process's rows of a batch to its devices, split along "data"."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(towers.DATA)), batch)
