"""Networks read as chains of dense layers, and refused if they are none."""

import pytest
import torch
from torch import nn

from lipbench.lipschitz.semidefinite.dense_layers import Layers, reduced
from lipbench.networks.network import as_network
from lipbench.refused import Refused


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(3, 3), "two dense layers or more"),
        (Skip(), "a chain of two dense layers"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "one layer of neurons, and nothing else"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Tanh(), nn.Linear(3, 3)),
            "one layer of neurons, and nothing else, between '0' and '3'",
        ),
        (
            nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)),
            "'0' is trained, too",
        ),
    ],
)
def test_other_networks_are_refused(module, reason):
    with pytest.raises(Refused, match=reason):
        Layers.of(as_network(module, (3,)))


def test_convolutions_are_refused():
    module = nn.Sequential(
        nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)
    )
    with pytest.raises(Refused, match="'0' is trained, too, and is no dense layer"):
        Layers.of(as_network(module, (1, 4, 4)))


def test_what_stands_around_the_layers_is_a_factor():
    """A sigmoid behind the last layer has the constant ¼."""
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Sigmoid())
    assert Layers.of(as_network(module, (2,))).factor == pytest.approx(0.25)


def test_layers_are_in_order_with_the_slopes_between_them():
    module = nn.Sequential(
        *(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Linear(3, 5)),
        *(nn.Hardtanh(0.0, 1.0), nn.Flatten(), nn.Linear(5, 2)),
    )
    layers = Layers.of(as_network(module, (1, 2, 2)))
    assert layers.names == ("1.weight", "3.weight", "6.weight")
    for weight, index in zip(layers.weights, (1, 3, 6), strict=True):
        assert torch.equal(weight, module[index].weight.double())
    ends = [(float(lo.min()), float(hi.max()), len(lo)) for lo, hi in layers.slopes]
    assert ends == [(0.0, 1.0, 3), (0.0, 1.0, 5)]
    # Each end has the smaller side of its layer.
    assert layers.size == 3 * 3 + 5 * 3 + 2 * 5


@pytest.mark.parametrize("shapes", [((2, 5), (6, 2)), ((5, 2), (2, 6)), ((3, 4), (2, 3))])
def test_the_way_back_from_smaller_matrices_gives_what_was_there(shapes):
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    cores, restore = reduced(weights)
    assert all(core.numel() <= weight.numel() for core, weight in zip(cores, weights, strict=True))
    for restored, weight in zip(restore(cores), weights, strict=True):
        torch.testing.assert_close(restored, weight)
