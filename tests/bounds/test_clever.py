"""The estimate by extreme values: what it is, and what it never counts as."""

import math

import pytest
import torch
from scipy import stats
from support.nets import LINEAR, random_network
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.lower_bounds.extreme_values import right_end
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load


def clever(**options):
    return load("lipbench.bounds", "clever", Bound)(**options)


@pytest.mark.parametrize(("norm", "constant"), [(1, 7), (2, 5), (math.inf, 4)])
def test_of_a_linear_network_it_is_the_norm(norm, constant):
    value = clever(batches=3, samples=4).compute(as_network(LINEAR, (2,)), Norm(norm), None)
    assert (value.value, value.side) == (pytest.approx(constant), "estimate")


def test_the_end_of_a_distribution_is_extrapolated():
    """Of 300 draws from a reverse Weibull distribution that ends at 3, most of them far from it."""
    draws = stats.weibull_max.rvs(3, loc=3, scale=1, size=300, random_state=0)
    assert draws.max() < 2.95
    assert right_end(list(draws)) == pytest.approx(3, abs=0.15)
    assert abs(right_end(list(draws)) - 3) < 3 - draws.max()


def test_what_does_not_fit_gives_the_largest():
    two_clusters = [1.0 + 1e-4 * i for i in range(40)] + [9.0 + 1e-4 * i for i in range(40)]
    assert right_end(two_clusters) == max(two_clusters)
    assert right_end([2.0] * 5) == 2.0


@pytest.mark.parametrize("domain", [None, (-1.0, 1.0)])
def test_it_is_at_least_what_it_saw_and_near_the_truth_of_a_small_network(domain):
    model = random_network(0, (2, 8, 2), nn.ReLU)
    network = as_network(model, (2,))
    estimate = clever(samples=200).compute(network, Norm(2), domain)
    exact = load("lipbench.bounds", "lipbab", Bound)().compute(network, Norm(2), domain)
    assert estimate.value == pytest.approx(exact.value, rel=0.2)
    assert clever(samples=200).compute(network, Norm(2), domain) == estimate
    assert recheck(network, estimate) == []


def test_a_bracket_does_not_take_it_for_a_bound():
    bracket = lipbench.bracket(random_network(0, (2, 8, 2), nn.ReLU), (2,))
    assert bracket.refused["clever"] == "it is an estimate, and bounds nothing."
    assert "clever" not in [bound.name for bound in bracket.bounds]
    assert not torch.isinf(torch.tensor(bracket.upper))
