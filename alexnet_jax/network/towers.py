"""Towers on devices (paper, section 3.2): what each device holds, and the only code that sends data between devices.

The mesh has two axes, "data" and "tower". Inside `jax.shard_map` a device holds a list of activations with
one array for each tower. Only the functions below `Placement` exchange data with other devices.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.network.architectures import WEIGHTED, Architecture, Conv, Dense, Local, towers_of, width

DATA, TOWER = "data", "tower"
Kind = Literal["towers", "weird_trick"]
KINDS = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Placement:
    """What each device of a mesh holds of the weights and of a batch.

      towers (the paper)             The batch is split over "data", every layer over "tower":
                                     a device has only the kernels and neurons of its own towers.
      weird_trick (Krizhevsky 2014)  The batch and the neurons of dense layers are split over all
                                     devices; each device has all kernels of the convolutions. A
                                     device convolves its own images, and then computes its own
                                     neurons for the images of all devices.

    The parameters and the results are the same for both kinds and on every mesh. If the neurons of a
    dense layer do not divide evenly by the devices, every device has the whole layer (for example
    fc8 with ten classes on eight devices).

    Attributes:
      mesh: with the axes ("data", "tower"); an AbstractMesh is enough for tracing.
      kind: "towers" or "weird_trick".
    """

    mesh: Mesh | AbstractMesh
    kind: Kind = "towers"

    @property
    def batch(self) -> P:
        """How the rows of a batch are split over the mesh."""
        return P(self.batch_axes)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes over which a batch is split, without the axes of one device."""
        axes = (DATA, TOWER) if self.kind == "weird_trick" else (DATA,)
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)

    @property
    def copies(self) -> int:
        """The number of devices that work on the same images."""
        return 1 if self.kind == "weird_trick" else self.mesh.shape[TOWER]

    def splits(self, layer: Dense, towers: int) -> bool:
        """Whether the neurons of a dense layer are split over all devices, so that each device sees the whole batch."""
        return (
            self.kind == "weird_trick"
            and isinstance(layer, Dense)
            and layer.sees == "all"
            and width(layer, towers) % self.mesh.shape[DATA] == 0
        )

    def specs(self, layer: WEIGHTED, towers: int) -> dict[str, P]:
        """How the parameters of a layer are split over the mesh: kernel (T, ..., O/T) and bias (T, ..., O/T)."""
        if self.kind == "towers":
            return {"kernel": P(TOWER), "bias": P(TOWER)}
        if self.splits(layer, towers):
            return {"kernel": P(TOWER, None, DATA), "bias": P(TOWER, DATA)}
        return {"kernel": P(), "bias": P()}

    def local_shape(self, layer: Conv | Local | Dense, towers: int) -> tuple[int, int]:
        """The number of a layer's towers on a device, and the number of outputs of each there."""
        data, tower = self.mesh.shape[DATA], self.mesh.shape[TOWER]
        outputs = width(layer, towers)
        if self.splits(layer, towers):
            return towers // tower, outputs // data
        return towers // self.copies, outputs

    def join(self, hs, before: bool, after: bool):
        """The outputs of a layer from all towers, as the next layer on this device needs them.

        Args:
          hs: list of (N, ..., C) arrays, one for each tower on this device.
          before, after: whether this layer and the next one are split (see `splits`).
        """
        match before, after:
            case False, False:
                return concatenate(hs) if self.copies == 1 else gather_towers(concatenate(hs))
            case False, True:
                return gather_rows(concatenate(hs))
            case True, True:
                return gather_neurons(hs)
            case True, False:
                return scatter_rows(hs)

    def own(self, joined, local: int):
        """This device's part of an array that holds all towers: a list of `local` arrays (N, ..., C/T)."""
        width = joined.shape[-1] // (self.copies * local)
        first = lax.axis_index(TOWER) * local if self.copies > 1 else 0
        return [lax.dynamic_slice_in_dim(joined, (first + t) * width, width, axis=-1) for t in range(local)]

    def neurons(self, hs, split: bool):
        """Which neurons hs holds: its first tower's number, its first neuron in a tower, and the neurons in a tower."""
        here = hs[0].shape[-1]
        if split:
            return lax.axis_index(TOWER) * len(hs), lax.axis_index(DATA) * here, self.mesh.shape[DATA] * here
        return (lax.axis_index(TOWER) * len(hs) if self.copies > 1 else 0), 0, here

    def sharding(self, spec: P) -> NamedSharding:
        """The NamedSharding of a spec on this mesh."""
        return NamedSharding(self.mesh, spec)

    def check_batch(self, name: str, batch_size: int, parts: int = 1) -> None:
        """Raises ValueError unless a batch divides evenly by its devices, and each device's rows by parts."""
        shards = parts * math.prod(self.mesh.shape[axis] for axis in self.batch_axes)
        if batch_size % shards:
            share = f"the {shards // parts} devices that share a batch"
            raise ValueError(
                f"{name} is {batch_size}; accepted are multiples of {shards}, "
                + (share if parts == 1 else f"{share} times the {parts} parts of accumulate")
                + f". Set --{name}={-(-batch_size // shards) * shards}."
            )

    def rows_here(self, batch_size: int) -> slice:
        """The rows of each global batch that the devices of this process need."""
        places = self.sharding(self.batch).addressable_devices_indices_map((batch_size,))
        starts, stops, _ = zip(*(rows.indices(batch_size) for (rows,) in places.values()), strict=True)
        return slice(min(starts), max(stops))

    def put(self, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch of batch_size images on its devices."""
        sharding = self.sharding(self.batch)
        return {
            name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
            for name, rows in batch.items()
        }

    def put_whole(self, array: np.ndarray, spec: P) -> jax.Array:
        """Splits an array over the devices as a spec says; every process has the whole array."""
        return jax.make_array_from_callback(array.shape, self.sharding(spec), lambda part: array[part])


ONE_DEVICE = Placement(AbstractMesh((1, 1), (DATA, TOWER)))
"""The placement of a network that is completely on the device where it is called."""


def mesh_shape(architecture: Architecture, kind: Kind, tower: int, devices: int) -> tuple[int, int]:
    """The sizes of "data" and "tower" for an architecture on a number of devices.

    Args:
      architecture: tuple of layers.
      kind: as in Placement.
      tower: number of devices that share the towers; 1 for weird_trick, which finds its own mesh.
      devices: number of devices.

    Raises:
      ValueError: if the towers or the devices do not divide evenly by `tower`, or it is not 1 for weird_trick.
    """
    count = towers_of(architecture)
    advice = "Set --config.mesh.tower=1 to keep all towers on each device."
    if tower < 1 or count % tower:
        raise ValueError(
            f"mesh.tower is {tower}, but the architecture has {count} tower(s); "
            f"accepted are the divisors of that number. {advice}"
        )
    if devices < 1 or devices % tower:
        raise ValueError(
            f"mesh.tower is {tower}, but there are {devices} devices; "
            f"accepted are the divisors of that number. {advice}"
        )
    if kind == "weird_trick":
        if tower != 1:
            raise ValueError(
                f"mesh.tower is {tower}, but mesh.placement=weird_trick keeps the convolutions of all towers on each "
                f"device; accepted is 1. {advice}"
            )
        tower = math.gcd(count, devices)  # the neurons of a dense layer are stored tower by tower
    return devices // tower, tower


def place(architecture: Architecture, kind: Kind = "towers", tower: int = 1, devices=None) -> Placement:
    """A placement on the given devices (default: all devices); arguments and errors as in mesh_shape."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(architecture, kind, tower, len(devices))
    # In the order of the processes: then the towers of a network are on one host where possible,
    # and each process reads consecutive rows of a batch.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    # Auto axes: with Explicit axes, array types contain shardings, which Linen does not support.
    return Placement(Mesh(np.asarray(devices).reshape(shape), (DATA, TOWER), axis_types=(AxisType.Auto,) * 2), kind)


def concatenate(hs):
    """Joins the arrays of this device's towers along the last axis: a list of (..., C) -> (..., T C)."""
    return jnp.concatenate(hs, -1) if len(hs) > 1 else hs[0]


def gather_towers(h):
    """Collects the maps or neurons of all towers, from the devices that have them: (..., C/T) -> (..., C)."""
    return _gather(h, (TOWER,), h.ndim - 1)


def gather_rows(h):
    """Collects the rows of all devices: (N/D, ...) -> (N, ...)."""
    return _gather(h, (DATA, TOWER), 0)


def gather_neurons(hs):
    """Collects the neurons of all devices: a list of (N, O/D) -> (N, O)."""
    return gather_towers(concatenate([_gather(h, (DATA,), 1) for h in hs]))


def scatter_rows(hs):
    """Exchanges this device's neurons for all rows for all neurons of its own rows: a list of (N, O/D) -> (N/D, O)."""
    return _transpose(concatenate([_transpose(h, DATA) for h in hs]), TOWER)


def _gather(h, axes, dimension):
    axes = tuple(axis for axis in axes if lax.axis_size(axis) > 1)  # the compiler keeps a gather over one device
    return lax.all_gather(h, axes, axis=dimension, tiled=True) if axes else h


def _transpose(h, axis):
    return lax.all_to_all(h, axis, split_axis=0, concat_axis=1, tiled=True) if lax.axis_size(axis) > 1 else h


def sum_gradients(gradients, specs):
    """Adds up the gradients of each parameter over the devices that have a copy of it."""

    def add(gradient, spec):
        copies = tuple(axis for axis in (DATA, TOWER) if axis not in spec and lax.axis_size(axis) > 1)
        return lax.psum(gradient, copies) if copies else gradient

    with jax.named_scope("gradients"):
        return jax.tree.map(add, gradients, specs)


def spread(f, mesh, in_specs, out_specs):
    """`jax.shard_map` of f with both mesh axes manual, as the towers need.

    If "data" were left to the compiler, it would gather the batch on every device.
    """
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
