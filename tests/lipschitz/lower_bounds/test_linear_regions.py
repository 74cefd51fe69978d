"""Linear regions in floats: their matrices, neighbours and chords, and the climb between them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import ABSOLUTE, HAT, IDENTITY, LINEAR, MAXIMUM, SHIFTED, ZERO, random_network
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.lower_bounds.chords import chords
from lipbench.lipschitz.lower_bounds.linear_regions import LinearRegions
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
ROUNDING = 1e-9


def ascent(**options):
    return load("lipbench.bounds", "region_ascent", Bound)(**options)


def exact(network, norm, domain=None):
    value = load("lipbench.bounds", "lipbab", Bound)().compute(network, norm, domain)
    assert value.side == "exact"
    return value.value


def regions_of(model, features, norm=L2, domain=None):
    return LinearRegions(as_neuron_blocks(as_network(model, (features,))), norm, domain)


# Regions.


def norms_of_flips(model, point, norm):
    # The naive twin: the matrix after the flip of each neuron, multiplied out.
    model, signs, value = model.double(), [], point
    for layer in model:
        value = layer(value)
        signs += [(value > 0).double()] if isinstance(layer, nn.Linear) else []
    signs = signs[:-1]
    norms = []
    for block, layer_signs in enumerate(signs):
        for neuron in range(len(layer_signs)):
            gates = [sign.clone() for sign in signs]
            gates[block][neuron] = 1 - gates[block][neuron]
            matrix = model[0].weight
            for gate, layer in zip(gates, model[2::2], strict=True):
                matrix = layer.weight @ (gate.unsqueeze(1) * matrix)
            norms.append(float(torch.linalg.matrix_norm(matrix, float(norm))))
    return norms


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(3, 4, 2), (2, 3, 3, 4), (5, 3, 1)]),
    st.sampled_from(NORMS),
)
def test_a_piece_is_the_network_around_its_point_and_knows_what_lies_beyond(seed, widths, norm):
    model = random_network(seed, widths, nn.ReLU).double().requires_grad_(False)
    point = torch.randn(widths[0]).double()
    regions = regions_of(model, widths[0], norm)
    region = regions.at(point)
    jacobian = torch.autograd.functional.jacobian(model, point)
    assert torch.allclose(region.matrix, jacobian, atol=1e-12)
    assert region.steepness == pytest.approx(float(torch.linalg.matrix_norm(jacobian, float(norm))))
    beyond = sorted((int(neuron), value) for value, (neuron,) in regions.beyond(region))
    expected = [
        pair
        for pair in enumerate(norms_of_flips(model, point, norm))
        if region.ahead[pair[0], :-1].any()
    ]
    assert [number for number, _ in beyond] == [number for number, _ in expected]
    assert [v for _, v in beyond] == pytest.approx([v for _, v in expected], abs=1e-7)


def test_neurons_with_one_face_change_together():
    """relu(x) and relu(-x): behind 0 the absolute value has slope 1, not 0 or 2."""
    regions = regions_of(ABSOLUTE, 1)
    ((value, neurons),) = regions.beyond(regions.at(torch.ones(1).double()))
    assert value == pytest.approx(1)
    assert neurons.tolist() == [0, 1]


@pytest.mark.parametrize("domain", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_a_climb_ends_where_no_neighbour_is_steeper(norm, domain):
    """Of the two ends of a long line around the end's regions, none lies in a steeper one."""
    model = random_network(3, (3, 6, 5, 2), nn.ReLU)
    regions = regions_of(model, 3, norm, domain)
    torch.manual_seed(0)
    starts = torch.rand(6, 3).double() * 2 - 1
    ends = regions.climb(starts, 1000)
    assert ends[0].steepness > max(regions.at(start).steepness for start in starts)
    assert [end.steepness for end in ends] == sorted([e.steepness for e in ends], reverse=True)
    near = ends[0].point + 0.05 * torch.randn(500, 3).double()
    if domain is not None:
        near = near.clamp(*domain)
    around = [regions.at(point) for point in near]
    neighbours = [a for a in around if int((a.right != ends[0].right).sum()) == 1]
    assert neighbours
    assert all(a.steepness <= ends[0].steepness * (1 + ROUNDING) for a in neighbours)


def test_no_linear_program_leads_nowhere():
    regions = regions_of(random_network(3, (3, 6, 5, 2), nn.ReLU), 3)
    start = torch.zeros(1, 3, dtype=torch.float64)
    assert regions.climb(start, 0)[0].steepness == regions.at(start[0]).steepness


# Chords.

DIAMOND = torch.tensor([[2.0, 2.0], [1.0, -1.0], [-1.0, 1.0], [-3.0, -3.0]], dtype=torch.float64)


def test_the_longest_chord_of_a_diamond():
    """|x| + |y| < 1 seen from (0.1, 0.5): through the centre a chord is 2 long."""
    point = torch.tensor([0.1, 0.5], dtype=torch.float64)
    direction = torch.tensor([1.0, 0.0], dtype=torch.float64)
    slack = torch.tensor([2.0, 1.0, 1.0, 3.0], dtype=torch.float64) - DIAMOND @ point
    u, v = chords(DIAMOND, slack, point, direction)
    lengths = (v - u)[:, 0]
    assert float(lengths.max()) == pytest.approx(2, rel=1e-5)
    # That through the point is 1 long, of which shares are taken.
    assert lengths[:3].tolist() == pytest.approx([0.5, 0.9, 1], rel=1e-5)
    for end in (u, v):
        assert bool((end.abs().sum(dim=1) < 1).all())
        assert bool((end[:3, 1] - 0.5).abs().max() < 1e-12)


def test_chords_end_in_the_domain_and_are_bounded_without_faces():
    point, direction = torch.zeros(2).double(), torch.tensor([0.0, 1.0]).double()
    none = torch.zeros(0, 2).double(), torch.zeros(0).double()
    u, v = chords(*none, point, direction, (-0.25, 0.5))
    assert float(torch.minimum(u, v).min()) >= -0.25
    assert float((v - u)[:, 1].max()) == pytest.approx(0.75, rel=1e-5)
    u, v = chords(*none, point, direction)
    assert float((v - u)[:, 1].max()) == pytest.approx(2, rel=1e-5)


# The bound.


@pytest.mark.parametrize(
    ("model", "features", "constant"),
    [
        (ABSOLUTE, 1, 1),
        (IDENTITY, 1, 1),
        (ZERO, 1, 0),
        (HAT, 1, 1),
        (MAXIMUM, 2, 1),
        (SHIFTED, 1, 2),
        (nn.MaxPool1d(2), 4, 1),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_a_hand_computed_network_in_every_norm(model, features, constant, norm):
    shape = (1, 4) if isinstance(model, nn.MaxPool1d) else (features,)
    value = ascent(points=20).compute(as_network(model, shape), norm, None)
    assert value.value == pytest.approx(constant, rel=ROUNDING)
    assert value.value <= constant


def test_a_linear_network_is_its_norm():
    for norm, constant in zip(NORMS, (7, 5, 4), strict=True):
        lower = ascent(points=1).compute(as_network(LINEAR, (2,)), norm, None).value
        assert lower == pytest.approx(constant, rel=ROUNDING)


@settings(max_examples=4)
@given(
    st.integers(0, 10**6),
    st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(-0.5)]),
    st.sampled_from(NORMS),
    st.sampled_from([None, (0.0, 1.0)]),
)
def test_it_finds_the_exact_constant_of_a_tiny_network(seed, activation, norm, domain):
    network = as_network(random_network(seed, (2, 4, 2), activation), (2,))
    value = ascent(points=60, programs=60).compute(network, norm, domain)
    constant = exact(network, norm, domain)
    assert recheck(network, value) == []
    assert constant * (1 - 1e-7) <= value.value <= constant * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_steeper_than_what_samples_show(norm):
    """Jacobians at samples are a third to a half below, of this network of 24 neurons."""
    network = as_network(random_network(0, (8, 12, 12, 3), nn.ReLU), (8,))
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    sampled = load("lipbench.bounds", "jacobian", Bound)().compute(network, norm, None, (), data)
    climbed = ascent(points=64, programs=60).compute(network, norm, None, (), data)
    assert climbed.value > 1.3 * sampled.value


def test_it_starts_from_witnesses():
    network = as_network(random_network(0, (3, 6, 6, 2), nn.ReLU), (3,))
    known = (ascent(points=16, programs=50).compute(network, L2, None),)
    lower = ascent(points=1, programs=0).compute(network, L2, None, known)
    assert lower.value == pytest.approx(known[0].value, rel=ROUNDING)


def test_images_in_a_box():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    network = as_network(nn.Sequential(*layers), (1, 4, 4))
    value = ascent(points=16, programs=50).compute(network, L2, (0.0, 1.0))
    assert value.proof["u"].shape == (1, 4, 4)
    assert recheck(network, value) == []
    raised = replace(value, value=value.value * 1.001)
    assert "its witness proves" in recheck(network, raised)[0].message


def test_what_it_cannot_do_is_refused_by_name():
    network = as_network(random_network(0, (2, 3, 2), nn.Sigmoid), (2,))
    with pytest.raises(Refused, match="step '1' is not linear on both sides of 0"):
        ascent().compute(network, L2, None)
    assert "3 neurons, more than the 2" in ascent(most_neurons=2).refuses(network, L2, None)
    assert ascent().refuses(network, L2, None) is None


def test_budgets_fit_a_time_and_are_checked():
    network = as_network(random_network(0, (3, 8, 2), nn.ReLU), (3,))
    few = ascent().within(network, L2, None, 0.2)
    assert 0 < few.programs < ascent().programs
    assert few.cost(network, L2, None) <= 0.2
    assert ascent().within(network, L2, None, 1e6) == ascent()
    assert ascent().within(network, L2, None, 0.0) is None
    with pytest.raises(ValueError, match="points of region_ascent must be at least 1, got 0"):
        ascent(points=0)
    with pytest.raises(ValueError, match="programs of region_ascent must be at least 0, got -1"):
        ascent(programs=-1)
