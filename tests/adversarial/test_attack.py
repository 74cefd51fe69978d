import math

import pytest
import torch
from support.classifiers import exact_radius, linear, network

import lipbench
from lipbench.registry import PluginError


@pytest.fixture(name="problem")
def _problem():
    net = network().eval()
    inputs = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return net, inputs, net(inputs).argmax(dim=1)


def test_default_is_pgd_in_the_l_infinity_norm_within_the_unit_box(problem):
    result = lipbench.attack(*problem)
    assert result.success.any()
    assert result.distance[result.success].max() <= 0.1
    assert result.inputs.min() >= 0
    assert result.inputs.max() <= 1


def test_epsilon_may_differ_from_sample_to_sample():
    weight, bias, inputs, labels = linear(2, 10, 40)
    radius = exact_radius(weight, bias, inputs, labels, 2)
    factor = torch.tensor([0.99, 1.01]).repeat(20)
    result = lipbench.attack(
        lambda x: x @ weight.T + bias, inputs, labels, norm=2, epsilon=radius * factor, domain=None
    )
    assert torch.equal(factor > 1, result.success)


def test_options_are_fields_of_the_attack(problem):
    few = lipbench.attack(*problem, epsilon=0.01, steps=2, starts=1)
    many = lipbench.attack(*problem, epsilon=0.01)
    assert few.queries.max() < many.queries.max()


def test_unknown_option_is_answered_with_the_closest(problem):
    with pytest.raises(ValueError, match=r"no option 'step'. Did you mean 'steps'"):
        lipbench.attack(*problem, step=3)


def test_unknown_attack_is_answered_with_the_installed_ones(problem):
    with pytest.raises(PluginError, match="pgd"):
        lipbench.attack(*problem, name="pdg")


@pytest.mark.parametrize("epsilon", [-1, math.nan, math.inf])
def test_impossible_epsilon_is_refused(problem, epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite"):
        lipbench.attack(*problem, epsilon=epsilon)
