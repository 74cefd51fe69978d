"""Learnt splines in networks: their widths, and bounds that read them."""

import math

import pytest
import torch
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.soundness import crossings
from lipbench.method_families.learnt_splines import activation_widths, with_splines
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load


def a_network(*layers, seed=0, shape=(3,)):
    rng = torch.Generator().manual_seed(seed)
    model = with_splines(nn.Sequential(*layers), shape, torch.linspace(-2, 2, 5), shared=False)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=rng))
    return model.double()


def value(name, network, box=None):
    return load("lipbench.bounds", name, Bound)().compute(network, Norm(2), box)


@pytest.mark.parametrize("seed", range(4))
def test_lower_and_upper_bounds_of_trained_activations_do_not_cross(seed):
    model = a_network(
        nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2), seed=seed
    )
    network, box = as_network(model, (3,)), (-1.0, 1.0)
    found = [value(name, network, box) for name in ("jacobian", "local_l2", "lipsdp_neuron")]
    assert crossings([*found, value("product", network)]) == []
    assert found[0].value > 0


def test_convolutions_have_a_function_for_each_channel():
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.Sigmoid(),
        nn.Linear(4, 2),
    )
    model = a_network(*layers, shape=(1, 4, 4))
    assert [len(model[place].heights) for place in (1, 4)] == [3, 4]
    network = as_network(model, (1, 4, 4))
    assert network.steps[1].hi.shape == (3, 1, 1)
    assert crossings([value("jacobian", network, (0.0, 1.0)), value("product", network)]) == []


def test_one_function_may_serve_a_whole_layer():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model = with_splines(model, (3,), torch.linspace(-2, 2, 5), shared=True)
    assert model[1].heights.shape == (1, 5)
    assert math.isfinite(value("product", as_network(model, (3,))).value)


def test_a_layer_that_is_used_twice_has_two_widths():
    one = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 5), one, nn.Linear(5, 4), one)
    assert activation_widths(model, (3,)) == {one: (5, 4)}
    assert len(one._forward_pre_hooks) == 0
