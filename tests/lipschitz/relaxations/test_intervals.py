"""Neurons and derivatives on a box, against points of it and against a literal recursion."""

import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import ABSOLUTE, HAT, dense, random_network
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import derivatives, slopes
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
UPPER = ["fastlip", "liplt", "seqlip", "eclipse_fast", "eclipse", "lipsdp_layer", "lipsdp_neuron"]
ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Hardtanh, nn.ELU, nn.Mish, nn.Hardswish]


def values(model, features, norm, domain, names=UPPER):
    network = as_network(model, (features,))
    results = {}
    for name in names:
        bound = load("lipbench.bounds", name, Bound)()
        if norm not in bound.norms:
            continue
        with suppress(Refused):  # slopes of both signs, or a network that is constant there
            results[name] = bound.compute(network, norm, domain)
            assert recheck(network, results[name]) == []
    return results


def boxes(draw):
    lo = draw(st.floats(-2, 1))
    return (lo, lo + draw(st.floats(1e-3, 2)))


@st.composite
def cases(draw):
    widths = draw(st.sampled_from([(2, 5, 3), (3, 6, 4, 2), (1, 4, 4, 4, 2)]))
    activation = draw(st.sampled_from(ACTIVATIONS))
    return random_network(draw(st.integers(0, 999)), widths, activation), widths[0], boxes(draw)


@given(cases())
@settings(max_examples=25)
def test_slopes_and_derivatives_hold_at_points_of_the_box(case):
    model, features, box = case
    network = as_network(model, (features,))
    blocks = as_neuron_blocks(network)
    points = box[0] + (box[1] - box[0]) * torch.rand(30, features, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor(box, dtype=torch.float64)] * features)
    points = torch.cat([points, corners.reshape(-1, features)])
    entries = derivatives(blocks, box)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: network(x.unsqueeze(0))[0]))(points)
    assert (entries.lo <= jacobians + 1e-12).all()
    assert (jacobians <= entries.hi + 1e-12).all()
    known = [points]
    for block, (lo, hi) in zip(blocks.blocks, slopes(blocks, box), strict=True):
        reads = block.reads(known)
        known.append(block.function(reads))
        rise, run = known[-1][1:] - known[-1][:-1], reads[1:] - reads[:-1]
        far = run.abs() > 1e-6
        quotients = torch.where(far, rise / run, lo)
        assert (quotients >= lo - 1e-8).all()
        assert (quotients <= hi + 1e-8).all()


@given(cases(), st.sampled_from(NORMS))
@settings(max_examples=5)
def test_a_bound_on_a_box_is_between_the_lower_bounds_and_that_of_a_larger_box(case, norm):
    model, features, box = case
    lower = values(model, features, norm, box, ["jacobian", "pair_ascent"])
    small, large = (values(model, features, norm, domain) for domain in (box, (-9.0, 9.0)))
    everywhere = values(model, features, norm, None)
    assert not crossings([*lower.values(), *small.values()])
    assert small["fastlip"].value <= large["fastlip"].value * (1 + 1e-9)
    assert large["fastlip"].value <= everywhere["fastlip"].value * (1 + 1e-9)


def test_ends_of_a_box_are_not_rounded():
    """0.7 in float32 is smaller by 1e-8: a bend between both numbers is inside the box."""
    bent = dense(([[1]], [-0.7 + 1e-9]), ([[1]], [0]))
    ((lo, hi),) = slopes(as_neuron_blocks(as_network(bent, (1,))), (0.0, 0.7))
    assert (lo, hi) == (0, 1)


def between(*terms):
    """Return the ends of a sum of products of intervals."""
    ends = [[a * b for a in left for b in right] for left, right in terms]
    return sum(map(min, ends)), sum(map(max, ends))


def literal(model, box):
    """Return the largest derivatives by the recursion with its sums written out."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    inputs = layers[0].in_features
    values = [box] * inputs
    slopes = [[(float(i == j),) * 2 for j in range(inputs)] for i in range(inputs)]
    for layer in layers:
        rows = [[(w, w) for w in row] for row in layer.weight.tolist()]
        offsets = [((b, b), (1, 1)) for b in layer.bias.tolist()]
        reads = [
            between(*zip(row, values, strict=True), offset)
            for row, offset in zip(rows, offsets, strict=True)
        ]
        slopes = [
            [between(*zip(row, column, strict=True)) for column in zip(*slopes, strict=True)]
            for row in rows
        ]
        if layer is layers[-1]:
            break
        gates = [(float(lo >= 0), float(hi > 0)) for lo, hi in reads]
        values = [(max(0, lo), max(0, hi)) for lo, hi in reads]
        slopes = [
            [between((gate, slope)) for slope in row]
            for gate, row in zip(gates, slopes, strict=True)
        ]
    return torch.tensor([[max(-lo, hi) for lo, hi in row] for row in slopes])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", NORMS)
def test_fastlip_is_the_recursion_of_the_paper(seed, norm):
    model = random_network(seed, (3, 6, 5, 2), nn.ReLU).double()
    for box in ((-0.1, 0.1), (0.3, 0.8), (-5.0, 5.0)):
        upper = values(model, 3, norm, box, ["fastlip"])["fastlip"]
        expected = torch.linalg.matrix_norm(literal(model, box).double(), float(norm))
        assert upper.value == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", UPPER)
def test_a_box_on_one_side_of_a_kink(name):
    """The absolute value is x on [1, 2], and its constant 1 there, for every method."""
    upper = values(ABSOLUTE, 1, Norm(2.0), (1.0, 2.0), [name])[name]
    assert upper.value == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", UPPER)
def test_an_end_of_a_box_is_not_rounded_to_float32(name):
    """Which would move 0.7 below the kink, and make all of the box flat."""
    late = dense(([[1]], [-0.69999999]), ([[1]], [0]))
    upper = values(late, 1, Norm(2.0), (0.0, 0.7), [name])[name]
    assert upper.value == pytest.approx(1, abs=1e-6)


def test_the_flat_part_of_a_hat_is_known():
    (upper,) = values(HAT, 1, Norm(2.0), (5.0, 6.0), ["fastlip"]).values()
    assert upper.value == pytest.approx(0, abs=1e-12)


def test_a_small_box_is_nearly_exact_and_better_than_all_of_space():
    model = random_network(3, (6, 30, 30, 4), nn.ReLU)
    box = (0.5, 0.500001)
    near = lipbench.bracket(model, (6,), 2, box)
    assert near.upper / near.lower < 1.001
    far = lipbench.bracket(model, (6,), 2)
    assert near.upper < far.upper
