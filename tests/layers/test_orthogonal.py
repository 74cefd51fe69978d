"""Matrices with orthonormal rows or columns."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.layers.orthogonal import norm_above, orthonormalised, polar


def random(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def values(matrix):
    return torch.linalg.svdvals(matrix)


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (6, 4), (3, 30), (30, 3)])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_steps_are_those_of_the_paper(shape, iterations):
    """W ← 3/2·W - 1/2·W·Wᵀ·W, whichever products are taken."""
    weight = random(*shape)
    found = weight.numpy() / float(norm_above(weight))
    for _ in range(iterations):
        found = 1.5 * found - 0.5 * found @ found.T @ found
    np.testing.assert_allclose(
        orthonormalised(weight, iterations).numpy(), found, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(5, 5), (4, 40), (9, 4)])
def test_steps_converge_to_the_polar_factor(shape):
    weight = random(*shape)
    found = orthonormalised(weight, 40)
    torch.testing.assert_close(found, polar(weight))
    torch.testing.assert_close(values(found), torch.ones(min(shape), dtype=torch.float64))


def test_the_polar_factor_is_the_nearest_orthonormal_matrix():
    weight = random(6, 4)
    distance = float((polar(weight) - weight).norm())
    for seed in range(20):
        other = torch.linalg.qr(random(6, 4, seed=seed)).Q
        assert distance <= float((other - weight).norm())


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    log_size=st.integers(-30, 15),
)
def test_the_norm_is_close_from_above(seed, shape, log_size):
    weight = random(*shape, seed=seed) * 10.0**log_size
    norm = float(values(weight)[0])
    assert norm * (1 - 1e-12) <= float(norm_above(weight)) <= norm * min(shape) ** (1 / 32) * 1.001


@pytest.mark.parametrize("shape", [(3, 3), (2, 9)])
def test_zeros_stay_and_have_a_gradient(shape):
    weight = torch.zeros(shape, requires_grad=True)
    found = orthonormalised(weight, 3)
    assert not found.detach().any()
    found.sum().backward()
    assert weight.grad.isfinite().all()


def test_singular_values_of_zero_are_completed():
    weight = torch.diag(torch.tensor([2.0, 0.0, 1.0]))
    torch.testing.assert_close(values(polar(weight)), torch.ones(3))


def test_the_norm_is_held_fixed_in_the_gradient():
    weight = random(3, 3).requires_grad_()
    fixed = float(norm_above(weight.detach()))
    found = torch.autograd.grad(orthonormalised(weight, 2).sum(), weight)[0]
    other = weight.detach().requires_grad_()
    scaled = other / fixed
    for _ in range(2):
        scaled = 1.5 * scaled - 0.5 * scaled @ scaled.T @ scaled
    torch.testing.assert_close(found, torch.autograd.grad(scaled.sum(), other)[0])
