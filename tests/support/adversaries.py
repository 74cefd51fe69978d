"""Inner ascent as the papers write it, one sample at a time, and what its tests share."""

from dataclasses import dataclass
from pathlib import Path

import torch
from support.training import initial
from torch import nn

from lipbench.data.splits import split
from lipbench.dataset import Dataset
from lipbench.model import Model
from lipbench.registry import load


@dataclass(frozen=True, kw_only=True)
class Normed(Model):
    """A small network with batch normalisation."""

    def build(self, input_shape, outputs, rng):
        layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU()]
        layers.append(nn.Linear(16, outputs))
        for layer in layers[1::3]:
            nn.init.kaiming_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)


def steepest(slope, norm):
    return slope.sign() if norm == torch.inf else slope / slope.norm()


def held(point, centre, epsilon, norm):
    # The ball first, the box second.
    offset = point - centre
    if norm == torch.inf:
        offset = offset.clamp(-epsilon, epsilon)
    elif float(offset.norm()) > epsilon:
        offset = offset * (epsilon / offset.norm())
    return (centre + offset).clamp(0, 1)


def climbed(height, points, centres, epsilon, norm, steps, length):
    # `height(point, row)` is what the sample in that row climbs.
    found = []
    for row, centre in enumerate(centres):
        point = points[row]
        for _ in range(steps):
            point = point.detach().requires_grad_()
            (slope,) = torch.autograd.grad(height(point.unsqueeze(0), row), point)
            point = held(point.detach() + length * steepest(slope, norm), centre, epsilon, norm)
        found.append(point)
    return torch.stack(found)


def uniform(shape, norm, rng):
    # Points of the unit ball, with the numbers that the methods draw.
    if norm == torch.inf:
        return (2 * torch.rand(shape, generator=rng) - 1).double()
    normal = torch.randn(shape, generator=rng)
    share = torch.rand(shape[0], 1, 1, 1, generator=rng) ** (1 / 64)
    return (share * normal / normal.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).double()


def regression():
    dataset = load("lipbench.datasets", "half_max_abs", Dataset)()
    return split(dataset, dataset.read(Path()))


def close(outcome, net):
    # The last network of a run against the plain one.
    for name, value in net.named_parameters():
        found = outcome.checkpoints["last"].params[name]
        torch.testing.assert_close(found, value.detach(), rtol=1e-8, atol=1e-10)


def plain(data):
    # A network to be trained by hand, and torch's form of the optimiser.
    net = initial(data)
    return net, torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
