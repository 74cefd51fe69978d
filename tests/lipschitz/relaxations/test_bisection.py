"""Bounds on the subboxes of a box that is bisected."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.bisection import MOST_DEPTH, bisection_bound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = NORMS[1]
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Softplus]


def bound(**fields):
    return load("lipbench.bounds", "bisection", Bound)(**fields)


def random_net(seed, widths, activation=nn.Tanh, spread=1.0):
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    net = nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)
    for value in net.parameters():
        value.copy_(spread * torch.randn(value.shape, generator=rng, dtype=torch.float64))
    return net


def sigmoid(steepness):
    net = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(steepness)
        net[0].bias.zero_()
    return net


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("domain", "steepest"), [((-1.0, 2.0), 0.0), ((0.25, 2.0), 0.25), ((-3.0, -0.5), -0.5)]
)
def test_a_sigmoid_is_as_steep_as_computed_by_hand(domain, steepest, norm):
    """8 s(8x) (1 - s(8x)), largest where x is closest to 0."""
    share = 1 / (1 + math.exp(-8 * steepest))
    expected = 8 * share * (1 - share)
    upper = bound().compute(as_network(sigmoid(8.0), (1,)), norm, domain)
    assert expected <= upper.value <= expected * (1 + 2e-4)


def test_two_bumps_far_apart_are_both_found():
    """Those of s(20x) + s(20x - 60) / 2: only around the steeper one subboxes are small."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Sigmoid(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[20.0], [20.0]]))
        net[0].bias.copy_(torch.tensor([0.0, -60.0]))
        net[2].weight.copy_(torch.tensor([[1.0, 0.5]]))
    upper = bound().compute(as_network(net, (1,)), L2, (-1.0, 4.0))
    assert 5 <= upper.value <= 5 * (1 + 2e-4)
    depths = upper.proof["halvings"][:, 0]
    centres = (upper.proof["halvings"][:, 1] + 0.5) / 2.0**depths * 5 - 1
    assert depths[centres.abs() < 0.2].max() > depths[(centres - 3).abs() < 0.2].max()


def naively(net, lo, hi, norm):
    # Interval derivatives on one subbox, without rounding: products of ends, positive and negative.
    values, reach = (lo + hi) / 2, (hi - lo) / 2
    low = high = torch.eye(len(lo), dtype=torch.float64)
    for layer in net[1:]:
        if isinstance(layer, nn.Linear):
            up, down = layer.weight.clamp_min(0), layer.weight.clamp_max(0)
            low, high = up @ low + down @ high, up @ high + down @ low
            values = layer(values)
        else:
            moves = torch.maximum(low.abs(), high.abs()) @ reach
            ends = [1 - torch.tanh(values + sign * moves) ** 2 for sign in (-1, 1)]
            least = torch.minimum(*ends)
            most = torch.where(values.abs() <= moves, 1.0, torch.maximum(*ends))
            corners = [s * d.unsqueeze(1) for s in (low, high) for d in (least, most)]
            low, high = torch.stack(corners).amin(0), torch.stack(corners).amax(0)
            values = torch.tanh(values)
    matrices = (low + high) / 2, (high - low) / 2, torch.maximum(low.abs(), high.abs())
    middle, half, largest = (float(torch.linalg.matrix_norm(m, float(norm))) for m in matrices)
    return min(middle + half, largest)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("widths", [(1, 4, 2), (2, 5, 4, 3), (3, 4, 2)])
def test_subboxes_are_bounded_as_by_plain_intervals(widths, norm):
    net, domain = random_net(1, widths), (-0.5, 1.5)
    upper = bound(parts=23, tolerance=0.0).compute(as_network(net, (widths[0],)), norm, domain)
    largest = 0.0
    for depth, number in upper.proof["halvings"].tolist():
        lo, hi = (torch.full((widths[0],), end, dtype=torch.float64) for end in domain)
        for step in range(depth):
            axis = step % widths[0]
            middle = (lo[axis] + hi[axis]) / 2
            if number >> (depth - 1 - step) & 1:
                lo[axis] = middle
            else:
                hi[axis] = middle
        largest = max(largest, naively(net, lo, hi, norm))
    assert upper.value == pytest.approx(largest, rel=1e-9)


@given(
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(NORMS),
    st.sampled_from([1, 7, 60]),
)
def test_no_pair_expands_by_more(seed, inputs, activation, norm, parts):
    net = random_net(seed, (inputs, 6, 5, 3), activation)
    network, domain = as_network(net, (inputs,)), (-1.0, 0.75)
    upper = bound(parts=parts).compute(network, norm, domain)
    rng = torch.Generator().manual_seed(seed)
    u = -1 + 1.75 * torch.rand(400, inputs, generator=rng, dtype=torch.float64)
    near = (u + 1e-4 * torch.randn(u.shape, generator=rng, dtype=torch.float64)).clamp(*domain)
    for v in (u.flip(0), near):
        moved, apart = norm.length(net(u) - net(v)), norm.length(u - v)
        # Outputs are rounded, which is much of a quotient where two points nearly meet.
        assert bool((moved <= upper.value * (1 + 1e-9) * apart + 1e-13).all())
    assert recheck(network, upper) == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_more_parts_are_never_worse(activation):
    network = as_network(random_net(3, (2, 8, 8, 2), activation), (2,))
    values = [bound(parts=n).compute(network, L2, (-1.0, 1.0)).value for n in (1, 3, 30, 300, 3000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]


def test_smooth_networks_of_one_input_are_known_from_both_sides():
    net = random_net(5, (1, 30, 20, 2), nn.Sigmoid, spread=1.5)
    bracket = lipbench.bracket(net, (1,), domain=(-4, 4), time_limit=20)
    assert bracket.upper <= bracket.lower * (1 + 1e-3)


def test_subboxes_make_up_the_box_or_prove_nothing():
    network = as_network(random_net(2, (2, 6, 3)), (2,))
    value = bound(parts=40).compute(network, L2, (-1.0, 1.0))
    rows = value.proof["halvings"]
    assert len(rows) > 10
    assert rows[-1, 0] == rows[-2, 0]  # as large as each other
    forged = {
        "one is missing": rows[1:],
        "one is twice": torch.cat([rows, rows[:1]]),
        "another one instead": torch.cat([rows[:-1], rows[-2:-1]]),
        "deeper than a number": torch.cat([rows[1:], torch.tensor([[MOST_DEPTH + 1, 0]])]),
        "above the whole": torch.tensor([[-1, 0]]),
        "beside the box": torch.tensor([[0, 1]]),
        "nothing": rows[:0],
        "no parts": rows[:, :1],
    }
    for what, proof in forged.items():
        lie = replace(value, proof={"halvings": proof})
        assert recheck(network, lie), what
    assert recheck(network, replace(value, value=0.99 * value.value))
    assert recheck(network, replace(value, domain=(-2.0, 2.0)))
    assert recheck(network, replace(value, domain=None))
    coarser = replace(value, value=10 * value.value, proof={"halvings": torch.tensor([[0, 0]])})
    assert recheck(network, coarser) == []


def test_a_kink_is_halved_until_there_are_no_numbers_left():
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(-1 / 3)
        net[2].weight.copy_(torch.tensor([[3.0], [4.0]]))
    upper = bound().compute(as_network(net, (1,)), L2, (0.0, 1.0))
    assert upper.value == pytest.approx(5, rel=1e-9)
    # A slope of 5 was met at once, and nothing is halved for more.
    assert len(upper.proof["halvings"]) < 10


@pytest.mark.parametrize(
    ("shape", "domain", "message"),
    [((2,), None, "give a domain"), ((1, 2, 3), (0.0, 1.0), "6 inputs, more than the 4")],
)
def test_what_has_no_halves_is_refused(shape, domain, message):
    network = as_network(random_net(0, (math.prod(shape), 3, 2)), shape)
    assert message in bound().refuses(network, L2, domain)
    assert bound(most_inputs=6).refuses(network, L2, (0.0, 1.0)) is None


def test_derivatives_beyond_float64_are_refused():
    network = as_network(random_net(0, (2, 3, 3, 2), spread=1e120), (2,))
    with pytest.raises(Refused, match="too large for float64"):
        bisection_bound(network, L2, (0.0, 1.0), 10, 0.0)


def test_a_constant_needs_no_halving():
    net = random_net(0, (2, 3, 1))
    with torch.no_grad():
        net[-1].weight.zero_()
    upper = bound().compute(as_network(net, (2,)), L2, (0.0, 1.0))
    assert upper.value <= 1e-12
    assert len(upper.proof["halvings"]) <= 2


@pytest.mark.parametrize("fields", [{"parts": 0}, {"tolerance": -1.0}, {"most_inputs": 0}])
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match="must be at least"):
        bound(**fields)


def test_with_less_time_there_are_fewer_parts():
    network = as_network(random_net(0, (2, 50, 50, 2)), (2,))
    whole = bound().cost(network, L2, (0.0, 1.0))
    few = bound().within(network, L2, (0.0, 1.0), whole / 10)
    assert few.parts == pytest.approx(400, abs=1)
    assert bound().within(network, L2, (0.0, 1.0), whole * 10) == bound()
    assert bound().within(network, L2, (0.0, 1.0), 0.0) is None
