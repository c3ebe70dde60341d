"""Caffe's bvlc_alexnet and bvlc_reference_caffenet, and networks fine-tuned from them.

Caffe takes images of 256 x 256 pixels with channels in the order BGR, cuts out the central 227 x 227, and subtracts the
mean image at the same place. (Caffe squeezes images to 256 x 256; this program cuts the longer side.)
"""

from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from alexnet_jax.convert.channels_first import to_towers
from alexnet_jax.convert.weights import Weights, classes_of
from alexnet_jax.errors import UsageError
from alexnet_jax.network import networks

# The part of caffe.proto that is read: name, number and type of each field; * means repeated. Packed floats and strings
# are encoded like bytes and are read as bytes here, so that floats do not become one Python object each, and damaged
# text is not an error.
MESSAGES = {
    "BlobShape": [("dim", 1, "int64*")],
    "BlobProto": [
        *(("num", 1, "int64"), ("channels", 2, "int64"), ("height", 3, "int64"), ("width", 4, "int64")),
        *(("data", 5, "bytes*"), ("shape", 7, "BlobShape"), ("double_data", 8, "bytes*")),
    ],
    "LayerParameter": [("name", 1, "bytes"), ("blobs", 7, "BlobProto*")],
    "V1LayerParameter": [("name", 4, "bytes"), ("blobs", 6, "BlobProto*")],
    "NetParameter": [("name", 1, "bytes"), ("layers", 2, "V1LayerParameter*"), ("layer", 100, "LayerParameter*")],
}
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
MEAN = (122.67891434, 116.66876762, 104.00698793)  # RGB, of ILSVRC-2012's mean image


def read(path: Path, mean: Path | None) -> Weights:
    """Returns the weights of a .caffemodel, in Caffe's old or new form, with the mean of a mean file.

    The widths of the network are those of the file.
    """
    net = _parse("NetParameter", path, "a .caffemodel")
    layers = [(layer.name.decode(errors="replace"), layer.blobs) for layer in (*net.layers, *net.layer)]
    names = [name for name, _ in layers]
    # A fine-tuned network gives its new last layer another name, such as fc8_flowers.
    last = next((name for name, blobs in layers if blobs and name.startswith("fc8")), "fc8")
    named = {layer: last if layer == "fc8" else layer for layer in LAYERS}
    ranks = {name: 4 if layer.startswith("conv") else 2 for layer, name in named.items()}
    arrays = {
        f"{name}.blobs[{i}]": _array(blob, 1 if i else ranks.get(name, 4), f"{path}: {name}")
        for name, blobs in layers
        for i, blob in enumerate(blobs)
    }
    if not arrays:
        raise UsageError(
            f"{path} has no layers with weights that can be read. If it is a .caffemodel of 2013, convert it with "
            "Caffe's upgrade_net_proto_binary first."
        )
    title, architecture = _network(net.name.decode(errors="replace"), names, path)
    pairs = {layer: (f"{name}.blobs[0]", f"{name}.blobs[1]") for layer, name in named.items()}
    architecture, params = to_towers(architecture, arrays, pairs, path)
    params["conv1"]["kernel"] = np.ascontiguousarray(params["conv1"]["kernel"][..., ::-1, :])  # BGR -> RGB
    with_mean = "ILSVRC-2012's mean colour, as no mean file was given" if mean is None else f"the mean {mean.name}"
    return Weights(
        architecture=architecture,
        params=params,
        mean_image=np.full((256, 256, 3), MEAN, np.float32) if mean is None else _mean_image(mean, architecture),
        pca=None,
        mean_at="crop",
        views=10,
        classes=classes_of(architecture),
        source=f"Caffe's {title}, {path.name}, with {with_mean}",
    )


def _network(title, names, path):
    """Returns the title and the architecture. In AlexNet normalization comes before pooling, in CaffeNet after it."""
    if {"norm1", "pool1"} <= set(names):
        title = "AlexNet" if names.index("norm1") < names.index("pool1") else "CaffeNet"
    known = {"AlexNet": networks.CAFFE_ALEXNET, "CaffeNet": networks.CAFFENET}
    if title not in known:
        raise UsageError(
            f"{path} does not say which network it is: it has no layers norm1 and pool1, whose order would show it, "
            f"and its name is {title!r}; accepted are {' and '.join(known)}. Save it from Caffe with all its layers."
        )
    return title, known[title]


def _mean_image(path, architecture):
    blob = _parse("BlobProto", path, "a mean file (.binaryproto)")
    mean = _array(blob, 3, str(path))  # (3, S, S)
    size = architecture[0].size
    if mean.ndim != 3 or len(mean) != 3 or mean.shape[1] != mean.shape[2] or mean.shape[1] < size:
        raise UsageError(
            f"{path} has the shape {list(mean.shape)}; accepted is [3, S, S] with S of at least {size}. Give "
            "the mean file of the training set, such as imagenet_mean.binaryproto."
        )
    return np.ascontiguousarray(mean[::-1].transpose(1, 2, 0))  # BGR (3, S, S) -> RGB (S, S, 3)


def _array(blob, rank, where):
    """Returns a blob as float32, without the leading axes of size 1 that Caffe's old form adds to have four axes."""
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    numbers = b"".join(blob.data or blob.double_data)
    kind = "<f4" if blob.data else "<f8"
    if len(numbers) != np.prod(shape, dtype=np.int64) * np.dtype(kind).itemsize or min(shape, default=1) < 0:
        raise UsageError(
            f"{where} has {len(numbers)} bytes of numbers for the shape {shape}; it is damaged. Copy or save it again."
        )
    return np.frombuffer(numbers, kind).astype(np.float32).reshape(shape)


def _parse(kind, path, what):
    try:
        return CLASSES[kind].FromString(path.read_bytes())
    except message.DecodeError as error:
        raise UsageError(f"{path} is not {what}: {error}. Copy or save it again.") from error


def _classes():
    """The message classes, in a separate descriptor pool."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe", syntax="proto2")
    types = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        entry = file.message_type.add(name=name)
        for field, number, kind in fields:
            scalar = getattr(types, f"TYPE_{kind.rstrip('*').upper()}", None)
            entry.field.add(
                name=field,
                number=number,
                label=types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL,
                type=scalar or types.TYPE_MESSAGE,
                type_name=None if scalar else f".caffe.{kind.rstrip('*')}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in MESSAGES}


CLASSES = _classes()
