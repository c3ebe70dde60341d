"""Small networks, as tuples of layers: LeNet-5, a CIFAR-10 network, and the network of the quickstart."""

import math

from alexnet_jax.network.architectures import (
    LRN,
    RBF,
    Architecture,
    AveragePool,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    Local,
    MaxPool,
    ReLU,
    SameMapLRN,
    Subsample,
    Tanh,
)

_LENET5_C3 = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)
_DIGITS = """
.#####.  ...##..  .#####.  .#####.  ....##.  #######  ..####.  #######  .#####.  .#####.
##...##  ..###..  ##...##  ##...##  ...###.  ##.....  .##....  ##...##  ##...##  ##...##
##...##  .####..  ##...##  .....##  ..####.  ##.....  ##.....  .....##  ##...##  ##...##
##...##  ...##..  .....##  .....##  .##.##.  ##.....  ##.....  ....##.  ##...##  ##...##
##..###  ...##..  .....##  .....##  ##..##.  ######.  ##.....  ....##.  .##.##.  ##...##
##.####  ...##..  ....##.  ..####.  ##..##.  ##...##  ######.  ...##..  ..###..  ##...##
####.##  ...##..  ...##..  .....##  #######  .....##  ##...##  ...##..  .##.##.  .######
###..##  ...##..  ..##...  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
##...##  ...##..  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
##...##  ...##..  ##.....  ##...##  ....##.  ##...##  ##...##  .##....  ##...##  .....##
##...##  ...##..  ##.....  ##...##  ....##.  ##...##  ##...##  .##....  ##...##  ....##.
.#####.  .######  #######  .#####.  ....##.  .#####.  .#####.  .##....  .#####.  .####..
"""

LENET5: Architecture = (
    Input(28, channels=1, scale=1.275 / 255),
    Conv(6, 5, padding=2, std=2.4 / 25 / math.sqrt(3)),
    Tanh(1.7159, 2 / 3),
    Subsample(2),
    Tanh(1.7159, 2 / 3),
    Conv(16, 5, std=2.4 / 94 / math.sqrt(3), table=_LENET5_C3),
    Tanh(1.7159, 2 / 3),
    Subsample(2),
    Tanh(1.7159, 2 / 3),
    Conv(120, 5, std=2.4 / 400 / math.sqrt(3)),
    Tanh(1.7159, 2 / 3),
    Flatten(),
    Dense(84, std=2.4 / 120 / math.sqrt(3)),
    Tanh(1.7159, 2 / 3),
    RBF(tuple("".join(rows) for rows in zip(*map(str.split, _DIGITS.strip().splitlines()), strict=True))),
)
"""LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document recognition".

The article's C1 S2 C3 S4 C5 F6 are conv1 subsample2 conv3 subsample4 conv5 fc6 here. The article's input of
32 x 32 pixels is a digit of 28 x 28 with two pixels of background on each side. The padding of C1 adds the same
background once the mean is subtracted. A stroke is 1.275 brighter than the background. The stds are those of the
article's uniform initialization, +-2.4/fan-in (for C3: its mean fan-in). The codes are digits of 7 x 12 pixels, as
in the article, but drawn for this project. The loss is that of the article's equation 9; the article does not give
its constant j (`rubbish`).
"""

CIFAR_FOUR_LAYER: Architecture = (
    Input(32),
    Conv(32, 5, padding=2, std=0.0001),
    MaxPool(3, 2, round_up=True),
    ReLU(),
    Conv(32, 5, padding=2),
    ReLU(),
    AveragePool(3, 2, round_up=True),
    Conv(64, 5, padding=2),
    ReLU(),
    AveragePool(3, 2, round_up=True),
    Flatten(),
    Dense(10),
)
"""The four-layer network for CIFAR-10 of the paper's figure 1, as this project reads it.

The paper gives no details; these are cuda-convnet's layers-19pct.cfg. No file of cuda-convnet has tanh or names the
figure.
"""

CIFAR_19PCT: Architecture = CIFAR_FOUR_LAYER
"""cuda-convnet's layers-19pct.cfg."""

CIFAR_18PCT: Architecture = (
    *CIFAR_FOUR_LAYER[:4],
    SameMapLRN(3, alpha=5e-5),
    *CIFAR_FOUR_LAYER[4:7],
    SameMapLRN(3, alpha=5e-5),
    *CIFAR_FOUR_LAYER[7:],
)
"""cuda-convnet's layers-18pct.cfg: CIFAR_19PCT with normalization within a map."""

CIFAR_80SEC: Architecture = (
    *CIFAR_FOUR_LAYER[:-1],
    Dense(64, std=0.1),
    ReLU(),
    Dense(10, std=0.1),
)
"""cuda-convnet's layers-80sec.cfg."""

CONV_LOCAL_13PCT: Architecture = (
    Input(24),
    Conv(64, 5, padding=2, std=0.0001),
    ReLU(),
    MaxPool(3, 2, round_up=True),
    Conv(64, 5, padding=2),
    ReLU(),
    MaxPool(3, 2, round_up=True),
    Local(32, 3, padding=1, std=0.04),
    ReLU(),
    Local(32, 3, padding=1, std=0.04),
    ReLU(),
    Flatten(),
    Dense(10),
)
"""The network of section 3.3 without normalization, 13% (footnote 3: cuda-convnet's layers-conv-local-13pct.cfg).

By the paper's way of counting it has five layers, not four.
"""

_NORM = LRN(9, k=1.0, alpha=0.001, average=True)
CONV_LOCAL_11PCT: Architecture = (
    *CONV_LOCAL_13PCT[:4],
    _NORM,
    *CONV_LOCAL_13PCT[4:6],
    _NORM,
    CONV_LOCAL_13PCT[6],
    Local(64, 3, padding=1, std=0.04),
    *CONV_LOCAL_13PCT[8:],
)
"""The network of section 3.3 with normalization, 11%: cuda-convnet's layers-conv-local-11pct.cfg.

It differs from CONV_LOCAL_13PCT also in the width of local3, and in the weight decay of its recipe.
"""

_NORM_OF_5 = LRN(5, k=1.0, alpha=0.001, average=True)
CONV_LOCAL_11PCT_FIRST: Architecture = (
    *CONV_LOCAL_13PCT[:3],
    _NORM_OF_5,
    *CONV_LOCAL_13PCT[3:6],
    _NORM_OF_5,
    *CONV_LOCAL_13PCT[6:],
)
"""The first version of CONV_LOCAL_11PCT (2012-03-13): CONV_LOCAL_13PCT with nothing but normalization added."""

CUDA_CONVNET = {
    "CIFAR_19PCT": CIFAR_19PCT,
    "CIFAR_18PCT": CIFAR_18PCT,
    "CIFAR_80SEC": CIFAR_80SEC,
    "CONV_LOCAL_13PCT": CONV_LOCAL_13PCT,
    "CONV_LOCAL_11PCT": CONV_LOCAL_11PCT,
    "CONV_LOCAL_11PCT_FIRST": CONV_LOCAL_11PCT_FIRST,
}
"""The networks for CIFAR-10 of cuda-convnet, the paper's own program, by name."""

QUICKSTART: Architecture = (
    Input(28, towers=2),
    Conv(32, 5, padding=2, std=0.02),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(64, 5, padding=2, bias=0.1, std=0.03),
    ReLU(),
    LRN(),
    MaxPool(3, 2),
    Conv(96, 3, padding=1, sees="all", std=0.04),
    ReLU(),
    Conv(96, 3, padding=1, bias=0.1, std=0.05),
    ReLU(),
    Conv(64, 3, padding=1, bias=0.1, std=0.05),
    ReLU(),
    MaxPool(3, 2),
    Flatten(),
    Dense(256, bias=0.1, std=0.06),
    ReLU(),
    Dropout(0.5),
    Dense(256, bias=0.1, std=0.06),
    ReLU(),
    Dropout(0.5),
    Dense(10, std=0.06),
)
"""The paper's ideas in a network that trains in about a minute on two CPU cores.

Narrow layers need larger initial weights than N(0, 0.01^2); otherwise the signal becomes too small.
"""
