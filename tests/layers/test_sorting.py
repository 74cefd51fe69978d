"""Activations that sort."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]


def product(model, shape, norm):
    return load("lipbench.bounds", "product", Bound)().compute(as_network(model, shape), norm, None)


def test_max_min_puts_the_larger_of_each_pair_first():
    x = torch.tensor([[1.0, 2.0, 4.0, 3.0]])
    assert lipbench.MaxMin()(x).tolist() == [[2.0, 1.0, 4.0, 3.0]]


def test_group_sort_sorts_channels_downwards_at_each_place():
    x = torch.tensor([[[1.0, 6.0], [3.0, 5.0], [2.0, 4.0], [0.0, 0.0], [1.0, -1.0], [0.0, 2.0]]])
    expected = [[3.0, 6.0], [2.0, 5.0], [1.0, 4.0], [1.0, 2.0], [0.0, 0.0], [0.0, -1.0]]
    assert lipbench.GroupSort(3)(x)[0].tolist() == expected


@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
@pytest.mark.parametrize("layer", [lipbench.MaxMin(), lipbench.GroupSort(3), lipbench.GroupSort(1)])
def test_the_walker_reads_it_as_one_step(layer, shape):
    network, x = as_network(layer, shape), torch.randn(5, *shape, dtype=torch.float64)
    assert torch.equal(network(x), layer(x))
    assert [product(layer, shape, norm).value for norm in NORMS] == [1.0] * 3


@given(st.integers(0, 10_000), st.sampled_from(NORMS), st.sampled_from([2, 3, 6]))
def test_no_pair_of_inputs_is_moved_apart(seed, norm, group):
    """Also of inputs with ties, and of those that are sorted in different orders."""
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.randint(-2, 3, (2, 20, 6), generator=rng).double()
    moved = norm.length(lipbench.GroupSort(group)(u) - lipbench.GroupSort(group)(v))
    assert bool((moved <= norm.length(u - v) * (1 + 1e-15)).all())


def test_channels_that_do_not_fill_groups_are_refused():
    with pytest.raises(Refused, match="3 channels are no groups of 2"):
        as_network(nn.Sequential(nn.Linear(4, 3), lipbench.MaxMin()), (4,))
    with pytest.raises(ValueError, match="at least 1 channel"):
        lipbench.GroupSort(0)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_bracketed_between_layers(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), lipbench.MaxMin(), nn.Linear(4, 2))
    found = lipbench.bracket(model, (3,), norm)
    assert 0 < found.lower <= found.upper < math.inf
