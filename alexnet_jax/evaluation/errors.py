"""Top-1 and top-5 errors (paper, sections 4.1 and 6), from one view or ten, as pure functions of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax.network import towers
from alexnet_jax.network.model import AlexNet, param_specs
from alexnet_jax.training import augment


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors in % over `examples` images of `views` views each, and their mean cross-entropy in nats."""

    top1_error: float
    top5_error: float
    loss: float
    examples: int
    views: int


@functools.partial(jax.jit, static_argnames=("network", "views", "mean_at"))
def count_errors(params, batch, mean_image, *, network: AlexNet, views: int, mean_at: augment.MeanAt = "crop"):
    """Returns sums over the images of a batch whose mask is True: top1_wrong, top5_wrong, loss in nats, examples.

    Args:
      params: tree of parameters.
      batch: image (N, S, S, 3) uint8, label (N,) int32, mask (N,) bool; the placement spreads N over devices.
      mean_image: (S, S, 3) float32.
      network, views, mean_at: as in predict.
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
        losses = -jnp.log(jnp.maximum(probability, jnp.finfo(jnp.float32).tiny))  # finite even if it is 0
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
    """Class probabilities of a batch of images.

    Args:
      params: tree of parameters.
      images: (N, S, S, 3), pixels in 0..255.
      mean_image: (S, S, 3) float32.
      network: AlexNet.
      views: 1, the central crop; 10, the average of the softmax outputs of ten_crop's views
        (the paper's test); or 5, the average of the views that are not mirrored.
      mean_at: as in augment.means.

    Returns:
      (N, K) float32.
    """
    size = network.architecture[0].size
    of_image, of_crop = augment.means(mean_image, size, mean_at)
    minus = jax.vmap(jnp.subtract, (0, None))  # subtracts one array from each image
    images = minus(images.astype(jnp.float32), of_image)  # (N, S, S, 3)

    def probabilities(crops):
        return jax.nn.softmax(network.apply({"params": params}, minus(crops, of_crop)))

    if views == 1:
        return probabilities(jax.vmap(functools.partial(augment.center_crop, size=size))(images))
    crops = jax.vmap(functools.partial(augment.ten_crop, size=size), out_axes=1)(images)  # (10, N, size, size, 3)
    # One view after the other, so that the activations need the memory of only one view.
    return lax.map(probabilities, crops[:views]).mean(0)


def views_by_name(most):
    """Returns the numbers of views to test with, by their names in result.json."""
    return {"one_view": 1} if most == 1 else {"one_view": 1, "ten_views": most}


def errors_table(title: str, errors: dict[str, Errors]) -> str:
    """A table like the paper's: one row for each number of views, top-1 and top-5 errors in %."""
    rows = {}
    for name, e in errors.items():
        label = name.replace("_", " ")
        rows[f"{label} (the five unmirrored)" if e.views == 5 else label] = e
    width = max(len(title), *map(len, rows))
    lines = [f"{title:<{width}}   top-1   top-5"]
    lines += [f"{label:<{width}}  {e.top1_error:5.1f}%  {e.top5_error:5.1f}%" for label, e in rows.items()]
    return "\n".join(lines)
