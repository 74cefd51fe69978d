"""Layers that explain themselves, and the primitives of explanations."""

import math

import pytest
import torch
from torch import nn

from lipbench.bound import Bound
from lipbench.layers.explanations import Residual, Slopes
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.networks.explain import TESTED
from lipbench.networks.network import as_network, walk
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L2 = Norm(2.0)


class SLL(nn.Module):
    """A residual layer with T from the row sums of |WᵀW|, which makes it 1-Lipschitz."""

    def __init__(self, features=4, hidden=6, error=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, hidden))
        self.bias = nn.Parameter(torch.randn(hidden))
        self.error = error

    def diagonal(self):
        return (self.weight.T @ self.weight).abs().sum(dim=1)

    def forward(self, x):
        hidden = torch.relu(x @ self.weight + self.bias)
        return x - 2 * (hidden / self.diagonal()) @ self.weight.T

    def explain(self):
        return Residual(self.weight * (1 + self.error), self.diagonal(), self.bias)


class Remote(nn.Module):
    """Equal to its explanation, up to rounding, but beyond any input that is drawn."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        return x + 1e-12 * x + 1e-2 * torch.relu(x - self.edge)

    def explain(self):
        return nn.Identity()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = SLL()

    def forward(self, x):
        return torch.sin(self.inner(x))

    def explain(self):
        return nn.Sequential(self.inner, Slopes(torch.sin, -1.0, 1.0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_an_explained_layer_is_bounded_through_its_explanation():
    network = as_network(nn.Sequential(SLL(), SLL()), (4,))
    found = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    assert 1.0 <= found.value <= 1 + 1e-9
    assert found.flags == (TESTED,)


def test_explanations_may_nest():
    network = as_network(nn.Sequential(nn.Linear(3, 4), Nested()), (3,))
    inputs = torch.randn(5, 3, dtype=torch.float64)
    assert network(inputs).shape == (5, 4)
    assert [type(step).__name__ for step in network.steps] == ["Dense", "Contraction", "Slope"]


def test_an_explanation_of_another_function_is_refused():
    with pytest.raises(Refused, match=r"layer '0' \(SLL\): its explanation is another function"):
        as_network(nn.Sequential(SLL(error=1e-4)), (4,))


def test_a_difference_that_only_the_ascent_reaches_is_refused():
    """Inputs drawn at random end before 24; the ascent goes a few units further."""
    with pytest.raises(Refused, match="another function"):
        as_network(nn.Sequential(Remote(edge=24.0)), (2,))
    assert len(as_network(nn.Sequential(Remote(edge=1e6)), (2,)).steps) == 1


def test_parameters_of_explanations_may_be_stacked():
    graph = walk(nn.Sequential(SLL()), (4,))
    stacked = {"0.weight": torch.randn(3, 4, 6), "0.bias": torch.randn(3, 6)}
    x = torch.randn(2, 4)
    found = torch.func.vmap(lambda params: graph.bind(params, {})(x))(stacked)
    for row in range(3):
        layer = SLL()
        layer.load_state_dict({name[2:]: value[row] for name, value in stacked.items()})
        torch.testing.assert_close(found[row], layer(x).detach())


def test_a_residual_without_its_certificate_is_not_called_a_contraction():
    """With T = I and W = 2 the map x - 4 relu(2x) has slope -7 on the right."""
    network = as_network(Residual(torch.full((1, 1), 2.0), torch.ones(1)), (1,))
    found = constant(network.steps[0], L2)
    assert 7.0 <= found <= 9.0 + 1e-9


@pytest.mark.parametrize("norm", [Norm(1.0), Norm(math.inf)])
def test_a_residual_in_other_norms_takes_the_triangle(norm):
    network = as_network(Residual(torch.eye(2), torch.ones(2)), (2,))
    assert constant(network.steps[0], norm) == pytest.approx(3)


def test_a_residual_needs_a_positive_diagonal():
    network = as_network(Residual(torch.eye(2), -torch.ones(2)), (2,))
    with pytest.raises(Refused, match="T must be positive"):
        constant(network.steps[0], L2)


def test_claimed_slopes_are_tested_and_flagged():
    network = as_network(nn.Sequential(Slopes(torch.sin, -1.0, 1.0)), (2,))
    assert network.flags == (TESTED,)
    with pytest.raises(Refused, match=r"claims slopes in \[-0.5, 0.5\]"):
        as_network(nn.Sequential(Slopes(torch.sin, -0.5, 0.5)), (2,))


def test_slopes_need_an_interval():
    with pytest.raises(ValueError, match="lo <= hi"):
        Slopes(torch.sin, 1.0, -1.0)


@pytest.mark.parametrize(
    "function",
    [lambda x: x.softmax(-1), lambda x: x.sort().values, lambda x: x.cumsum(-1) / len(x)],
)
def test_what_mixes_entries_is_no_elementwise_function(function):
    model = nn.Sequential(nn.Linear(3, 3), Slopes(function, -100.0, 100.0))
    with pytest.raises(Refused, match=r"layer '1' \(Slopes\).*elementwise"):
        as_network(model, (3,))
