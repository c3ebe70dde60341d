"""Makes cifar.npz: what PyTorch computes for cuda-convnet's networks for CIFAR-10, in float64.

For each network: the logits, the mean cross-entropy and a probe (weights.probe) of each parameter's gradient for eight
pictures; then the losses of 20 steps with those pictures, with cuda-convnet's rule and each layer's weight decay, and a
probe of the weights afterwards.

The networks are written out with torch.nn.functional and share nothing with alexnet_jax. cifar.npz was made with torch
2.13.0 and numpy 2.4.6 (it holds the versions), in a few seconds, by

    pip install -r requirements-golden.txt && python tests/golden/cifar.py
"""

from pathlib import Path

import numpy as np
import torch
import weights
from torch.nn import functional as F


def local(x, weight, bias):
    """Each place of 3 x 3 pixels has weights of its own."""
    patches = F.unfold(x, 3, padding=1)  # (N, C h w, places)
    y = torch.einsum("nkl,lok->nol", patches, weight.flatten(2)) + bias.T
    return y.unflatten(2, x.shape[2:])


def within_maps(x):
    """cuda-convnet's rnorm: 3 x 3 pixels, scale 5e-5 over the mean of squares, zeros beyond the edge."""
    return x / (1 + 5e-5 * F.avg_pool2d(x * x, 3, stride=1, padding=1)) ** 0.75


def across_maps(size):
    """cuda-convnet's cmrnorm."""
    return lambda x: F.local_response_norm(x, size, alpha=0.001, beta=0.75, k=1)


def largest(x):
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


def mean(x):
    return F.avg_pool2d(x, 3, stride=2, ceil_mode=True, count_include_pad=False)


def same(x):
    return x


def forward(network, p, x):
    """The logits of pictures (N, 3, H, W)."""

    def conv(name, x):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=2)

    def dense(name, x):
        return F.linear(x.flatten(1), p[f"{name}.weight"], p[f"{name}.bias"])

    if network.startswith("CIFAR"):
        norm = within_maps if network == "CIFAR_18PCT" else same
        x = norm(F.relu(largest(conv("conv1", x))))
        x = norm(mean(F.relu(conv("conv2", x))))
        x = mean(F.relu(conv("conv3", x)))
        return dense("fc5", F.relu(dense("fc4", x))) if network == "CIFAR_80SEC" else dense("fc4", x)
    match network:
        case "CONV_LOCAL_13PCT":
            x = largest(F.relu(conv("conv1", x)))
            x = largest(F.relu(conv("conv2", x)))
        case "CONV_LOCAL_11PCT":
            norm = across_maps(9)
            x = norm(largest(F.relu(conv("conv1", x))))
            x = largest(norm(F.relu(conv("conv2", x))))
        case "CONV_LOCAL_11PCT_FIRST":
            norm = across_maps(5)
            x = largest(norm(F.relu(conv("conv1", x))))
            x = largest(norm(F.relu(conv("conv2", x))))
    for name in ("local3", "local4"):
        x = F.relu(local(x, p[f"{name}.weight"], p[f"{name}.bias"]))
    return dense("fc5", x)


def gradients(network, w, pictures, labels):
    """Logits, loss and gradients, by name."""
    w = {name: array.detach().requires_grad_() for name, array in w.items()}
    logits = forward(network, w, pictures)
    loss = F.cross_entropy(logits, labels)
    return logits.detach(), loss.item(), dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))


def outputs(network):
    """All that cifar.npz holds of a network."""
    w = {name: torch.from_numpy(array).double() for name, array in weights.cifar_parameters(network).items()}
    pictures, labels = weights.cifar_inputs(network)
    pictures, labels = torch.from_numpy(pictures).double().permute(0, 3, 1, 2), torch.from_numpy(labels)
    logits, loss, first = gradients(network, w, pictures, labels)
    found = {"logits": logits.numpy(), "loss": np.array(loss)}
    found |= {f"gradient/{name}": weights.probe(array.numpy()) for name, array in first.items()}
    v, losses = {name: torch.zeros_like(array) for name, array in w.items()}, []
    for _ in range(20):
        _, loss, of_step = gradients(network, w, pictures, labels)
        losses.append(loss)
        for name, g in of_step.items():
            layer, kind = name.split(".")
            if kind == "bias":
                v[name] = 0.9 * v[name] - 2 * weights.CIFAR_RATE * g
            else:
                decay = weights.CIFAR_DECAYS[network].get(layer, 0.0)
                v[name] = 0.9 * v[name] - decay * weights.CIFAR_RATE * w[name] - weights.CIFAR_RATE * g
            w[name] = w[name] + v[name]
    found |= {f"after/{name}": weights.probe(array.numpy()) for name, array in w.items()}
    return found | {"losses": np.array(losses)}


def goldens():
    """All that cifar.npz holds, by NETWORK/WHAT."""
    versions = {"versions": np.array([f"torch {torch.__version__}", f"numpy {np.__version__}"])}
    return versions | {
        f"{network}/{what}": array for network in weights.CIFAR for what, array in outputs(network).items()
    }


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **goldens())
