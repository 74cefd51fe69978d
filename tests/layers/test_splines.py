from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipbench.bound import Bound
from lipbench.layers.splines import Spline, piece_slopes, values, variation_norms
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

HEIGHTS = st.lists(st.floats(-5, 5), min_size=5, max_size=5)
KNOTS = torch.tensor([-2.0, -1.0, 0.0, 0.5, 3.0], dtype=torch.float64)


def literal(heights, t):
    # b₀ + b₁t + Σ aₖ(t - tₖ)₊, the coefficients from the heights.
    knots = KNOTS.tolist()
    slopes = [(heights[k + 1] - heights[k]) / (knots[k + 1] - knots[k]) for k in range(4)]
    total = heights[0] - slopes[0] * knots[0] + slopes[0] * t
    for k in range(1, 4):
        total += (slopes[k] - slopes[k - 1]) * max(t - knots[k], 0.0)
    return total, slopes


def tensor(heights):
    return torch.tensor([heights], dtype=torch.float64)


@settings(max_examples=30)
@given(HEIGHTS, st.floats(-6, 6))
def test_it_is_the_sum_of_bends_of_the_paper(heights, t):
    place = torch.tensor([[t]], dtype=torch.float64)
    found = float(values(tensor(heights), KNOTS, place))
    assert found == pytest.approx(literal(heights, t)[0], abs=1e-9)
    if -2 <= t <= 3:
        assert found == pytest.approx(np.interp(t, KNOTS, heights), abs=1e-9)


@settings(max_examples=30)
@given(HEIGHTS)
def test_the_variation_norm_is_no_less_than_the_lipschitz_constant(heights):
    _, slopes = literal(heights, 0.0)
    bends = sum(abs(b - a) for a, b in pairwise(slopes))
    ends = abs(literal(heights, 0.0)[0]) + abs(literal(heights, 1.0)[0])
    found = float(variation_norms(tensor(heights), KNOTS))
    assert found == pytest.approx(bends + ends, abs=1e-9)
    steepest = float(piece_slopes(tensor(heights), KNOTS).abs().max())
    assert steepest == pytest.approx(max(map(abs, slopes)), abs=1e-12)
    assert steepest <= found * (1 + 1e-12) + 1e-12


def test_channels_have_functions_of_their_own():
    heights = torch.tensor([[0.0, 1, 2, 3, 4], [4.0, 3, 2, 1, 0]])
    spline = Spline(heights, torch.linspace(-2, 2, 5))
    images = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    both = torch.stack([images[:, 0] + 2, 2 - images[:, 1]], dim=1)
    torch.testing.assert_close(spline(images), both)
    torch.testing.assert_close(spline(images[:, :, 0, 0]), both[:, :, 0, 0])


def test_it_starts_as_the_activation_at_the_knots():
    rng, knots = torch.Generator().manual_seed(0), torch.linspace(-4, 4, 51)
    inputs = 6 * torch.randn(20, 3, generator=rng)
    relu = Spline.near(nn.ReLU(inplace=True), 3, knots)
    torch.testing.assert_close(relu(inputs), inputs.relu())
    tanh = Spline.near(nn.Tanh(), 1, knots)
    torch.testing.assert_close(tanh(knots.unsqueeze(1)), knots.tanh().unsqueeze(1))


def test_a_bound_reads_its_exact_slopes():
    """By hand: slopes -1.5 to 2 of the first channel, -4 to 0 of the second."""
    model = nn.Sequential(nn.Linear(1, 2), Spline(torch.zeros(2, 3), torch.tensor([-1.0, 0, 1])))
    model = model.append(nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[1].heights.copy_(torch.tensor([[1.5, 0.0, 2.0], [4.0, 0.0, 0.0]]))
        for layer in (model[0], model[2]):
            layer.weight.fill_(1)
    step = as_network(model, (1,)).steps[1]
    assert not step.claimed
    torch.testing.assert_close(step.lo, torch.tensor([-1.5, -4], dtype=torch.float64))
    torch.testing.assert_close(step.hi, torch.tensor([2.0, 0], dtype=torch.float64))
    assert bool((step.lo <= torch.tensor([-1.5, -4])).all() and (step.hi >= 2).any())
    product = load("lipbench.bounds", "product", Bound)()
    found = product.compute(as_network(model, (1,)), Norm(2), None)
    assert found.value == pytest.approx(2**0.5 * 4 * 2**0.5)
    assert found.flags == ()
