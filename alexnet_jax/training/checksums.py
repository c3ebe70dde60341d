"""Checksums of the arrays and the notes of a checkpoint."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def checksums(flat) -> dict[str, list[int]]:
    """Two numbers for each array. They do not depend on how it is split over devices, and cost one pass over it."""
    return {name: np.asarray(sums).tolist() for name, sums in _sums_of(flat).items()}


@jax.jit
def _sums_of(flat):
    return jax.tree.map(_sums, flat)


def _sums(array):
    """(2,) uint32: the sum of an array's bits as integers, and their sum weighted by odd numbers, both modulo 2^32."""
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    if not jnp.issubdtype(bits.dtype, jnp.unsignedinteger):
        bits = lax.bitcast_convert_type(bits, {1: jnp.uint8, 2: jnp.uint16}.get(bits.dtype.itemsize, jnp.uint32))
    bits, weight, stride = bits.astype(jnp.uint32), jnp.uint32(1), 2
    for axis in reversed(range(bits.ndim)):  # not reshaped, because a reshaped array would be sent to other devices
        weight += jnp.uint32(stride % 2**32) * lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        stride *= bits.shape[axis]
    return jnp.stack([bits.sum(dtype=jnp.uint32), (bits * weight).sum(dtype=jnp.uint32)])


def checksum_of_notes(notes: dict) -> list[int]:
    """One number for JSON values."""
    return [zlib.crc32(json.dumps(notes, sort_keys=True).encode())]
