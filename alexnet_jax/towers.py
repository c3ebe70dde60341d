"""Towers on devices (paper, section 3.2): who holds what, and the only places where towers talk.

The mesh has two axes. Over "data" the batch is split, over "tower" the kernels.
Inside `jax.shard_map` a device holds a list of its own towers' activations;
`join` is the one operation that looks beyond it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, TOWER = "data", "tower"


def make_mesh(tower: int = 1, devices=None) -> Mesh:
    """A mesh ("data", "tower") over the devices (all of them by default).

    Args:
      tower: devices that share the towers of one copy of the network.
      devices: list of jax devices; its length is a multiple of `tower`.

    Raises:
      ValueError: if the devices do not divide by `tower`.
    """
    devices = jax.devices() if devices is None else devices
    if tower < 1 or len(devices) % tower:
        raise ValueError(
            f"mesh.tower is {tower}, but there are {len(devices)} devices; "
            f"accepted are the divisors of that number. Set --config.mesh.tower=1 to keep both towers on each device."
        )
    grid = np.asarray(devices).reshape(-1, tower)
    # Auto axes: with Explicit ones the types of arrays carry shardings, which Linen does not know.
    return Mesh(grid, (DATA, TOWER), axis_types=(AxisType.Auto,) * 2)


def join(hs, axis=None):
    """Concatenates the towers' arrays along their last axis, over all devices of `axis` if given.

    Args:
      hs: list of (..., C) arrays, one for each tower on this device.
      axis: name of the mesh axis that the towers are spread over, or None.

    Returns:
      (..., T C) array, the same on every device of the axis.
    """
    h = jnp.concatenate(hs, -1) if len(hs) > 1 else hs[0]
    return h if axis is None else lax.all_gather(h, axis, axis=h.ndim - 1, tiled=True)


def first_tower(local, axis=None):
    """The number of the first of the `local` towers that this device holds."""
    return 0 if axis is None else lax.axis_index(axis) * local


def spread(f, mesh, in_specs, out_specs):
    """`jax.shard_map` of f with both axes manual, as the towers need.

    Were "data" left to the compiler, it would gather the batch on every device.
    """
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def shardings(mesh, specs):
    """NamedShardings for a tree of PartitionSpecs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
