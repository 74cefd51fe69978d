"""Exact constants of piecewise linear networks, against what can be known of them otherwise."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from support.bounds import rechecked
from support.nets import ABSOLUTE, HAT, LINEAR, SHIFTED, by_hand, dense, random_network
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.evaluation.claims import refutations
from lipbench.lipschitz.proof_check import recheck
from lipbench.method import Claim
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
ROUNDING = 1e-9


def computed(model, features, norm=L2, domain=None, **options):
    return rechecked("lipbab", model, features, norm, domain, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("model", "features", "constant"),
    by_hand(
        {
            "absolute value": 1,
            "identity": 1,  # closed regions make it 2
            "step": 1,
            "zero": 0,  # closed regions make it 1
            "hat": 1,
            "maximum": 1,
            "shifted": 2,
        }
    ),
)
def test_a_hand_computed_network_in_every_norm(model, features, constant, norm):
    value = computed(model, features, norm)
    assert value.side == "exact"
    assert value.value == pytest.approx(constant, rel=ROUNDING)


def test_an_exact_value_proves_no_more_than_the_truth_from_below():
    """It is rounded upwards, and a claim of the very constant is not refuted."""
    value = computed(ABSOLUTE, 1)
    assert value.least < 1 < value.value
    assert refutations(Claim(norm=L2, constant=1.0), [value]) == []
    assert refutations(Claim(norm=L2, constant=1 - 1e-6), [value])
    assert lipbench.bracket(ABSOLUTE, input_shape=(1,)).lower <= 1


def test_a_linear_network_is_its_norm():
    for norm, constant in zip(NORMS, (7, 5, 4), strict=True):
        assert computed(LINEAR, 2, norm).value == pytest.approx(constant, rel=ROUNDING)


@pytest.mark.parametrize(
    ("shift", "constant"), [(1e-3, 2), (1e-8, 2), (1e-10, 2), (1e-14, 2), (0.0, 1)]
)
def test_a_region_counts_however_thin_and_not_if_it_is_flat(shift, constant):
    """relu(x + shift) - relu(-x) has slope 2 between -shift and 0."""
    model = dense(([[1], [-1]], [shift, 0]), ([[1, -1]], [0]))
    value = computed(model, 1)
    assert (value.side, value.value) == ("exact", pytest.approx(constant, rel=ROUNDING))


def test_the_domain_decides():
    """The hat is steep on [0, 2] alone, and constant elsewhere."""
    assert computed(HAT, 1, domain=(0.5, 0.75)).value == pytest.approx(1, rel=ROUNDING)
    assert computed(HAT, 1, domain=(3.0, 4.0)).value == 0
    assert computed(SHIFTED, 1, domain=(0.0, 5.0)).value == pytest.approx(1, rel=ROUNDING)


def largest_of_patterns(model, norm, inputs):
    # The naive twin: of many inputs, each with its own matrix.
    best, values, signs = 0.0, inputs, []
    for layer in model:
        values = layer(values)
        signs += [values > 0] if isinstance(layer, nn.Linear) else []
    patterns = torch.cat(signs, dim=1)
    firsts = {tuple(row): number for number, row in enumerate(patterns.tolist())}
    weights = [layer.weight.detach() for layer in model[::2]]
    unit = torch.ones((), dtype=torch.float64)
    for point in inputs[list(firsts.values())]:
        matrix, value = weights[0], model[0](point)
        for number, layer in enumerate(model[2::2], 1):
            slope = torch.where(value > 0, 1.0, model[2 * number - 1].negative_slope * unit)
            matrix = weights[number] @ (slope.unsqueeze(1) * matrix)
            value = layer(model[2 * number - 1](value))
        best = max(best, float(torch.linalg.matrix_norm(matrix, float(norm))))
    return best


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.sampled_from([(1, 5, 1), (2, 4, 2), (2, 3, 3, 2)]),
    st.sampled_from([0.0, 0.2, -1.0, 2.0]),
    st.sampled_from(NORMS),
)
def test_a_dense_grid_finds_the_same(seed, widths, slope, norm):
    """Every region of a network on a line or a plane that is not tiny is met by a grid."""
    model = random_network(seed, widths, lambda: nn.LeakyReLU(slope)).double()
    model.requires_grad_(False)
    axis = torch.linspace(-1, 1, 2001 if widths[0] == 1 else 61, dtype=torch.float64)
    inputs = torch.cartesian_prod(*[axis] * widths[0]).reshape(-1, widths[0])
    value = computed(model, widths[0], norm, (-1.0, 1.0))
    seen = largest_of_patterns(model, norm, inputs)
    assert value.side == "exact"
    assert seen <= value.value * (1 + ROUNDING)
    if widths[0] == 1:
        assert seen == pytest.approx(value.value, rel=ROUNDING)


@settings(max_examples=3)
@given(st.integers(0, 1000), st.sampled_from(NORMS))
def test_it_lies_between_all_other_bounds(seed, norm):
    model = random_network(seed, (3, 5, 4, 2), nn.ReLU)
    bracket = lipbench.bracket(model, input_shape=(3,), norm=float(norm))
    exact = next(bound for bound in bracket.bounds if bound.name == "lipbab")
    assert exact.side == "exact"
    for bound in bracket.bounds:
        if bound.side == "lower":
            assert bound.value <= exact.value * (1 + ROUNDING)
        if bound.side == "upper":
            assert exact.value <= bound.value * (1 + ROUNDING)


@settings(max_examples=5)
@given(st.integers(0, 1000), st.sampled_from(NORMS))
def test_a_larger_domain_has_no_smaller_constant(seed, norm):
    model = random_network(seed, (2, 5, 2), nn.ReLU)
    domains = [(0.0, 0.5), (-3.0, 3.0), None]
    values = [computed(model, 2, norm, domain).value for domain in domains]
    for inner, outer in pairwise(values):
        assert inner <= outer * (1 + ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_weights_without_sign_changes_are_steepest_where_all_is_active(norm):
    model = random_network(0, (3, 4, 4, 2), nn.ReLU).double().requires_grad_(False)
    for layer in model[::2]:
        layer.weight.abs_()
    whole = model[4].weight @ model[2].weight @ model[0].weight
    expected = float(torch.linalg.matrix_norm(whole, float(norm)))
    assert computed(model, 3, norm).value == pytest.approx(expected, rel=ROUNDING)


def test_a_diagonal_between_layers_changes_nothing():
    model = random_network(0, (3, 4, 4, 2), nn.ReLU).double().requires_grad_(False)
    before = computed(model, 3).value
    scale = torch.tensor([0.5, 4.0, 1.0, 16.0], dtype=torch.float64)
    model[0].weight.mul_(scale.unsqueeze(1))
    model[0].bias.mul_(scale)
    model[2].weight.div_(scale)
    assert computed(model, 3).value == pytest.approx(before, rel=ROUNDING)


def test_a_search_that_is_cut_short_gives_an_upper_bound():
    model = random_network(0, (3, 6, 6, 2), nn.ReLU)
    whole, cut = computed(model, 3), computed(model, 3, nodes=5)
    assert (whole.side, cut.side) == ("exact", "upper")
    assert whole.value <= cut.value


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 13, 21, 34])
def test_wherever_a_search_is_cut_its_bound_is_proved(nodes):
    """A part may have a larger bound of its own than the whole, whose bound then counts."""
    model = random_network(1, (3, 6, 5, 2), nn.ReLU)
    assert computed(model, 3, nodes=nodes).value >= computed(model, 3).value * (1 - ROUNDING)


def test_what_has_no_two_sides_is_refused_by_name():
    with pytest.raises(Refused, match="step '1' is not linear on both sides of 0"):
        computed(random_network(0, (2, 3, 2), nn.Sigmoid), 2)
    thirds = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.AvgPool1d(3), nn.Flatten(), nn.ReLU())
    with pytest.raises(Refused, match="known up to rounding only"):
        computed(thirds, 3)


def test_large_networks_are_refused_with_the_number():
    network = as_network(random_network(0, (2, 49, 2), nn.ReLU), (2,))
    bound = load("lipbench.bounds", "lipbab", Bound)()
    assert "49 neurons, more than the 48" in bound.refuses(network, L2, None)


SPOILT = {
    "a smaller value": lambda v: replace(v, value=v.value * 0.99),
    "a larger exact value": lambda v: replace(v, value=v.value * 1.01),
    "a region left out": lambda v: replace(
        v,
        proof=v.proof
        | {
            "closed": v.proof["closed"][: -int(v.proof["closed_lengths"][-1])],
            "closed_lengths": v.proof["closed_lengths"][:-1],
        },
    ),
    "another point": lambda v: replace(v, proof=v.proof | {"point": v.proof["point"] * 0}),
    "another face": lambda v: replace(v, proof=v.proof | {"support": v.proof["support"] * 0}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_proof_that_is_spoilt_is_found_out(how):
    model = random_network(4, (2, 6, 5, 2), nn.ReLU)
    network = as_network(model, (2,))
    value = load("lipbench.bounds", "lipbab", Bound)().compute(network, L2, None)
    assert value.side == "exact"
    assert len(value.proof["support"])
    assert recheck(network, SPOILT[how](value)), how


@pytest.mark.parametrize("norm", NORMS)
def test_a_trained_network_is_known_exactly(norm):
    """Iris, 4-6-6-3, on all of space: lower and upper value meet, and no pair is steeper."""
    torch.manual_seed(0)
    inputs, labels = (torch.tensor(array) for array in load_iris(return_X_y=True))
    inputs = ((inputs - inputs.mean(dim=0)) / inputs.std(dim=0)).float()
    model = random_network(0, (4, 6, 6, 3), nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    value = computed(model.double(), 4, norm)
    assert value.side == "exact"
    best = load("lipbench.bounds", "pair_ascent", Bound)()
    lower = best.compute(as_network(model, (4,)), norm, None, (), inputs.double()).value
    assert 0.5 * value.value < lower <= value.value * (1 + ROUNDING)


def test_signs_are_enumerated_where_all_regions_exist():
    """More inputs than neurons in general position: each of the patterns has a region."""
    model = random_network(0, (6, 5, 3), nn.ReLU).double().requires_grad_(False)
    first, second = model[0].weight, model[2].weight
    expected = max(
        float(torch.linalg.matrix_norm(second @ (torch.tensor(bits).double()[:, None] * first), 2))
        for bits in product([0, 1], repeat=5)
    )
    assert computed(model, 6).value == pytest.approx(expected, rel=ROUNDING)


def test_a_search_has_as_many_nodes_as_a_time_allows():
    """Of a budget, by its own estimate; a search that is cut short still is a sound bound."""
    network = as_network(random_network(0, (3, 8, 2), nn.ReLU), (3,))
    search = load("lipbench.bounds", "lipbab", Bound)()
    assert search.within(network, L2, None, 1e6) == search
    few = search.within(network, L2, None, 0.05)
    assert 0 < few.nodes < search.nodes
    assert few.cost(network, L2, None) <= 0.05
    assert search.within(network, L2, None, 0.0) is None
    assert few.compute(network, L2, None).value >= search.compute(network, L2, None).value


def test_what_needs_semidefinite_programs_costs_more():
    """There is a formula for spectral norms of three rows, and none for four."""
    bound = load("lipbench.bounds", "lipbab", Bound)()
    three, four = (
        as_network(random_network(0, (10, 12, 12, outputs), nn.ReLU).double(), (10,))
        for outputs in (3, 4)
    )
    assert bound.cost(four, Norm(2.0), None) > 5 * bound.cost(three, Norm(2.0), None)
    assert bound.cost(four, Norm(1.0), None) == bound.cost(three, Norm(1.0), None)
    assert bound.within(four, Norm(2.0), None, 60).nodes == 5_000
