"""Networks whose constants are known by hand, and random ones."""

from itertools import pairwise

import torch
from torch import nn


def dense(*layers, activation=nn.ReLU):
    # From (weight, bias) pairs.
    modules = []
    for weight, bias in layers:
        weight = torch.tensor(weight, dtype=torch.float64)
        layer = nn.Linear(*weight.T.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        modules += [layer, activation()]
    return nn.Sequential(*modules[:-1])


ABSOLUTE = dense(([[1], [-1]], [0, 0]), ([[1, 1]], [0]))
IDENTITY = dense(([[1], [-1]], [0, 0]), ([[1, -1]], [0]))
STEP = dense(([[1], [1]], [1, 0]), ([[1, -1]], [0]))
ZERO = dense(([[1], [1]], [0, 0]), ([[1, -1]], [0]))
HAT = dense(([[1], [1], [1]], [0, -1, -2]), ([[1, -2, 1]], [0]))
MAXIMUM = dense(([[1, -1], [0, 1], [0, -1]], [0, 0, 0]), ([[1, 1, -1]], [0]))
SHIFTED = dense(([[1], [-1]], [0.1, 0]), ([[1, -1]], [0]))
SIGMOID = nn.Sequential(*dense(([[4]], [0])), nn.Sigmoid())
LINEAR = dense(([[3, 0], [4, 0]], [0, 0]))


def random_network(seed, widths, activation):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])
