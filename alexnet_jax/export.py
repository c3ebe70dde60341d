"""Writes a network as one file for serving, with its weights, mean and crops. The file does not need our code.

stablehlo    one file, by jax.export, for JAX on CPUs, CUDA GPUs and TPUs; JAX promises that its versions of the next
             six months can read it
savedmodel   a folder, for TensorFlow and its servers; the network in it is one operation, XlaCallModule

Both take any number of images at a time and give class probabilities. LOADING shows how to load them.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import mlir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters.mlir import make_ir_context

from alexnet_jax.convert import Weights
from alexnet_jax.errors import UsageError
from alexnet_jax.files import local, write_whole

Format = Literal["stablehlo", "savedmodel"]
LOADING = {
    "stablehlo": "jax.export.deserialize(pathlib.Path({path!r}).read_bytes()).call(images)",
    "savedmodel": 'tf.saved_model.load({path!r}).signatures["serving_default"](images=images)["probabilities"]',
}
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # relative to the largest logarithm of a probability, so that one value is right for every network


def export(weights: Weights, path: str | Path, *, format: Format, views: int = 1) -> None:
    """Writes a network for serving, reads it back, and compares it with the network on random images.

    images (n, S, S, 3) uint8, pixels in 0..255, S is the side of the mean image -> probabilities (n, K) float32

    The comparison runs on JAX's default device, and for "savedmodel" also on TensorFlow's. Both should be CPUs, as in
    `python -m alexnet_jax export`: accelerators round float32 products differently.

    Args:
      weights: the network; it computes in float32.
      path: the file, or for "savedmodel" the folder. An earlier export there is replaced when the new one is complete.
      format: "stablehlo" or "savedmodel".
      views: as in errors.predict.

    Raises:
      UsageError: if path cannot be written, or if the written file gives other probabilities.
    """
    path = check_path(path, format)
    if format == "stablehlo":
        write_whole(path, _staged(weights, lambda images: weights.predict(images, views)).serialize())
    else:
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            _save_for_tensorflow(weights, new, views)
            if path.exists():
                path.rename(old)
            new.rename(path)
    check(weights, path, format=format, views=views)


def check_path(path: str | Path, format: Format) -> Path:
    """Returns the absolute path. Raises UsageError if an export cannot be written there."""
    path = local(path, "--output").absolute()
    if not path.parent.is_dir():
        raise UsageError(
            f"{path} cannot be written: the folder {path.parent} does not exist. Create it, or give another path."
        )
    if format == "stablehlo" and path.is_dir():
        raise UsageError(f"{path} is a folder; accepted is the path of a file. Give such a path.")
    if format == "savedmodel" and path.exists() and not (path / "saved_model.pb").exists():
        raise UsageError(f"{path} exists and is not a SavedModel; accepted is a new name, or a SavedModel to replace.")
    return path


def check(weights: Weights, path: Path, *, format: Format, views: int) -> None:
    """Raises UsageError unless the written file gives the network's probabilities; arguments as in export."""
    load = {"stablehlo": _load_in_jax, "savedmodel": _load_in_tensorflow}[format]
    loaded, rng = load(path), np.random.default_rng(0)
    for n in (1, 3):
        images = rng.integers(0, 256, (n, *weights.mean_image.shape), np.uint8)
        gives, wanted = (
            np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))  # so that it is finite for a probability of 0
            for probabilities in (loaded(images), weights.predict(images, views))
        )
        difference = np.abs(gives - wanted).max() / np.abs(wanted).max()
        if not difference <= TOLERANCE:
            raise UsageError(
                f"{path} was written, but its probabilities are wrong. In a batch of {n}, their logarithms are off "
                f"by {difference:.2g} of the largest; accepted is {TOLERANCE:g}. Do not use this file. Export again "
                "on CPUs, with the versions of JAX and TensorFlow in requirements.txt."
            )


def _staged(weights, function, *arrays):
    """Exports function(*arrays, images) for any number of images and for all platforms."""
    (n,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *weights.mean_image.shape), np.uint8)
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arrays, images)


def _save_for_tensorflow(weights, path, views):
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    def probabilities(params, mean_image, images):
        return dataclasses.replace(weights, params=params, mean_image=mean_image).predict(images, views)

    arrays = weights.params, weights.mean_image
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    exported = _staged(weights, probabilities, *like)
    with make_ir_context():
        # jax2tf makes the same operation, but its StableHLO version is only four weeks older than JAX, and
        # TensorFlow 2.21 cannot read that of JAX 0.12. Every version can read the oldest StableHLO.
        module = mlir.deserialize_portable_artifact(exported.mlir_module_serialized)
        module = mlir.serialize_portable_artifact(module, stablehlo.get_minimum_version())
    model = tf.Module()
    # Variables, because constants may not fit into a protocol buffer: its limit is 2 GB.
    model.variables_in_order = [tf.Variable(a, trainable=False) for a in jax.tree.leaves(arrays)]

    @functools.partial(tf.function, autograph=False)
    def serve(images):
        arguments = [*model.variables_in_order, images]
        (answer,) = xla.call_module(
            [arguments[i] for i in exported.module_kept_var_idx],
            version=exported.calling_convention_version,
            module=module,
            Tout=[tf.float32],
            Sout=[(None, exported.out_avals[0].shape[1])],
            platforms=[platform.upper() for platform in PLATFORMS],
        )
        return {"probabilities": answer}

    images = tf.TensorSpec((None, *weights.mean_image.shape), tf.uint8, "images")
    tf.saved_model.save(model, path, signatures=serve.get_concrete_function(images))


def _load_in_jax(path):
    return jax_export.deserialize(path.read_bytes()).call


def _load_in_tensorflow(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return lambda images: loaded.signatures["serving_default"](images=tf.constant(images))["probabilities"]
