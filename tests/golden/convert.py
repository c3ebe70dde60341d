"""Makes the files that test_convert.py reads, and what PyTorch computes for them in float64.

- torchvision.safetensors, torchvision.pth: the state dict of torchvision's alexnet, narrow, of 10 classes;
- alexnet.caffemodel, caffenet.caffemodel, and *_v1.caffemodel in Caffe's old form: Caffe's two networks, narrow,
  of 10 and 7 classes, written by classes that protoc makes of the caffe.proto below;
- convert.npz: three pictures, the bytes of a mean file (.binaryproto), and the logits of each network after its own
  preprocessing; Caffe's with the mean file and with the mean colour of ILSVRC-2012.

The networks are written out with torch.nn.functional, channels first and Caffe's in BGR, and share nothing with
alexnet_jax. The files were made with torch 2.13.0 and numpy 2.4.6 (convert.npz holds the versions) by

    pip install -r requirements-golden.txt && python tests/golden/convert.py
"""

import importlib
import io
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from grpc_tools import protoc
from torch.nn import functional as F

HERE = Path(__file__).parent
PROTO = """
syntax = "proto2";
package caffe;
message BlobShape { repeated int64 dim = 1 [packed = true]; }
message BlobProto {
  optional int32 num = 1 [default = 0];
  optional int32 channels = 2 [default = 0];
  optional int32 height = 3 [default = 0];
  optional int32 width = 4 [default = 0];
  repeated float data = 5 [packed = true];
  repeated float diff = 6 [packed = true];
  optional BlobShape shape = 7;
  repeated double double_data = 8 [packed = true];
}
message ParamSpec { optional string name = 1; optional float lr_mult = 3 [default = 1.0]; }
message LayerParameter {
  optional string name = 1;
  optional string type = 2;
  repeated string bottom = 3;
  repeated string top = 4;
  repeated ParamSpec param = 6;
  repeated BlobProto blobs = 7;
}
message V1LayerParameter {
  enum LayerType { CONVOLUTION = 4; DROPOUT = 6; INNER_PRODUCT = 14; LRN = 15; POOLING = 17; RELU = 18; }
  repeated string bottom = 2;
  repeated string top = 3;
  optional string name = 4;
  optional LayerType type = 5;
  repeated BlobProto blobs = 6;
  repeated float blobs_lr = 7;
}
message NetParameter {
  optional string name = 1;
  repeated V1LayerParameter layers = 2;
  repeated string input = 3;
  repeated LayerParameter layer = 100;
}
"""
TORCHVISION = {
    "features.0": (8, 3, 11, 11),
    "features.3": (12, 8, 5, 5),
    "features.6": (16, 12, 3, 3),
    "features.8": (16, 16, 3, 3),
    "features.10": (12, 16, 3, 3),
    "classifier.1": (32, 12 * 36),
    "classifier.4": (24, 32),
    "classifier.6": (10, 24),
}
CAFFE = {
    "conv1": (8, 3, 11, 11),
    "conv2": (12, 4, 5, 5),
    "conv3": (16, 12, 3, 3),
    "conv4": (12, 8, 3, 3),
    "conv5": (8, 6, 3, 3),
    "fc6": (16, 8 * 36),
    "fc7": (12, 16),
    "fc8": (10, 12),
}
BEGIN = {
    "AlexNet": ["relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"],
    "CaffeNet": ["relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"],
}
END = ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5", "fc6", "relu6", "drop6", "fc7", "relu7", "drop7"]
TYPES = {
    "conv": "Convolution",
    "drop": "Dropout",
    "fc": "InnerProduct",
    "norm": "LRN",
    "pool": "Pooling",
    "relu": "ReLU",
}
V1_TYPES = {"conv": 4, "drop": 6, "fc": 14, "norm": 15, "pool": 17, "relu": 18}
COLOUR = (104.00698793, 116.66876762, 122.67891434)  # BGR


def weights(shapes, seed, last, biases):
    """Kernels and biases by name, float32; values keep their size through the layers, logits are small."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        gain = last if name == list(shapes)[-1] else 1.0
        arrays[f"{name}.weight"] = rng.normal(0, gain * math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32)
        arrays[f"{name}.bias"] = rng.normal(0, biases * gain, shape[0]).astype(np.float32)
    return arrays


def pictures(blocks):
    """(N, 256, 256, 3) of (N, 8, 8, 3)."""
    return blocks.repeat(32, 1).repeat(32, 2)


def torchvision_logits(arrays, images):
    """torchvision's alexnet on RGB pictures (N, 256, 256, 3)."""
    w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    h = torch.from_numpy(images).double().permute(0, 3, 1, 2)[:, :, 16:240, 16:240] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    h = (h - mean[:, None, None]) / std[:, None, None]
    for layer, stride, padding, pool in ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False)):
        h = F.relu(F.conv2d(h, w[f"features.{layer}.weight"], w[f"features.{layer}.bias"], stride, padding))
        h = F.max_pool2d(h, 3, 2) if pool else h
    h = F.max_pool2d(F.relu(F.conv2d(h, w["features.10.weight"], w["features.10.bias"], padding=1)), 3, 2)
    h = F.adaptive_avg_pool2d(h, (6, 6)).flatten(1)
    for layer in (1, 4):
        h = F.relu(F.linear(h, w[f"classifier.{layer}.weight"], w[f"classifier.{layer}.bias"]))
    return F.linear(h, w["classifier.6.weight"], w["classifier.6.bias"]).numpy()


def caffe_logits(arrays, layers, images, mean):
    """Caffe's networks, layer by layer, on RGB pictures (N, 256, 256, 3), less a BGR mean (3, 256 or 1, 256 or 1)."""
    w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    h = torch.from_numpy(images[..., ::-1].copy()).double().permute(0, 3, 1, 2) - torch.from_numpy(mean).double()
    h = h[:, :, 14:241, 14:241]
    for name in layers:
        match name.rstrip("12345678"):
            case "conv":
                how = {"stride": 4} if name == "conv1" else {"padding": 2 if name == "conv2" else 1}
                groups = 2 if name in ("conv2", "conv4", "conv5") else 1
                h = F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], groups=groups, **how)
            case "relu":
                h = F.relu(h)
            case "norm":
                h = F.local_response_norm(h, 5, alpha=1e-4, beta=0.75, k=1.0)
            case "pool":
                h = F.max_pool2d(h, 3, 2, ceil_mode=True)
            case "fc":
                h = F.linear(h.flatten(1), w[f"{name}.weight"], w[f"{name}.bias"])
    return h.numpy()


def compiled():
    """The module that protoc makes of PROTO."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "caffe.proto").write_text(PROTO)
        assert protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", "caffe.proto"]) == 0
        sys.path.insert(0, folder)
        return importlib.import_module("caffe_pb2")


def caffemodel(pb, title, layers, arrays, old):
    """A NetParameter with all layers, in one of its two forms, as bytes."""
    net = pb.NetParameter(name=title, input=["data"])
    for name in layers:
        kind = name.rstrip("12345678")
        layer = net.layers.add(name=name, type=V1_TYPES[kind]) if old else net.layer.add(name=name, type=TYPES[kind])
        layer.bottom.append("below")
        layer.top.append(name)
        for array in (arrays[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in arrays):
            blob = layer.blobs.add(data=array.ravel().tolist())
            if old:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
            else:
                blob.shape.dim.extend(array.shape)
                layer.param.add(lr_mult=2.0)
    return net.SerializeToString()


def main():
    """Writes all files beside this script."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    images = pictures(blocks)
    # Other values at each place, and in each channel, but few of them, so that they take little room.
    mean = pictures(rng.integers(90, 140, (1, 8, 8, 3), np.uint8))[0].transpose(2, 0, 1).astype(np.float32)
    pb = compiled()
    mean_file = pb.BlobProto(num=1, channels=3, height=256, width=256, data=mean.ravel().tolist()).SerializeToString()

    arrays = weights(TORCHVISION, 1, last=1.0, biases=0.1)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    (HERE / "torchvision.safetensors").write_bytes(safetensors.torch.save(tensors))
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    (HERE / "torchvision.pth").write_bytes(buffer.getvalue())
    logits = {"torchvision": torchvision_logits(arrays, images)}

    for seed, (title, begin) in enumerate(BEGIN.items(), 2):
        layers = ["conv1", *begin, *END, "fc8"]
        classes = {"fc8": (7, 12)} if title == "CaffeNet" else {}
        arrays = weights(CAFFE | classes, seed, last=0.03, biases=4.0)
        for old in (False, True):
            path = HERE / f"{title.lower()}{'_v1' if old else ''}.caffemodel"
            path.write_bytes(caffemodel(pb, title, layers, arrays, old))
        logits[f"{title.lower()}_mean"] = caffe_logits(arrays, layers, images, mean)
        logits[f"{title.lower()}_colour"] = caffe_logits(arrays, layers, images, np.array(COLOUR).reshape(3, 1, 1))
    for name, values in logits.items():
        print(name, values.round(2), sep="\n")
    versions = np.array([f"torch {torch.__version__}", f"numpy {np.__version__}"])
    mean_bytes = np.frombuffer(mean_file, np.uint8)
    np.savez_compressed(HERE / "convert.npz", blocks=blocks, mean_file=mean_bytes, versions=versions, **logits)


if __name__ == "__main__":
    main()
