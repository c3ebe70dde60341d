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
    MaxPool,
    ReLU,
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
"""The four-layer network for CIFAR-10 of the paper's figure 1 and section 3.3.

The paper gives no details; these are the 2012 program's (its layers-18pct.cfg), without normalization.
"""

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
"""The paper's ideas in a network that trains in one or two minutes on two CPU cores.

Narrow layers need larger initial weights than N(0, 0.01^2); otherwise the signal becomes too small.
"""
