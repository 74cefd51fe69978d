"""The search by signs that cannot be, against the search by halves; and its proof."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.nets import ABSOLUTE, HAT, IDENTITY, MAXIMUM, dense, random_network
from torch import nn
from torch.func import jacrev, vmap

from lipbench.lipschitz.exact.branching import explore, regions_prove
from lipbench.lipschitz.exact.exact_matrix import ExactMatrix
from lipbench.lipschitz.exact.patterns import explore_patterns, fits, patterns_prove
from lipbench.lipschitz.exact.polyhedra import Empty
from lipbench.lipschitz.exact.region_search import _PATIENCE, lipbab_bound
from lipbench.lipschitz.exact.regions import Regions
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

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


def regions_of(model, features, norm, domain=BOX):
    network = as_neuron_blocks(as_network(model.double(), (features,)), kind=ExactMatrix)
    return Regions(network, Norm(norm), domain)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    widths=st.sampled_from([(2, 6, 2), (3, 5, 4, 2), (2, 4, 3, 3, 2), (4, 6, 5, 3)]),
    slope=st.sampled_from([0.0, 0.1, -0.5]),
    norm=st.sampled_from(NORMS),
    domain=st.sampled_from([None, BOX]),
)
@example(seed=637, widths=(3, 5, 4, 2), slope=0.0, norm=1.0, domain=BOX)  # constant on the box
def test_both_searches_find_the_same(seed, widths, slope, norm, domain):
    model = random_network(seed, widths, lambda: nn.LeakyReLU(slope))
    regions = regions_of(model, widths[0], norm, domain)
    assert fits(regions)
    explored, expected = explore_patterns(regions, 2_000), explore(regions, 2_000)
    assert explored.is_exact
    assert expected.is_exact
    assert explored.lower == pytest.approx(expected.lower, rel=1e-9)
    assert patterns_prove(regions, explored.upper, explored.empty)
    # Less is not proved, but where the network is constant, and there is nothing less.
    less = explored.lower * (1 - 1e-6)
    assert patterns_prove(regions, less, explored.empty) == (explored.lower == 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "constant"),
    [(ABSOLUTE, 1, 1.0), (HAT, 1, None), (IDENTITY, 1, 1.0), (MAXIMUM, 2, None)],
)
def test_hand_computed_networks(model, features, constant, norm):
    regions = regions_of(model, features, norm, None)
    explored = explore_patterns(regions, 500)
    assert explored.is_exact
    assert explored.lower == pytest.approx(constant or explore(regions, 500).lower, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_branches_are_followed(norm):
    torch.manual_seed(2)
    regions = regions_of(Skipping(), 2, norm)
    assert explore_patterns(regions, 500).lower == pytest.approx(
        explore(regions, 500).lower, rel=1e-9
    )


@pytest.mark.parametrize(("shift", "constant"), [(1e-3, 2), (1e-10, 2), (1e-14, 2), (0.0, 1)])
def test_a_thin_part_counts_and_a_flat_one_does_not(shift, constant):
    """relu(x + shift) - relu(-x), in which both are active between -shift and 0."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0], [-1.0]])
        model[0].bias[:] = torch.tensor([shift, 0.0])
        model[2].weight[:] = torch.tensor([[1.0, -1.0]])
    for domain in (None, BOX):
        explored = explore_patterns(regions_of(model, 1, 2.0, domain), 100)
        assert explored.is_exact
        assert explored.upper == pytest.approx(constant, rel=1e-9)


@pytest.mark.parametrize("nodes", [1, 3, 10, 40])
def test_wherever_it_is_cut_its_bound_is_proved(nodes):
    model = random_network(3, (4, 7, 5, 2), nn.ReLU)
    regions = regions_of(model, 4, 2.0)
    explored, whole = explore_patterns(regions, nodes), explore_patterns(regions, 10_000)
    assert explored.upper >= whole.lower
    assert explored.lower <= whole.lower * (1 + 1e-12)
    assert patterns_prove(regions, explored.upper, explored.empty)


def test_points_where_it_is_steep_are_taken_up():
    model = random_network(3, (4, 7, 5, 2), nn.ReLU)
    regions = regions_of(model, 4, 2.0)
    point = explore_patterns(regions, 10_000).point
    assert explore_patterns(regions, 0).lower == 0
    assert explore_patterns(regions, 0, [point]).lower == pytest.approx(
        explore_patterns(regions, 10_000).lower, rel=1e-9
    )


CONSTANT = dense(([[0], [1]], [-1, 0]), ([[100, 1]], [0]), ([[1]], [0]))
"""A neuron that is -1 wherever the input is, so that the next one is relu(relu(x))."""
DEAD = dense(([[1], [-1]], [-2, -3]), ([[1, 1], [2, 0]], [-1, 1]), ([[5, 1]], [0]))
"""Both neurons are dead on [-0.5, 1], so that nothing behind them moves."""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("model", "constant"), [(CONSTANT, 1.0), (DEAD, 0.0)])
def test_a_neuron_that_does_not_move_has_its_value_and_not_a_side(model, constant, norm):
    network = as_network(model, (1,))
    regions = Regions(as_neuron_blocks(network), Norm(norm), BOX)
    for search in (explore, explore_patterns):
        assert search(regions, 100).upper == pytest.approx(constant, rel=1e-9)
    value = lipbab_bound(network, Norm(norm), BOX, 500)
    assert value.value == pytest.approx(constant, rel=1e-9)
    assert recheck(network, value) == []


class Branches(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(2, 3) for _ in range(count))
        self.last = nn.Linear(3 * count, 2)

    def forward(self, x):
        return self.last(torch.cat([layer(x).relu() for layer in self.inner], dim=1))


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["dense", "dense", "branches"]),
    slope=st.sampled_from([0.0, 0.1, -0.5, 1.5]),
    norm=st.sampled_from(NORMS),
    domain=st.sampled_from([None, BOX]),
)
def test_no_slope_is_steeper_than_the_constant(seed, kind, slope, norm, domain):
    """Small integers as weights, many of them 0: neurons that are dead, constant, or the same."""
    torch.manual_seed(seed)
    shapes = [(2, 3, 3, 2, 2), (2, 4, 3, 1), (1, 2, 2, 2, 1), (2, 2, 2, 4)]
    widths = shapes[seed % len(shapes)] if kind == "dense" else (2,)
    if kind == "branches":
        model = Branches(2 + seed % 2)
    else:
        model = random_network(seed, widths, lambda: nn.LeakyReLU(slope))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.tensor([-2.0, -1, 0, 0, 0, 1, 2])[torch.randint(7, parameter.shape)]
            )
    model = model.double()
    network = as_network(model, (widths[0],))
    value = lipbab_bound(network, Norm(norm), domain, 1_000)
    assert recheck(network, value) == []
    points = torch.rand(2_000, widths[0], dtype=torch.float64) * 1.5 - 0.5
    points = points if domain else 4 * points
    slopes = vmap(jacrev(lambda x: model(x.unsqueeze(0)).squeeze(0)))(points)
    steepest = float(torch.linalg.matrix_norm(slopes.detach(), norm).max())
    assert steepest <= value.value * (1 + 1e-9) + 1e-12
    regions = Regions(as_neuron_blocks(network, kind=ExactMatrix), Norm(norm), domain)
    if fits(regions):
        assert patterns_prove(regions, (cut := explore_patterns(regions, 3)).upper, cut.empty)
        assert steepest <= cut.upper * (1 + 1e-9) + 1e-12


def test_what_overflows_is_not_said_to_be_flat():
    layers = ([[1e160], [1]], [-1e170, 0]), ([[1e160, 0]], [0]), ([[1e-20]], [0])
    with pytest.raises(Refused, match="too large for float64"):
        as_neuron_blocks(as_network(dense(*layers), (1,)))


def test_a_network_of_tiny_slopes_is_not_flat():
    layers = ([[1, 1], [1, -1]], [0, 0]), ([[1e-140, 1e-140]], [0])
    regions = Regions(as_neuron_blocks(as_network(dense(*layers), (2,))), Norm(2.0), (0.0, 1.0))
    assert explore_patterns(regions, 50).upper == pytest.approx(2e-140, rel=1e-6)
    assert not patterns_prove(regions, 0.0, ())


def test_no_proof_makes_a_value_that_is_no_number():
    network = as_network(MAXIMUM.double(), (2,))
    value = lipbab_bound(network, Norm(2.0), BOX, 500)
    for wrong in (math.nan, -1.0):
        assert recheck(network, replace(value, value=wrong))


def test_neurons_in_parallel_are_combined():
    torch.manual_seed(4)
    network = as_network(Branches(3).double(), (2,))
    for norm in NORMS:
        value = lipbab_bound(network, Norm(norm), BOX, 2_000)
        assert value.side == "exact"
        assert recheck(network, value) == []


def test_a_layer_of_many_inputs_is_exact():
    """Rounding of 400 columns is far below what counts as exact."""
    network = as_network(random_network(0, (400, 3, 2), nn.ReLU).double(), (400,))
    assert lipbab_bound(network, Norm(2.0), (0.0, 1.0), 500).side == "exact"


def test_borders_that_sum_weights_are_not_read_exactly():
    """1·x + 1e-20·x - 1·x in one weight: the sum that floats make of it is 0."""
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate", bias=False).double()
    with torch.no_grad():
        layer.weight[:] = torch.tensor([1.0, 1e-20, -1.0])
    network = as_network(nn.Sequential(layer, nn.ReLU()), (1, 1))
    with pytest.raises(Refused, match="rounding"):
        lipbab_bound(network, Norm(2.0), None, 10)
    layer.padding_mode = "zeros"
    lipbab_bound(as_network(nn.Sequential(layer, nn.ReLU()), (1, 1)), Norm(2.0), None, 10)


def flipped(path, proof):
    (neuron, right), *rest = path
    return ((neuron, not right), *rest), proof


def shortened(path, proof):
    return path, Empty(proof.support[:-1], proof.weights[:-1])


def elsewhere(path, proof):
    return path, Empty((*proof.support[:-1], 10**6), proof.weights)


def negated(path, proof):
    return path, replace(proof, weights=tuple(-w for w in proof.weights))


def unknown(path, proof):
    return ((99, True), *path[1:]), proof


def twice(path, proof):
    # The sides of one neuron exclude each other, whatever it is.
    (neuron, right), *_ = path
    faces = 2 * 4
    return ((neuron, right), (neuron, not right)), Empty((faces, faces + 1), (1.0, 1.0))


def below(path, proof):
    return ((-1, True),), proof


def without_number(path, proof):
    return path, replace(proof, weights=(math.nan, *proof.weights[1:]))


def infinite(path, proof):
    return path, replace(proof, weights=(math.inf, *proof.weights[1:]))


def longer(path, proof):
    return path, replace(proof, weights=(*proof.weights, 1.0))


SPOILT = [
    flipped,
    shortened,
    elsewhere,
    negated,
    unknown,
    twice,
    below,
    without_number,
    infinite,
    longer,
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_signs_that_are_not_shown_to_be_impossible_are_found_out(spoil):
    regions = regions_of(random_network(3, (4, 7, 5, 2), nn.ReLU), 4, 2.0)
    explored = explore_patterns(regions, 10_000)
    first = next(number for number, (path, _) in enumerate(explored.empty) if len(path) >= 2)
    spoilt = list(explored.empty)
    spoilt[first] = spoil(*spoilt[first])
    assert patterns_prove(regions, explored.upper, explored.empty)
    assert not patterns_prove(regions, explored.upper, spoilt)


def test_a_proof_without_its_cuts_proves_less():
    regions = regions_of(random_network(3, (4, 7, 5, 2), nn.ReLU), 4, 2.0)
    explored = explore_patterns(regions, 10_000)
    inner = [conflict for conflict in explored.empty if len(conflict[0]) > 7]
    assert inner
    assert not patterns_prove(
        regions, explored.upper, [conflict for conflict in explored.empty if conflict not in inner]
    )


def test_what_the_first_search_does_not_end_the_other_one_does():
    network = as_network(random_network(0, (10, 15, 10, 3), nn.ReLU).double(), (10,))
    regions = Regions(as_neuron_blocks(network), Norm(math.inf), (0.0, 1.0))
    assert not explore(regions, _PATIENCE).is_exact
    value = lipbab_bound(network, Norm(math.inf), (0.0, 1.0), 2_000)
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
    value = lipbab_bound(network, Norm(norm), (0.0, 1.0), 20_000)
    assert value.side == "exact"
    assert recheck(network, value) == []


def test_a_network_with_too_many_signs_is_searched_by_halves():
    model = random_network(0, (3, 20, 20, 2), nn.ReLU).double()
    regions = regions_of(model, 3, 1.0)
    assert not fits(regions)
    assert not patterns_prove(regions, math.inf, ())
    value = lipbab_bound(as_network(model, (3,)), Norm(1.0), BOX, _PATIENCE + 50)
    assert len(value.proof["closed"])
    explored = explore(regions, 10)
    assert regions_prove(regions, explored.upper, explored.closed, explored.empty)
