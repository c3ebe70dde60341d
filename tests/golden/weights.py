"""What goes into the goldens of networks.py: weights, pictures and labels, drawn by NumPy alone.

The goldens hold only what comes out, so the tests draw the same numbers again. Weights are in PyTorch's
layout: (outputs, inputs of a group, height, width) and (outputs, inputs).
"""

import math

import numpy as np

CAFFENET = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}
SLIDES = CAFFENET | {"conv2": (256, 96, 5, 5), "conv4": (384, 384, 3, 3), "conv5": (256, 384, 3, 3)}
TORCHVISION = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
    "classifier.1": (4096, 9216),
    "classifier.4": (4096, 4096),
    "classifier.6": (1000, 4096),
}
TRAINED = {
    "conv1": (8, 3, 5, 5),
    "conv2": (16, 4, 3, 3),
    "conv3": (16, 16, 3, 3),
    "fc4": (32, 64),
    "fc5": (6, 32),
}
SHAPES = {"SLIDES": SLIDES, "TORCHVISION": TORCHVISION, "CAFFENET": CAFFENET, "TRAINED": TRAINED}
# Values keep their size through the layers, so that pixels of +-128 give LRN something to normalize; logits are small.
GAINS = {"fc8": 0.02, "classifier.6": 0.1, "fc5": 0.3}
RATE = 0.01  # of the first 10 training steps; after them a tenth
SIZES = {"SLIDES": 227, "TORCHVISION": 224, "CAFFENET": 227, "TRAINED": 28}


def uniform(seed, *shape):
    """Numbers in [-1, 1) of 24 bits, exact in float32 and float64."""
    # NumPy promises that a bit generator's stream stays what it is, but not that of Generator's methods.
    bits = np.random.PCG64(seed).random_raw(math.prod(shape))
    return ((bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - 1).reshape(shape)


def parameters(network, width=1):
    """A network's weights and biases as float32 arrays, by PyTorch's names; its layers `width` times narrower."""
    arrays = {}
    for seed, (name, (outputs, inputs, *window)) in enumerate(SHAPES[network].items()):
        shape = (outputs // width, inputs if inputs == 3 else inputs // width, *window)
        gain = GAINS.get(name, 1)
        limit = np.float32(gain * math.sqrt(6 / math.prod(shape[1:])))
        arrays[f"{name}.weight"] = limit * uniform((1, seed), *shape)
        arrays[f"{name}.bias"] = np.float32(gain) * uniform((2, seed), shape[0])
    return arrays


def inputs(network):
    """Two pictures (2, H, W, 3), of pixels less their mean, and their labels."""
    return 128 * uniform(3, 2, SIZES[network], SIZES[network], 3), np.array([5, 61])


def probe(gradient):
    """The norm of an array, its inner product with random numbers, and 32 of its elements."""
    flat = np.asarray(gradient, np.float64).ravel()
    elements = flat[np.random.PCG64(4).random_raw(32) % np.uint64(flat.size)]
    return np.array([np.linalg.norm(flat), flat @ uniform(5, flat.size), *elements])


def training_set():
    """32 pictures (32, 28, 28, 3) of uint8, labels of 6 classes, and a mean image."""
    pictures = np.random.PCG64(6).random_raw(32 * 28 * 28 * 3) >> np.uint64(56)
    labels = np.random.PCG64(7).random_raw(32) % np.uint64(6)
    mean = 128 + 20 * uniform(8, 28, 28, 3)
    return pictures.astype(np.uint8).reshape(32, 28, 28, 3), labels.astype(np.int32), mean


# For cifar.py: cuda-convnet's networks.

_CIFAR_CONVS = {"conv1": (32, 3, 5, 5), "conv2": (32, 32, 5, 5), "conv3": (64, 32, 5, 5)}
_CIFAR_LOCALS = {
    "conv1": (64, 3, 5, 5),
    "conv2": (64, 64, 5, 5),
    "local3": (36, 32, 64, 3, 3),  # 36 places
    "local4": (36, 32, 32, 3, 3),
    "fc5": (10, 1152),
}
CIFAR = {
    "CIFAR_19PCT": _CIFAR_CONVS | {"fc4": (10, 1024)},
    "CIFAR_18PCT": _CIFAR_CONVS | {"fc4": (10, 1024)},
    "CIFAR_80SEC": _CIFAR_CONVS | {"fc4": (64, 1024), "fc5": (10, 64)},
    "CONV_LOCAL_13PCT": _CIFAR_LOCALS,
    "CONV_LOCAL_11PCT": _CIFAR_LOCALS | {"local3": (36, 64, 64, 3, 3), "local4": (36, 32, 64, 3, 3)},
    "CONV_LOCAL_11PCT_FIRST": _CIFAR_LOCALS,
}
_CIFAR_CONV_DECAYS = {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004}
CIFAR_DECAYS = {
    "CIFAR_19PCT": _CIFAR_CONV_DECAYS | {"fc4": 3.0},
    "CIFAR_18PCT": _CIFAR_CONV_DECAYS | {"fc4": 1.0},
    "CIFAR_80SEC": _CIFAR_CONV_DECAYS | {"fc4": 0.03, "fc5": 0.03},
    "CONV_LOCAL_13PCT": {"local3": 0.004, "local4": 0.004, "fc5": 0.004},
    "CONV_LOCAL_11PCT": {"local3": 0.004, "local4": 0.004, "fc5": 0.01},
    "CONV_LOCAL_11PCT_FIRST": {"local3": 0.004, "local4": 0.004, "fc5": 0.004},
}
CIFAR_RATE = 0.001
CIFAR_GAINS = {"conv1": 0.05}  # so that pixels of +-128 become numbers of which the steps do not diverge


def cifar_parameters(network):
    """Weights and biases as float32 arrays, in PyTorch's layout; local weights are (places, outputs, inputs, h, w)."""
    arrays = {}
    for seed, (name, shape) in enumerate(CIFAR[network].items()):
        places = shape[:1] if name.startswith("local") else ()
        outputs, *inputs = shape[len(places) :]
        gain = CIFAR_GAINS.get(name, 0.3 if name == list(CIFAR[network])[-1] else 1)
        limit = np.float32(gain * math.sqrt(6 / math.prod(inputs)))
        arrays[f"{name}.weight"] = limit * uniform((1, seed), *shape)
        arrays[f"{name}.bias"] = np.float32(gain) * uniform((2, seed), *places, outputs)
    return arrays


def cifar_inputs(network):
    """Eight pictures of pixels less their mean, (8, H, W, 3) in -128..127, and their labels."""
    side = 24 if network.startswith("CONV_LOCAL") else 32
    pictures = np.round(128 * uniform(3, 8, side, side, 3))
    return np.clip(pictures, -128, 127), np.arange(8) % 10
