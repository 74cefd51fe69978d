"""Jacobians as products, the climb with them, and the bound that they give."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import ABSOLUTE, HAT, LINEAR, SHIFTED, random_network
from torch import nn

from lipbench.bound import Bound
from lipbench.layers.sorting import GroupSort
from lipbench.lipschitz.lower_bounds.decision_boundary import boundary_points
from lipbench.lipschitz.lower_bounds.expansion import most_expanded
from lipbench.lipschitz.lower_bounds.jacobian_products import Linearised, power_iteration, products
from lipbench.lipschitz.lower_bounds.slope_ascent import _bent, climb
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
ROUNDING = 1e-10


def ascent(**options):
    return load("lipbench.bounds", "jacobian_ascent", Bound)(**options)


def convolutional(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3, padding=1), activation(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)
    return nn.Sequential(*layers, activation(), nn.Flatten(), nn.Linear(16, 12)).double()


def unit_directions(points, norm):
    rng = torch.Generator().manual_seed(1)
    random = torch.randn(points.shape, generator=rng, dtype=torch.float64)
    return random / norm.length(random).reshape(-1, *[1] * (points.ndim - 1))


# Products.


def test_products_are_those_of_the_jacobian():
    model, points = convolutional(), torch.randn(3, 1, 8, 8).double()
    linear = Linearised(as_network(model, (1, 8, 8)), points)
    directions, weights = torch.randn_like(points), torch.randn(3, 12).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: model(x.unsqueeze(0))[0]))(points)
    jacobian = jacobian.detach().flatten(2)
    for _ in range(2):  # each may be asked for again
        forth = torch.einsum("boi,bi->bo", jacobian, directions.flatten(1))
        assert torch.allclose(linear.times(directions), forth)
        back = torch.einsum("boi,bo->bi", jacobian, weights)
        assert torch.allclose(linear.transposed(weights).flatten(1), back)


def boyd(matrix, direction, p, steps):
    # The naive twin, with the dual vectors written out.
    def dual(y, q):
        if q == 2:
            return y / y.norm()
        if q == 1:
            return y.sign()
        index = y.abs().argmax()
        return torch.zeros_like(y).index_fill(0, index, float(y[index].sign()))

    conjugate = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[p]
    values = [float((matrix @ direction).norm(p))]
    for _ in range(steps):
        direction = dual(matrix.T @ dual(matrix @ direction, p), conjugate)
        values.append(float((matrix @ direction).norm(p)))
    return values, direction


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(NORMS))
def test_power_iteration_is_that_of_boyd_and_never_falls(seed, norm):
    torch.manual_seed(seed)
    matrix = torch.randn(4, 6).double()
    model = nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(matrix)
    points = torch.zeros(1, 6).double()
    first = unit_directions(points, norm)
    values, direction = boyd(matrix, first[0], float(norm), 7)
    assert values == sorted(values) or max(values) == pytest.approx(values[-1], rel=ROUNDING)
    assert values[-1] <= float(torch.linalg.matrix_norm(matrix, float(norm))) * (1 + ROUNDING)
    norms, along = power_iteration(as_network(model, (6,)), points, first, norm, 7)
    assert float(norms[0]) == pytest.approx(values[-1], rel=ROUNDING)
    assert torch.allclose(along[0], direction, atol=1e-8)


def test_power_iteration_of_a_convolutional_network_finds_the_norm_of_its_jacobian():
    network, points = as_network(convolutional(), (1, 8, 8)), torch.randn(5, 1, 8, 8).double()
    expected, _ = most_expanded(network, points, L2)
    norms, directions = power_iteration(network, points, unit_directions(points, L2), L2, 300)
    assert torch.allclose(norms, expected, rtol=1e-6)
    assert torch.allclose(L2.length(directions), torch.ones(5).double())
    for norm in NORMS:
        whole, _ = most_expanded(network, points, norm)
        first = unit_directions(points, norm)
        few, _ = power_iteration(network, points, first, norm, 3)
        more, _ = power_iteration(network, points, first, norm, 6)
        assert bool((few <= more * (1 + ROUNDING)).all())
        assert bool((more <= whole * (1 + ROUNDING)).all())


def test_products_are_counted():
    """36 taps of 64 outputs in 4 channels, then of 4, and a matrix of 16 by 12."""
    network = as_network(convolutional(), (1, 8, 8))
    assert products(network) == 9 * 4 * 64 + 36 * 4 * 4 + 16 * 12


# The climb.


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, lambda: nn.LeakyReLU(-0.3), nn.Tanh])
def test_bending_changes_no_value_and_no_slope(activation):
    network = as_network(convolutional(activation), (1, 8, 8))
    points, weights = torch.randn(2, 1, 8, 8).double(), torch.randn(2, 12).double()
    results = []
    for variant in (network, _bent(network, 0.3)):
        here = points.clone().requires_grad_()
        outputs = variant(here)
        results.append((outputs, torch.autograd.grad(outputs, here, weights)[0]))
    for expected, bent in zip(*results, strict=True):
        assert torch.allclose(bent, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("activation", "change"),
    [(nn.ReLU, 1), (lambda: nn.LeakyReLU(3.0), -2)],
)
def test_a_kink_bends_within_its_reach(activation, change):
    """That is half the root mean square of all entries here: 0.2 of 0.4 and -0.4."""
    network = as_network(nn.Sequential(activation()), (2,))

    def second(*entries):
        here = torch.tensor([entries], dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(_bent(network, 0.5)(here).sum(), here, create_graph=True)[0]
        return torch.autograd.grad(slope.sum(), here)[0][0].tolist()

    assert second(0.4, -0.4) == [0, 0]
    size = math.sqrt((0.1**2 + 0.55**2) / 2)
    assert second(0.1, 0.55) == pytest.approx([change / (2 * 0.5 * size), 0])


def test_a_smooth_function_has_its_own_curvature():
    network = as_network(nn.Sequential(nn.Tanh()), (3,))
    here = torch.tensor([[0.3, -0.7, 1.2]], dtype=torch.float64, requires_grad=True)
    curvatures = []
    for variant in (network, _bent(network, 1e-4)):
        slope = torch.autograd.grad(variant(here).sum(), here, create_graph=True)[0]
        curvatures.append(torch.autograd.grad(slope.sum(), here)[0])
    assert torch.allclose(*curvatures, atol=1e-6)


@settings(max_examples=6)
@given(
    st.integers(0, 1000),
    st.sampled_from([nn.ReLU, nn.SiLU]),
    st.sampled_from(NORMS),
    st.sampled_from([None, (-1.0, 1.0)]),
)
def test_a_climb_returns_the_steepest_that_it_met(seed, activation, norm, domain):
    network = as_network(random_network(seed, (4, 8, 6, 3), activation), (4,))
    points = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)).double()
    first, directions = power_iteration(network, points, unit_directions(points, norm), norm, 5)
    values, where, along = climb(network, points, directions, norm, domain, 20, 0.5)
    again, _ = power_iteration(network, where, along, norm, 0)
    assert torch.allclose(values, again, rtol=ROUNDING)
    assert bool((values >= first * (1 - ROUNDING)).all())
    if domain is not None:
        assert bool(((where >= domain[0]) & (where <= domain[1])).all())
    none = climb(network, points, directions, norm, domain, 0, 0.5)
    assert torch.allclose(none[0], first, rtol=ROUNDING)
    assert torch.equal(none[1], points)


def test_sorted_groups_have_a_way_up():
    """Which neighbour is larger changes over a reach, as the sign of a number does."""
    model = nn.Sequential(nn.Linear(3, 6), GroupSort(3), nn.Linear(6, 2)).double()
    network = as_network(model, (3,))
    points = torch.randn(4, 3).double()
    here = points.clone().requires_grad_()
    bent = _bent(network, 2.0)
    assert torch.allclose(bent(here), network(points))
    slope = torch.autograd.grad(bent(here)[:, 0].sum(), here, create_graph=True)[0]
    assert torch.autograd.grad(slope.square().sum(), here)[0].any()


def test_borders_are_where_answers_change():
    """The classes of x and -x change at 0, 0.3 from where the attack begins."""
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    network = as_network(model, (1,))
    points = torch.tensor([[0.3], [-0.3], [5.0]], dtype=torch.float64)
    ends = boundary_points(network, points, 1.0, None, 10)
    assert (ends[:2] * points[:2] < 0).all()
    assert ends[2] == pytest.approx(4.0)
    assert len(boundary_points(as_network(HAT, (1,)), points, 1.0, None, 10)) == 0


# The bound.


def test_a_slope_that_exists_only_at_a_kink_is_not_reported():
    """2x - relu(x) + relu(-x) is x, but autograd says 2 at 0."""

    class Skip(nn.Module):
        def forward(self, x):
            return 2 * x - torch.relu(x) + torch.relu(-x)

    network = as_network(Skip(), (1,))
    value, _ = power_iteration(
        network, torch.zeros(1, 1).double(), torch.ones(1, 1).double(), L2, 1
    )
    assert float(value) == 2
    for norm in NORMS:
        lower = ascent().compute(network, norm, None, (), torch.zeros(5, 1))
        assert lower.value == pytest.approx(1, abs=1e-9)
        assert lower.value <= 1 + 1e-12
        assert recheck(network, lower) == []


@pytest.mark.parametrize("norm", NORMS)
def test_a_hand_computed_network_in_every_norm(norm):
    small = {"points": 16, "steps": 20}
    for model, constant in ((ABSOLUTE, 1), (HAT, 1)):
        lower = ascent(**small).compute(as_network(model, (1,)), norm, None)
        assert constant * (1 - 1e-9) <= lower.value <= constant
    linear = ascent(**small).compute(as_network(LINEAR, (2,)), norm, None)
    assert linear.value == pytest.approx({1: 7, 2: 5, math.inf: 4}[float(norm)], rel=1e-9)


def test_a_narrow_slope_is_climbed_to():
    """The slope is 2 only on an interval of length 0.1, which no data point meets."""
    data = torch.tensor([[-3.0], [-1.0], [2.0]])
    still = ascent(steps=0).compute(as_network(SHIFTED, (1,)), L2, (-5.0, 5.0), (), data)
    assert still.value == pytest.approx(1)
    lower = ascent().compute(as_network(SHIFTED, (1,)), L2, (-5.0, 5.0), (), data)
    assert lower.value == pytest.approx(2, rel=1e-9)


@settings(max_examples=5)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(2, 4, 2), (2, 5, 1)]),
    st.sampled_from(NORMS),
    st.sampled_from([None, (0.0, 1.0)]),
)
def test_it_never_exceeds_the_exact_constant(seed, widths, norm, domain):
    network = as_network(random_network(seed, widths, nn.ReLU), (widths[0],))
    lower = ascent(points=8, steps=20).compute(network, norm, domain)
    exact = load("lipbench.bounds", "lipbab", Bound)().compute(network, norm, domain)
    assert lower.value <= exact.value
    assert recheck(network, lower) == []


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_steeper_than_what_samples_show(norm):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 3))
    network, inputs = as_network(model, (1, 6, 6)), torch.rand(64, 1, 6, 6)
    sampled = load("lipbench.bounds", "jacobian", Bound)().compute(network, norm, None, (), inputs)
    lower = ascent(climbers=4).compute(network, norm, None, (), inputs)
    assert lower.value > 1.2 * sampled.value
    assert recheck(network, lower) == []
    raised = replace(lower, value=lower.value * 1.001)
    assert "its witness proves" in recheck(network, raised)[0].message


def test_it_starts_from_witnesses():
    network = as_network(random_network(0, (3, 6, 6, 2), nn.ReLU), (3,))
    known = (ascent().compute(network, L2, None),)
    lower = ascent(points=1, climbers=1, steps=0).compute(network, L2, None, known)
    assert lower.value >= known[0].value * (1 - 1e-6)


def test_a_large_network_has_fewer_climbers_or_is_refused():
    network = as_network(convolutional(), (1, 8, 8))
    assert ascent().refuses(network, L2, None) is None
    small = ascent(products=10**7)
    assert "more than the 600 of products" in ascent(products=600).refuses(network, L2, None)
    assert small.refuses(network, L2, None) is None
    assert small.cost(network, L2, None) < ascent().cost(network, L2, None)
    assert small.compute(network, L2, None).value > 0
    seconds = 0.06 + small.cost(network, L2, None)
    few = ascent().within(network, L2, None, seconds)
    assert few.cost(network, L2, None) <= seconds
    assert ascent().within(network, L2, None, 1e9) == ascent()
    assert ascent().within(network, L2, None, 0.0) is None


@pytest.mark.parametrize(("field", "least"), [("points", 1), ("climbers", 1), ("steps", 0)])
def test_settings_that_find_nothing_are_refused(field, least):
    message = f"{field} of jacobian_ascent must be at least {least}, got {least - 1}"
    with pytest.raises(ValueError, match=message):
        ascent(**{field: least - 1})
