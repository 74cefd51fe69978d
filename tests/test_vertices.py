"""The largest norm over all sides of undecided neurons, against one corner after the other."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import random_network
from torch import nn

from lipbench.branching import covered, explore
from lipbench.network import as_network
from lipbench.norm import Norm
from lipbench.regions import Regions
from lipbench.unrolled import unroll
from lipbench.vertices import FirstBlock, corners_fit, largest_norm


def naive(network, slopes, p):
    # Multiplies out a chain of layers for each choice of ends.
    weights = [block.reads.parts[n].values for n, block in enumerate(network.blocks)]
    last = network.output.parts[len(weights)].values
    ends = [list(zip(lo.tolist(), hi.tolist(), strict=True)) for lo, hi in slopes]
    best = 0.0
    for corner in itertools.product(*[pair for block in ends for pair in block]):
        matrix, left = torch.eye(network.inputs, dtype=torch.float64), list(corner)
        for weight in weights:
            own, left = left[: len(weight)], left[len(weight) :]
            matrix = torch.tensor(own, dtype=torch.float64).unsqueeze(1) * (weight @ matrix)
        best = max(best, float(torch.linalg.matrix_norm(last @ matrix, p)))
    return best


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), p=st.sampled_from([1.0, math.inf]))
def test_no_corner_is_left_out(seed, p):
    rng = torch.Generator().manual_seed(seed)
    network = unroll(as_network(random_network(seed % 1000, (3, 4, 3, 2), nn.ReLU), (3,)))
    slopes = []
    for block in network.blocks:
        ends = torch.randn(2, len(block), generator=rng, dtype=torch.float64).sort(dim=0).values
        ends[1] = torch.where(torch.rand(len(block), generator=rng) < 0.3, ends[0], ends[1])
        slopes.append((ends[0], ends[1]))
    found, expected = largest_norm(network, slopes, Norm(p)), naive(network, slopes, p)
    assert expected <= found <= expected * (1 + 1e-9) + 1e-12


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.last = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = x + self.outer(self.inner(x).relu())
        return self.last(y.relu()) + y


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_branches_are_followed(seed):
    torch.manual_seed(seed)
    model = Skipping()
    one, two, three = (layer.weight.detach().double() for layer in model.children())
    network = unroll(as_network(model, (2,)))
    slopes = [(torch.zeros(len(b)).double(), torch.ones(len(b)).double()) for b in network.blocks]
    found = largest_norm(network, slopes, Norm(math.inf))
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=5):
        first, second = torch.tensor(bits[:3]).double(), torch.tensor(bits[3:]).double()
        y = torch.eye(2).double() + two @ (first.unsqueeze(1) * one)
        matrix = three @ (second.unsqueeze(1) * y) + y
        best = max(best, float(torch.linalg.matrix_norm(matrix, math.inf)))
    assert best <= found <= best * (1 + 1e-9)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), p=st.sampled_from([1.0, math.inf]))
def test_the_corners_of_a_first_block_are_known_at_once(seed, p):
    rng = torch.Generator().manual_seed(seed)
    network = unroll(as_network(random_network(seed % 1000, (3, 5, 4, 2), nn.ReLU), (3,)))
    everywhere = [(block.lo, block.hi) for block in network.blocks]
    table = FirstBlock(network, everywhere, Norm(p))
    assert table.fits
    sides = torch.randint(-1, 2, (5,), generator=rng)
    (lo, hi), *others = everywhere
    slopes = [(torch.where(sides > 0, hi, lo), torch.where(sides < 0, lo, hi)), *others]
    expected = largest_norm(network, slopes, Norm(p))
    assert table.largest(slopes) == pytest.approx(expected, rel=1e-9)


def test_a_first_block_needs_another_one_and_time():
    for widths, fits in (((3, 4, 2), False), ((10, 15, 10, 3), True), ((10, 20, 20, 3), False)):
        network = unroll(as_network(random_network(0, widths, nn.ReLU), widths[:1]))
        slopes = [(block.lo, block.hi) for block in network.blocks]
        assert FirstBlock(network, slopes, Norm(1.0)).fits == fits


@pytest.mark.parametrize("p", [1.0, math.inf])
def test_a_search_that_uses_it_ends_with_the_same_constant(p, monkeypatch):
    network = unroll(as_network(random_network(1, (4, 6, 5, 2), nn.ReLU).double(), (4,)))
    regions = Regions(network, Norm(p), (0.0, 1.0))
    monkeypatch.setattr("lipbench.branching._PATIENCE", 0)
    monkeypatch.setattr("lipbench.vertices._LARGEST", 2**6)
    one = explore(regions, 500)
    assert covered(regions, one.lower * (1 + 1e-9), one.closed, one.empty)
    assert not covered(regions, one.lower * (1 - 1e-6), one.closed, one.empty)
    monkeypatch.setattr("lipbench.vertices._MOST_PRODUCTS", 0)
    other = explore(Regions(network, Norm(p), (0.0, 1.0)), 500)
    assert one.is_exact
    assert other.is_exact
    assert one.lower == other.lower
    assert len(one.closed) <= len(other.closed)


def test_corners_need_room():
    network = unroll(as_network(random_network(0, (10, 15, 10, 3), nn.ReLU), (10,)))
    assert corners_fit(network, 13)
    assert not corners_fit(network, 14)
