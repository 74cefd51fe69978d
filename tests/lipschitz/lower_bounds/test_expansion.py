"""The most expanded directions at points, and pairs along them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import LINEAR, random_network
from torch import nn

from lipbench.lipschitz.lower_bounds.expansion import most_expanded, operator_norms, pairs_along
from lipbench.networks.network import as_network
from lipbench.norm import Norm

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
ROUNDING = 1e-12


@pytest.mark.parametrize(("norm", "constant"), list(zip(NORMS, (7, 5, 4), strict=True)))
def test_the_direction_of_a_linear_network(norm, constant):
    """[[3, 0], [4, 0]] expands the first coordinate most, in every norm."""
    points = torch.zeros(2, 2, dtype=torch.float64)
    values, directions = most_expanded(as_network(LINEAR, (2,)), points, norm)
    assert values.tolist() == pytest.approx([constant] * 2, rel=ROUNDING)
    assert directions[:, 0].abs().tolist() == pytest.approx([1.0] * 2, rel=ROUNDING)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(NORMS), st.integers(1, 5), st.integers(1, 5))
def test_a_norm_is_attained_and_that_of_torch(seed, norm, rows, columns):
    rng = torch.Generator().manual_seed(seed)
    matrices = torch.randn(3, rows, columns, generator=rng, dtype=torch.float64)
    values, directions = operator_norms(matrices, norm)
    expected = torch.linalg.matrix_norm(matrices, float(norm))
    assert torch.allclose(values, expected, rtol=ROUNDING)
    assert torch.allclose(norm.length(directions), torch.ones(3).double(), rtol=ROUNDING)
    images = torch.einsum("boi,bi->bo", matrices, directions)
    assert torch.allclose(norm.length(images), expected, rtol=ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_expanded_like_vectors(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    points = torch.randn(3, 1, 4, 4).double()
    values, directions = most_expanded(as_network(model, (1, 4, 4)), points, norm)
    assert directions.shape == points.shape
    step = 1e-6
    rise = model(points + step * directions) - model(points - step * directions)
    assert torch.allclose(norm.length(rise) / (2 * step), values, rtol=1e-6)


def test_pairs_keep_their_direction_in_a_box():
    """A corner moves inwards, by as much as each pair is long."""
    network = as_network(random_network(0, (2, 3, 2), nn.ReLU), (2,))
    points = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    _, directions = most_expanded(network, points, Norm(2.0))
    u, v = pairs_along(points, directions, (0.0, 1.0))
    both = torch.stack([u, v])
    assert both.min() >= 0
    assert both.max() <= 1
    along = nn.functional.normalize(v - u).reshape(-1, 2, 2)
    assert torch.allclose(along, directions.expand_as(along), atol=1e-5)
