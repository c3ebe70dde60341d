"""What devices send each other in a step (paper, section 3.2), read from the traced step itself.

This covers everything that carries images, activations or gradients. It does not cover the one number
for each layer that the compiler sends where the optimizer needs a norm over several devices: for LARS,
and for the gradient's norm under the weird trick.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh

from alexnet_jax.network import towers
from alexnet_jax.network.architectures import Architecture
from alexnet_jax.network.model import AlexNet
from alexnet_jax.training.augment import ColorPCA
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.statistics import Statistics
from alexnet_jax.training.step import init_state, train_step

# Bytes that each of n devices sends for each byte of its operand (in a ring; fewer bytes are not possible).
_SENT = {
    "all_gather": lambda n: n - 1,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "psum": lambda n: 2 * (n - 1) / n,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of data between devices.

    where: into_conv3, ..., into_logits, followed by "backward" in the backward pass; "gradients"; "metrics";
      or "drop6", where all devices receive the indices of all examples.
    kind: all_gather, reduce_scatter, all_to_all or psum. axes: of the mesh.
    shape: of each device's operand. sent: bytes that each device sends.
    """

    where: str
    kind: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    sent: float


def collectives(architecture: Architecture, placement: towers.Placement, batch_size: int) -> list[Collective]:
    """The exchanges of one training step, in their order.

    Args:
      architecture: tuple of layers.
      placement: on a mesh of real or abstract devices.
      batch_size: images of a step, over all devices.
    """
    size = architecture[0].size
    # Only the network sends data between devices; the other fields do not matter here.
    recipe = Recipe(
        network=AlexNet(architecture, placement=placement), seed=0, mean_at="crop", crop=False, flip=False,
        min_area=1.0, group=1, pca_std=0.0, pca_scale="eigenvalue", pca_rescale=False, pca_steps=0, accumulate=1,
        learning_rate=0.01, warmup_steps=0, end=1, cooldown_steps=0, schedule=(), momentum=0.9, weight_decay=0.0,
        weight_decays=(), update_rule="decoupled", plateau=(),
    )  # fmt: skip
    state = jax.eval_shape(lambda: init_state(recipe=recipe))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, size, size, architecture[0].channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.uint32),
    }
    statistics = Statistics(jnp.zeros(batch["image"].shape[1:]), ColorPCA(jnp.eye(3), jnp.ones(3)))
    traced = jax.make_jaxpr(lambda *arguments: train_step(*arguments, recipe=recipe))(state, batch, statistics)
    return list(_read(traced.jaxpr, placement.mesh))


def _read(jaxpr, mesh, scope=""):
    """The collectives of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        here = f"{scope}/{equation.source_info.name_stack}"
        kind = equation.primitive.name
        if kind in _SENT:
            axes = equation.params.get("axes") or equation.params["axis_name"]
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            n = math.prod(mesh.shape[axis] for axis in axes)
            for operand in equation.invars:
                array = operand.aval
                sent = _SENT[kind](n) * array.size * array.dtype.itemsize
                yield Collective(_where(here), kind, axes, array.shape, sent)
        for inner in jaxprs_in_params(equation.params):
            yield from _read(inner, mesh, here)


def _where(scope):
    name = next((part for part in reversed(scope.split("/")) if part), "step")
    return f"{name} backward" if "transpose(" in scope else name


def communication(architecture: Architecture, *, kind: towers.Kind, tower: int, devices: int, batch_size: int) -> str:
    """A table, as text, of what devices send each other in one training step in float32.

    Args:
      architecture: tuple of layers.
      kind, tower, devices: as in towers.mesh_shape.
      batch_size: images of a step, over all devices.

    Raises:
      ValueError: in the same cases as mesh_shape, or if the batch does not divide evenly by the devices.
    """
    shape = towers.mesh_shape(architecture, kind, tower, devices)
    placement = towers.Placement(AbstractMesh(shape, (towers.DATA, towers.TOWER)), kind)
    placement.check_batch("batch_size", batch_size)
    exchanges = {}  # grouped by place and kind
    for c in collectives(architecture, placement, batch_size):
        exchanges.setdefault((c.where, c.kind, " and ".join(c.axes)), []).append(c)
    rows = []
    for (where, kind_, axes), cs in exchanges.items():
        what = " x ".join(map(str, cs[0].shape)) if len(cs) == 1 else f"{len(cs)} arrays"
        rows.append(f"{where:<22} {kind_:<14} {axes:<14} {what:>20} {sum(c.sent for c in cs):>14,.0f}")
    totals = {}
    for (_, _, axes), cs in exchanges.items():
        totals[axes] = totals.get(axes, 0) + devices * sum(c.sent for c in cs)
    return "\n".join(
        [
            f"{'where':<22} {'what':<14} {'over':<14} {'of each device':>20} {'bytes it sends':>14}",
            *rows,
            f"Mesh: {shape[0]} x {shape[1]} (data x tower), {kind}; batch: {batch_size}",
            *(f"Over {axes}: {total:,.0f} bytes a step, all devices together" for axes, total in totals.items()),
        ]
    )
