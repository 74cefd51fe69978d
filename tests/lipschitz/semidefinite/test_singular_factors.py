"""The product of factors, against all corners, by hand, and where it may not be smaller."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds import bound
from support.chains import (
    BY_HAND,
    SLOPED,
    chain_bound,
    corners,
    l2_bound,
    norm,
    random_weights,
    seqlip,
    steepest,
)
from support.nets import by_hand, random_network
from torch import nn

from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.semidefinite.corners import norm_by_search
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused

L2 = Norm(2.0)
CLOSE = 1e-9  # the search ends within half of that, and rounding is less
MANY = 10**6
computed = partial(l2_bound, name="seqlip")
value = partial(chain_bound, name="seqlip")


@pytest.mark.parametrize(
    ("model", "features", "expected"),
    by_hand(BY_HAND),
)
def test_a_hand_computed_network(model, features, expected):
    assert computed(model, features).value == pytest.approx(expected, rel=2 * CLOSE)


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from(SLOPED),
    st.sampled_from([None, 1, 2]),
)
def test_it_is_the_product_of_the_paper(seed, widths, sloped, rank):
    """Whatever the shapes and ranks of layers; negative slopes are other ends, no more."""
    activation, *ends = sloped
    weights = random_weights(seed, widths, rank)
    expected = seqlip(weights, *ends) if len(weights) > 1 else norm(weights[0])
    upper = value(weights, activation)
    assert expected * (1 - 1e-12) <= upper
    assert upper == pytest.approx(expected, rel=len(widths) * CLOSE)


@settings(max_examples=6)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 4), min_size=3, max_size=5),
    st.sampled_from(SLOPED),
    st.sampled_from([None, 1]),
)
def test_it_lies_between_all_corners_and_the_product(seed, widths, sloped, rank):
    activation, *ends = sloped
    weights = random_weights(seed, widths, rank)
    upper, formal = value(weights, activation), steepest(weights, *ends)
    assert formal * (1 - 1e-9) <= upper
    assert upper <= value(weights, activation, name="product") * (1 + CLOSE)
    if len(weights) == 2:
        assert upper == pytest.approx(formal, rel=2 * CLOSE)


@st.composite
def problems(draw):
    count = draw(st.integers(1, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    left, right = normal(draw(st.integers(1, 5)), count), normal(count, draw(st.integers(1, 5)))
    scales = 10 ** (draw(st.sampled_from([0.0, 3.0, 100.0])) * normal(count).sign())
    if draw(st.booleans()):  # ties: many corners are the largest
        left, right = left.sign(), right.round().clamp(-1, 1)
    lo = normal(count)
    hi = lo + torch.rand(count, generator=rng, dtype=torch.float64) * draw(
        st.sampled_from([0.0, 1e-9, 1.0, 3.0])
    )
    return left * scales, right, lo, hi


def by_trying(left, right, lo, hi):
    bits = corners(len(lo), False, True).bool()
    return max(norm(left * torch.where(chosen, hi, lo) @ right) for chosen in bits)


@settings(max_examples=40)
@given(problems(), st.integers(1, 30))
def test_no_corner_has_a_larger_norm(problem, nodes):
    left, right, *ends = problem
    ends = tuple(ends)
    expected = by_trying(*problem)
    whole = norm_by_search(left, right, ends, MANY)
    assert expected * (1 - 1e-14) <= whole
    assert whole == pytest.approx(expected, rel=CLOSE)
    cut = norm_by_search(left, right, ends, nodes)
    assert whole * (1 - CLOSE) <= cut
    assert cut <= norm(left) * norm(right) * float(torch.stack(ends).abs().max()) * (1 + CLOSE)
    assert norm_by_search(left, right, ends, MANY, whole) == pytest.approx(whole, rel=CLOSE)
    assert norm_by_search(left, right, ends, MANY, 0.9 * whole) == pytest.approx(whole, rel=CLOSE)
    assert norm_by_search(left, right, ends, MANY, 2 * whole) == pytest.approx(2 * whole)


def test_a_local_search_would_bound_nothing():
    """From a corner that no single slope improves, the largest norm is elsewhere."""
    left, right = (random_weights(seed, (8, 8))[0] for seed in (21, 22))
    bits = corners(8, 0.0, 1.0)
    values = torch.linalg.matrix_norm((left * bits.unsqueeze(1)) @ right, 2)
    index = torch.arange(256)
    others = torch.stack([values[index ^ (1 << bit)] for bit in range(8)])
    stuck = values[(values >= others.amax(dim=0)) & (values < values.max() * 0.99)]
    assert len(stuck)
    ends = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    assert norm_by_search(left, right, ends, MANY) > float(stuck.max())


def test_singular_vectors_are_not_mistaken_for_their_transpose():
    """Of weights ≥ 0 the norm of the product is the constant; the published code had less."""
    first = torch.tensor([[3.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    truth = norm(second @ first)
    assert seqlip([first, second], transposed=False) < 0.8 * truth
    assert value([first, second]) == pytest.approx(truth, rel=2 * CLOSE)


@pytest.mark.parametrize("count", [24, 40])
def test_wide_layers_are_searched_to_the_end(count):
    """What all corners have is not known here; the search itself says when it has ended."""
    left, right = random_weights(1, (count, count, 4))[::-1]
    ends = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    whole = norm_by_search(left, right, ends, 10_000)
    assert norm_by_search(left, right, ends, MANY) == whole
    assert whole < norm_by_search(left, right, ends, 10) * (1 - 1e-4)


def test_what_a_square_cannot_hold_is_not_lost():
    left = torch.tensor([[1e-100, 1e100]], dtype=torch.float64)
    right = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    assert 1e-100 <= norm_by_search(left, right, (ones, ones), 10) <= 1e-30


def test_orthogonal_layers_take_no_search():
    """Every corner with one slope of 1 is the largest, and so is the bound at the start."""
    left, right = (torch.linalg.qr(weight).Q for weight in random_weights(0, (40, 40, 40)))
    ends = torch.zeros(40, dtype=torch.float64), torch.ones(40, dtype=torch.float64)
    assert norm_by_search(left, right, ends, 5_000) == pytest.approx(1, rel=CLOSE)
    assert norm_by_search(0 * left, right, ends, 10) == 0


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_the_scale_of_weights_changes_nothing_else(scale):
    weights = random_weights(3, (4, 6, 5, 2))
    expected = value(weights)
    assert value([scale * weights[0], *weights[1:]]) == pytest.approx(scale * expected, rel=1e-8)


@settings(max_examples=3)
@given(st.integers(0, 999), st.floats(-1, 1), st.floats(1e-3, 1))
def test_on_a_box_it_is_above_the_lower_bounds_and_below_all_of_space(seed, lo, width):
    model, box = random_network(seed, (3, 6, 5, 2), nn.ReLU), (lo, lo + width)
    upper = computed(model, 3, box)
    lower = computed(model, 3, box, name="jacobian", points=8)
    assert not crossings([lower, upper])
    assert upper.value <= computed(model, 3).value * (1 + CLOSE)


def test_layers_that_are_linear_on_a_box_are_multiplied_out():
    model = random_network(0, (3, 6, 6, 2), nn.ReLU).double()
    box = (0.4, 0.4 + 1e-9)
    point = torch.full((3,), 0.4, dtype=torch.float64)
    expected = norm(torch.func.jacrev(model)(point).detach())
    assert computed(model, 3, box).value == pytest.approx(expected, rel=1e-9)


def spoilt(known, **proof):
    return replace(known, proof={**known.proof, **proof})


@pytest.mark.parametrize("nodes", [1, 20, 10_000])
def test_a_value_that_its_factors_do_not_prove_is_found_out(nodes):
    model = random_network(0, (4, 7, 6, 3), nn.ReLU)
    network = as_network(model, (4,))
    upper = bound("seqlip", nodes=nodes).compute(network, L2, None)
    assert recheck(network, upper) == []
    lowered = replace(upper, value=upper.value * 0.999)
    assert "the norms of its factors prove" in recheck(network, lowered)[0].message
    assert recheck(network, spoilt(lowered, factors=upper.proof["factors"] * 0.999**0.5))
    for factors in (
        upper.proof["factors"][:1],
        -upper.proof["factors"],
        upper.proof["factors"] * math.nan,
    ):
        assert "prove inf" in recheck(network, spoilt(upper, factors=factors))[0].message
    with torch.no_grad():
        model[2].weight.mul_(1.001)
    assert recheck(as_network(model, (4,)), upper)


def test_what_is_no_chain_is_refused_by_name():
    pool = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2))
    assert "step '2' (MaxPool)" in bound("seqlip").refuses(as_network(pool, (4,)), L2, None)
    with pytest.raises(Refused, match="reads more than the neurons"):
        computed(pool, 4)
    steep = nn.Sequential(nn.Linear(2, 3), nn.CELU(-1.0))
    with pytest.raises(Refused, match="step '1' has slopes that are not bounded"):
        computed(steep, 2)


def test_networks_it_cannot_do_are_refused_before():
    wide = as_network(random_network(0, (2, 70, 3), nn.ReLU), (2,))
    reason = "a layer has 70 neurons, more than the 64 of most_neurons."
    assert bound("seqlip").refuses(wide, L2, None) == reason
    assert bound("seqlip", most_neurons=70).refuses(wide, L2, None) is None
    for name in ("nodes", "most_neurons"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            bound("seqlip", **{name: 0})


def test_less_time_is_a_shorter_search():
    network = as_network(random_network(0, (5, 40, 40, 3), nn.ReLU), (5,))
    whole = bound("seqlip")
    assert whole.within(network, L2, None, 1e6) == whole
    half = whole.within(network, L2, None, whole.cost(network, L2, None) / 2)
    assert 0 < half.nodes < whole.nodes
    assert half.cost(network, L2, None) <= whole.cost(network, L2, None) / 2
    assert whole.within(network, L2, None, 1e-3) is None
