"""Makes networks.npz: what PyTorch computes for the weights and pictures of weights.py, in float64.

- SLIDES, TORCHVISION and CAFFENET, whole and 16 times narrower, without dropout: the logits, the mean
  cross-entropy, and a probe (weights.probe) of each parameter's gradient;
- 20 steps of the paper's update rule on a small network of two towers: the losses and the last weights.

The networks are written out with torch.nn and torch.nn.functional and share nothing with alexnet_jax.
networks.npz was made with torch 2.13.0 and numpy 2.4.6 (it holds the versions), in half a minute, by

    pip install -r requirements-golden.txt && python tests/golden/networks.py
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import weights
from torch import nn
from torch.nn import functional as F


def slides(width):
    """The seminar's network: one column, normalization before pooling, no ReLU behind conv5."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 96 // width, 11, stride=4),
            relu1=nn.ReLU(),
            norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
            pool1=nn.MaxPool2d(3, stride=2),
            conv2=nn.Conv2d(96 // width, 256 // width, 5, padding=2),
            relu2=nn.ReLU(),
            norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2),
            pool2=nn.MaxPool2d(3, stride=2),
            conv3=nn.Conv2d(256 // width, 384 // width, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384 // width, 384 // width, 3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(384 // width, 256 // width, 3, padding=1),
            pool5=nn.MaxPool2d(3, stride=2),
            flatten=nn.Flatten(),
            drop5=nn.Dropout(0.5),
            fc6=nn.Linear(9216 // width, 4096 // width),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096 // width, 4096 // width),
            relu7=nn.ReLU(),
            fc8=nn.Linear(4096 // width, 1000 // width),
        )
    )


def caffenet(width):
    """Caffe's reference network: groups for towers, pooling before normalization, which sees the maps of all groups."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 96 // width, 11, stride=4),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(3, stride=2),
            norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1),
            conv2=nn.Conv2d(96 // width, 256 // width, 5, padding=2, groups=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, stride=2),
            norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1),
            conv3=nn.Conv2d(256 // width, 384 // width, 3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384 // width, 384 // width, 3, padding=1, groups=2),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(384 // width, 256 // width, 3, padding=1, groups=2),
            relu5=nn.ReLU(),
            pool5=nn.MaxPool2d(3, stride=2),
            flatten=nn.Flatten(),
            fc6=nn.Linear(9216 // width, 4096 // width),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096 // width, 4096 // width),
            relu7=nn.ReLU(),
            drop7=nn.Dropout(0.5),
            fc8=nn.Linear(4096 // width, 1000 // width),
        )
    )


class Torchvision(nn.Module):
    """torchvision.models.alexnet, with its names of the layers; takes pixels less their mean."""

    def __init__(self, width):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64 // width, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64 // width, 192 // width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192 // width, 384 // width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384 // width, 256 // width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256 // width, 256 // width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(9216 // width, 4096 // width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096 // width, 4096 // width),
            nn.ReLU(),
            nn.Linear(4096 // width, 1000 // width),
        )

    def forward(self, x):
        x = x / 255 / torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype).reshape(3, 1, 1)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


NETWORKS = {"SLIDES": slides, "TORCHVISION": Torchvision, "CAFFENET": caffenet}


def outputs(network, width):
    """Logits, loss and probes of the gradients of one network."""
    arrays = {name: torch.from_numpy(array) for name, array in weights.parameters(network, width).items()}
    model = NETWORKS[network](width)
    model.load_state_dict(arrays)
    model.double().eval()
    images, labels = map(torch.from_numpy, weights.inputs(network))
    logits = model(images.double().permute(0, 3, 1, 2))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    probes = {name: weights.probe(parameter.grad.numpy()) for name, parameter in model.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()} | probes


def trained(p, x):
    """The small network of the training steps; the paper's norm sums over its window, which is PyTorch's times 5."""
    h = F.relu(F.conv2d(F.pad(x / 64, (0, 3, 0, 3)), p["conv1.weight"], p["conv1.bias"], stride=2))  # 14 pixels
    h = torch.cat([F.local_response_norm(tower, 5, alpha=0.05 * 5, beta=0.75, k=2) for tower in h.chunk(2, 1)], 1)
    h = F.max_pool2d(h, 3, stride=2)  # 6 pixels
    h = F.relu(F.conv2d(h, p["conv2.weight"], p["conv2.bias"], padding=1, groups=2))
    h = F.max_pool2d(h, 3, stride=2)  # 2 pixels
    h = F.relu(F.conv2d(h, p["conv3.weight"], p["conv3.bias"], padding=1))
    h = F.relu(F.linear(h.flatten(1), p["fc4.weight"], p["fc4.bias"]))
    return F.linear(h, p["fc5.weight"], p["fc5.bias"])


def training():
    """Losses and last weights of 20 steps of 8 pictures; the rate drops after the 10th."""
    w = {name: torch.from_numpy(array).double() for name, array in weights.parameters("TRAINED").items()}
    v = {name: torch.zeros_like(array) for name, array in w.items()}
    pictures, labels, mean = weights.training_set()
    pictures = torch.from_numpy(pictures.astype(np.float64) - mean).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels).long()
    losses = []
    for step in range(20):
        rate = weights.RATE if step < 10 else 0.1 * weights.RATE
        rows = slice(step % 4 * 8, step % 4 * 8 + 8)
        w = {name: array.requires_grad_() for name, array in w.items()}
        loss = F.cross_entropy(trained(w, pictures[rows]), labels[rows])
        gradients = torch.autograd.grad(loss, list(w.values()))
        with torch.no_grad():
            for name, g in zip(w, gradients, strict=True):
                v[name] = 0.9 * v[name] - 0.0005 * rate * w[name] - rate * g
                w[name] = w[name] + v[name]
        losses.append(loss.item())
    return {"losses": np.array(losses)} | {name: array.numpy() for name, array in w.items()}


def goldens(widths=(1, 16)):
    """All that networks.npz holds, by NETWORK/WIDTH/WHAT and TRAINED/WHAT."""
    versions = {"versions": np.array([f"torch {torch.__version__}", f"numpy {np.__version__}"])}
    networks = {
        f"{network}/{width}/{what}": array
        for network in NETWORKS
        for width in widths
        for what, array in outputs(network, width).items()
    }
    return versions | networks | {f"TRAINED/{what}": array for what, array in training().items()}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **goldens())
