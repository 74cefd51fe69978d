"""Certified radii and accuracies."""

import math

import pytest
import torch
from torch import nn

from lipbench.bound import Bound, Lipschitz
from lipbench.lipschitz.certified_radius import (
    certified_accuracy,
    certified_radius,
    gaps,
    radius_quantiles,
)
from lipbench.lipschitz.relaxations.rounding import enclose
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2.0)


def upper(value, norm=L2, **fields):
    return Lipschitz(**{"value": value, "side": "upper", "norm": norm, "domain": None, **fields})


@pytest.fixture(name="network")
def _network():
    # Logits (x₁, x₂): the margin of class 0 is x₁ - x₂, and L is 1 in every norm.
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    return as_network(model, (2,))


def test_gaps_are_differences_less_rounding(network):
    inputs = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]], dtype=torch.float64)
    margins = gaps(network, inputs, torch.tensor([0, 0, 1]), batch_size=2)
    assert margins[[0, 1, 2], [0, 0, 1]].tolist() == [math.inf] * 3
    margins, expected = margins.amin(dim=1), torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(margins, expected, rtol=0, atol=1e-13)
    assert bool((margins < expected).all())


@pytest.mark.parametrize(("p", "factor"), [(1.0, 1.0), (2.0, math.sqrt(2)), (math.inf, 2.0)])
def test_the_radius_divides_by_the_norms_factor(network, p, factor):
    """2^(1-1/p): exactly the distance to the decision boundary of logits (x₁, x₂)."""
    margins = torch.tensor([[math.inf, 2.0]], dtype=torch.float64)
    radius = certified_radius(margins, torch.tensor([0]), network, upper(0.5, Norm(p)))
    assert float(radius[0]) == pytest.approx(2.0 / (factor * 0.5))
    assert float(radius[0]) < 2.0 / (factor * 0.5)


def test_the_radius_is_the_distance_to_the_boundary(network):
    """From (3, 1) the boundary x₁ = x₂ is at distance √2 in l2."""
    inputs, labels = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    radius = certified_radius(gaps(network, inputs, labels), labels, network, upper(1.0))
    assert float(radius[0]) == pytest.approx(math.sqrt(2))


def test_the_nearest_boundary_need_not_be_that_of_the_runner_up():
    """The gap to class 1 is smaller, and that to class 2 closes ten times as fast."""
    model = nn.Linear(1, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0], [-10.0]]))
    network = as_network(model, (1,))
    value = load("lipbench.bounds", "product", Bound)().compute(network, L2, None)
    margins = torch.tensor([[math.inf, 1.0, 2.0]], dtype=torch.float64)
    radius = certified_radius(margins, torch.tensor([0]), network, value)
    assert float(radius[0]) == pytest.approx(0.2)


def test_a_sample_counts_only_beyond_epsilon():
    radius = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    assert [certified_accuracy(radius, e) for e in (0.0, 0.5, 1.0)] == [0.5, 0.25, 0.0]


def test_a_constant_network_is_certified_everywhere_it_is_right(network):
    margins = torch.tensor([[math.inf, gap] for gap in (1.0, 0.0, -1.0)], dtype=torch.float64)
    radius = certified_radius(margins, torch.zeros(3, dtype=torch.long), network, upper(0.0))
    assert [math.inf, 0.0, -math.inf] == radius.tolist()


def test_quantiles_are_attained_radii():
    radius = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    assert radius_quantiles(radius, [0.0, 0.5, 1.0]) == (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    "value",
    [
        upper(1.0, side="lower"),
        upper(1.0, side="estimate"),
        upper(1.0, domain=(0.0, 1.0)),
        upper(math.nan),
        upper(-1.0),
    ],
)
def test_only_a_global_upper_bound_certifies(network, value):
    margins, labels = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"certificate needs|by an upper bound"):
        certified_radius(margins, labels, network, value)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.GELU, nn.Softplus, nn.ELU])
def test_exact_outputs_lie_in_the_enclosure(activation):
    """float32 rounding of a float64 twin is enclosed when its unit roundoff is scaled up."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        activation(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.BatchNorm1d(4),
    ).eval()
    network, inputs = as_network(model, (1, 6, 6)), torch.randn(50, 1, 6, 6)
    enclosure = enclose(network, inputs.double())
    ratio = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    error = (model(inputs).detach().double() - enclosure.values).abs()
    assert bool((error <= enclosure.radius * ratio).all())
    assert float(enclosure.radius.max()) < 1e-12


def test_rounding_is_analysed_in_float64_only(network):
    with pytest.raises(ValueError, match=r"float64 inputs, got torch\.float32"):
        enclose(network, torch.zeros(1, 2))


def test_a_gap_gives_up_the_rounding_of_both_logits():
    torch.manual_seed(0)
    network = as_network(nn.Linear(500, 2), (500,))
    inputs = torch.randn(20, 500, dtype=torch.float64)
    logits = enclose(network, inputs)
    gap = logits.values[:, 0] - logits.values[:, 1]
    margin = gaps(network, inputs, torch.zeros(20, dtype=torch.long))[:, 1]
    assert bool((gap - margin >= logits.radius.sum(dim=1) * (1 - 1e-3)).all())


def test_long_sums_lie_in_the_enclosure():
    """A sum of 3,000 terms against the correctly rounded one."""
    torch.manual_seed(0)
    model = nn.Linear(3000, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1)
    inputs = torch.randn(200, 3000, dtype=torch.float64)
    enclosure = enclose(as_network(model, (3000,)), inputs)
    exact = torch.tensor([math.fsum(row) for row in inputs.tolist()], dtype=torch.float64)
    error = (enclosure.values.squeeze(1) - exact).abs()
    assert bool((error <= enclosure.radius.squeeze(1)).all())
    assert float(error.max()) > 0
