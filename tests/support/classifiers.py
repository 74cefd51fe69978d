"""Linear classifiers, whose robust accuracy is known exactly, and small networks."""

import math

import torch
from torch import nn


def linear(classes, dimensions, samples, seed=0):
    """Return weights, biases, inputs in [0, 1] and the labels that the classifier gives them."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, dimensions, generator=rng)
    weight = weight * (0.2 + 2 * torch.rand(classes, 1, generator=rng))
    inputs = torch.rand(samples, dimensions, generator=rng)
    # Scores that are centred make every class win somewhere.
    bias = -(inputs @ weight.T).mean(dim=0)
    return weight, bias, inputs, (inputs @ weight.T + bias).argmax(dim=1)


def exact_radius(weight, bias, inputs, labels, norm):
    """Return min over j of (z_y - z_j) / ‖w_y - w_j‖ in the dual norm; labels are predictions."""
    weight, bias, inputs = weight.double(), bias.double(), inputs.double()
    logits = inputs @ weight.T + bias
    gaps = logits.gather(1, labels[:, None]) - logits
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
    slopes = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], ord=dual, dim=2)
    return torch.where(slopes > 0, gaps / slopes, torch.inf).min(dim=1).values


def exact_box_correct(weight, bias, inputs, labels, epsilon):
    """Return whether no point of [0, 1]^d within epsilon, l-infinity norm, is misclassified."""
    weight, bias, inputs = weight.double(), bias.double(), inputs.double()
    low = (inputs - epsilon).clamp(min=0)
    high = (inputs + epsilon).clamp(max=1)
    slopes = weight[None] - weight[labels][:, None]
    worst = (slopes * torch.where(slopes > 0, high[:, None], low[:, None])).sum(dim=2)
    return ((worst + bias[None] - bias[labels][:, None]) <= 0).all(dim=1)


def network(seed=0):
    """Return a classifier of 64 inputs of any shape, with BatchNorm and Dropout, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, 4),
        )
        # Statistics of uniform inputs: otherwise one class would win almost everywhere.
        net[2].momentum = 1.0
        net(torch.rand(500, 64))
        return net
