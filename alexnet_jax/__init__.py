"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) in JAX and Flax: the public names."""

from alexnet_jax.architectures import (
    LRN,
    PAPER,
    QUICKSTART,
    SLIDES,
    Conv,
    Dense,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    ReLU,
    with_classes,
    without,
)
from alexnet_jax.augment import (
    ColorPCA,
    center_crop,
    fit_color_pca,
    pca_jitter,
    random_crop,
    random_flip,
    ten_crop,
)
from alexnet_jax.layers import convolution, local_response_norm, max_pool
from alexnet_jax.model import AlexNet
from alexnet_jax.optimizer import update_rule
from alexnet_jax.summary import summary

__all__ = [
    "LRN",
    "PAPER",
    "QUICKSTART",
    "SLIDES",
    "AlexNet",
    "ColorPCA",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "Input",
    "MaxPool",
    "ReLU",
    "center_crop",
    "convolution",
    "fit_color_pca",
    "local_response_norm",
    "max_pool",
    "pca_jitter",
    "random_crop",
    "random_flip",
    "summary",
    "ten_crop",
    "update_rule",
    "with_classes",
    "without",
]
