"""Networks of all architectures that are read as blocks of neurons, and their input shapes."""

import torch
from support.nets import random_network
from torch import nn

from lipbench import GroupSort, MaxMin
from lipbench.layers.explanations import Residual
from lipbench.layers.normalise import Normalise
from lipbench.layers.sandwich import CircularSandwich, SandwichLayer


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(
        Normalise([0.5], [0.25]),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.PReLU(3),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(3, 2, 3, stride=2, padding=1, padding_mode="circular"),
        nn.SELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2, 4),
    )
    model[2].running_var.uniform_(0.5, 2)
    model[2].running_mean.normal_()
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([-0.5, 1.0, 2.0]))  # the second is no bend at all
    return model.double().eval(), (1, 8, 8)


def residual():
    torch.manual_seed(0)
    explained = Residual(torch.randn(6, 4) / 4, torch.ones(4), torch.randn(4))
    return nn.Sequential(nn.Linear(5, 6), explained, nn.Tanh(), nn.Linear(6, 2)).double(), (5,)


def sandwich():
    torch.manual_seed(0)
    layer = SandwichLayer(5, 6, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2)).double(), (5,)


def circular_sandwich():
    torch.manual_seed(0)
    layer = CircularSandwich((3, 2), (2, 3), (2, 2))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 2)).double(), (2, 2, 3)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 3, 2)
        self.sort, self.pad = MaxMin(), nn.ReflectionPad2d((1, 0, 0, 2))

    def forward(self, x):
        y = x - 0.5 * torch.relu(self.first(x)) + 1
        z = torch.cat([self.sort(y), torch.abs(x) / 3], dim=1)
        return self.second(self.pad(z)).flatten(1)


def groups():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), GroupSort(3), nn.Linear(6, 2)).double(), (4,)


CASES = {
    "branching": lambda: (Branching().double(), (2, 4, 4)),
    "groups": groups,
    "dense": lambda: (random_network(0, (5, 7, 3), nn.Sigmoid).double(), (5,)),
    "convolutional": convolutional,
    "residual": residual,
    "sandwich": sandwich,
    "circular sandwich": circular_sandwich,
    "dilated pool": lambda: (nn.MaxPool2d(2, stride=1, dilation=2), (2, 7, 8)),
    "pool of three": lambda: (nn.MaxPool1d(3, 2, padding=1), (2, 9)),
    "linear": lambda: (nn.Linear(3, 2).double(), (3,)),
}
