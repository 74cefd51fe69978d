"""Networks whose constants are known by hand, and random ones."""

from itertools import pairwise

import pytest
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

_BY_NAME = {
    "absolute value": (ABSOLUTE, 1),
    "identity": (IDENTITY, 1),
    "step": (STEP, 1),
    "zero": (ZERO, 1),
    "hat": (HAT, 1),
    "maximum": (MAXIMUM, 2),
    "shifted": (SHIFTED, 1),
    "sigmoid": (SIGMOID, 1),
    "gelu": (nn.GELU(), 1),
    "linear": (LINEAR, 2),
}
"""The networks and how many inputs they have."""


def by_hand(expected):
    """Return parameters of a test: a network, how many inputs it has, and what is expected of it.

    Args:
        expected: A value, or a tuple of them, by the name of the network.
    """
    return [
        pytest.param(*_BY_NAME[name], *(own if isinstance(own, tuple) else (own,)), id=name)
        for name, own in expected.items()
    ]


def random_network(seed, widths, activation):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])
