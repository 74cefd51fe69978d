"""The search by signs that cannot be, against the search by halves; and its proof."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import ABSOLUTE, HAT, IDENTITY, MAXIMUM, random_network
from torch import nn

from lipbench.branching import covered, explore
from lipbench.carried import Carried
from lipbench.enumerated import _PATIENCE, enumerated_bound
from lipbench.network import as_network
from lipbench.norm import Norm
from lipbench.patterns import explore_patterns, fits, proved
from lipbench.polyhedra import Empty
from lipbench.regions import Regions
from lipbench.soundness import recheck
from lipbench.unrolled import unroll

NORMS = (1.0, 2.0, math.inf)
BOX = (-0.5, 1.0)


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 3)
        self.last, self.beside = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x):
        y = self.first(x).relu()
        return self.last(self.second(y).relu()) + self.beside(y)


def regions(model, features, norm, domain=BOX):
    network = unroll(as_network(model.double(), (features,)), kind=Carried)
    return Regions(network, Norm(norm), domain)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    widths=st.sampled_from([(2, 6, 2), (3, 5, 4, 2), (2, 4, 3, 3, 2), (4, 6, 5, 3)]),
    slope=st.sampled_from([0.0, 0.1, -0.5]),
    norm=st.sampled_from(NORMS),
    domain=st.sampled_from([None, BOX]),
)
def test_both_searches_find_the_same(seed, widths, slope, norm, domain):
    model = random_network(seed, widths, lambda: nn.LeakyReLU(slope))
    own = regions(model, widths[0], norm, domain)
    assert fits(own)
    found, expected = explore_patterns(own, 2_000), explore(own, 2_000)
    assert found.is_exact
    assert expected.is_exact
    assert found.lower == pytest.approx(expected.lower, rel=1e-9)
    assert proved(own, found.upper, found.empty)
    assert not proved(own, found.lower * (1 - 1e-6), found.empty)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "constant"),
    [(ABSOLUTE, 1, 1.0), (HAT, 1, None), (IDENTITY, 1, 1.0), (MAXIMUM, 2, None)],
)
def test_hand_computed_networks(model, features, constant, norm):
    own = regions(model, features, norm, None)
    found = explore_patterns(own, 500)
    assert found.is_exact
    assert found.lower == pytest.approx(constant or explore(own, 500).lower, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_branches_are_followed(norm):
    torch.manual_seed(2)
    own = regions(Skipping(), 2, norm)
    assert explore_patterns(own, 500).lower == pytest.approx(explore(own, 500).lower, rel=1e-9)


@pytest.mark.parametrize(("shift", "constant"), [(1e-3, 2), (1e-10, 2), (1e-14, 2), (0.0, 1)])
def test_a_thin_part_counts_and_a_flat_one_does_not(shift, constant):
    """relu(x + shift) - relu(-x), in which both are active between -shift and 0."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0], [-1.0]])
        model[0].bias[:] = torch.tensor([shift, 0.0])
        model[2].weight[:] = torch.tensor([[1.0, -1.0]])
    for domain in (None, BOX):
        found = explore_patterns(regions(model, 1, 2.0, domain), 100)
        assert found.is_exact
        assert found.upper == pytest.approx(constant, rel=1e-9)


@pytest.mark.parametrize("nodes", [1, 3, 10, 40])
def test_wherever_it_is_cut_its_bound_is_proved(nodes):
    model = random_network(3, (4, 7, 5, 2), nn.ReLU)
    own = regions(model, 4, 2.0)
    found, whole = explore_patterns(own, nodes), explore_patterns(own, 10_000)
    assert found.upper >= whole.lower
    assert found.lower <= whole.lower * (1 + 1e-12)
    assert proved(own, found.upper, found.empty)


def test_points_where_it_is_steep_are_taken_up():
    model = random_network(3, (4, 7, 5, 2), nn.ReLU)
    own = regions(model, 4, 2.0)
    point = explore_patterns(own, 10_000).point
    assert explore_patterns(own, 0).lower == 0
    assert explore_patterns(own, 0, [point]).lower == pytest.approx(
        explore_patterns(own, 10_000).lower, rel=1e-9
    )


def flipped(path, proof):
    (neuron, right), *others = path
    return ((neuron, not right), *others), proof


def shortened(path, proof):
    return path, Empty(proof.support[:-1], proof.weights[:-1])


def elsewhere(path, proof):
    return path, Empty((*proof.support[:-1], 10**6), proof.weights)


def negated(path, proof):
    return path, replace(proof, weights=tuple(-w for w in proof.weights))


def unknown(path, proof):
    return ((99, True), *path[1:]), proof


@pytest.mark.parametrize("spoil", [flipped, shortened, elsewhere, negated, unknown])
def test_signs_that_are_not_shown_to_be_impossible_are_found_out(spoil):
    own = regions(random_network(3, (4, 7, 5, 2), nn.ReLU), 4, 2.0)
    found = explore_patterns(own, 10_000)
    first = next(number for number, (path, _) in enumerate(found.empty) if len(path) >= 2)
    spoilt = list(found.empty)
    spoilt[first] = spoil(*spoilt[first])
    assert proved(own, found.upper, found.empty)
    assert not proved(own, found.upper, spoilt)


def test_a_proof_without_its_cuts_proves_less():
    own = regions(random_network(3, (4, 7, 5, 2), nn.ReLU), 4, 2.0)
    found = explore_patterns(own, 10_000)
    inner = [one for one in found.empty if len(one[0]) > 7]
    assert inner
    assert not proved(own, found.upper, [one for one in found.empty if one not in inner])


def test_what_the_first_search_does_not_end_the_other_one_does():
    network = as_network(random_network(0, (10, 15, 10, 3), nn.ReLU).double(), (10,))
    own = Regions(unroll(network), Norm(math.inf), (0.0, 1.0))
    assert not explore(own, _PATIENCE).is_exact
    value = enumerated_bound(network, Norm(math.inf), (0.0, 1.0), 2_000)
    assert value.side == "exact"
    assert value.value == pytest.approx(0.659377117249, rel=1e-9)  # by halves, after 12 s
    assert not len(value.proof["closed"])
    assert recheck(network, value) == []
    assert recheck(network, replace(value, value=value.value * (1 - 1e-6)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", NORMS)
def test_random_networks_of_25_neurons_are_known_exactly(seed, norm):
    network = as_network(random_network(seed, (10, 15, 10, 3), nn.ReLU).double(), (10,))
    value = enumerated_bound(network, Norm(norm), (0.0, 1.0), 20_000)
    assert value.side == "exact"
    assert recheck(network, value) == []


def test_a_network_with_too_many_signs_is_searched_by_halves():
    model = random_network(0, (3, 20, 20, 2), nn.ReLU).double()
    own = regions(model, 3, 1.0)
    assert not fits(own)
    assert not proved(own, math.inf, ())
    value = enumerated_bound(as_network(model, (3,)), Norm(1.0), BOX, _PATIENCE + 50)
    assert len(value.proof["closed"])
    found = explore(own, 10)
    assert covered(own, found.upper, found.closed, found.empty)
