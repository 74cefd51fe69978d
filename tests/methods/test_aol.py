"""Almost-orthogonal layers."""

import numpy as np
import pytest
import torch
from support.training import a_method
from torch import nn


def explicit(weight, **fields):
    layer = nn.Linear(1, 1) if weight.ndim == 2 else nn.Conv2d(1, 1, 1)
    raw = {"weight": weight, "bias": torch.zeros(weight.shape[0])}
    found = a_method("aol", **fields).explicit(layer, raw, is_final=False)
    assert list(found) == ["weight"]
    return found["weight"]


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_published_form_rescales_inputs(shape):
    """W·diag(Σ_j |WᵀW|_ij)^(-1/2)."""
    weight = np.random.default_rng(0).standard_normal(shape)
    expected = weight @ np.diag(np.abs(weight.T @ weight).sum(axis=1) ** -0.5)
    found = explicit(torch.tensor(weight), side="inputs")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_outputs_are_rescaled_where_there_are_fewer():
    tall, wide = torch.randn(6, 4).double(), torch.randn(4, 6).double()
    torch.testing.assert_close(explicit(tall), explicit(tall, side="inputs"))
    torch.testing.assert_close(explicit(wide), explicit(wide.T, side="inputs").T)


def test_a_wide_orthogonal_matrix_stays_as_it_is_unless_its_inputs_are_rescaled():
    wide = torch.linalg.qr(torch.randn(64, 8).double()).Q.T
    torch.testing.assert_close(explicit(wide), wide)
    assert float(torch.linalg.matrix_norm(explicit(wide, side="inputs"), ord=2)) < 0.7


def test_kernels_are_rescaled_by_channel_on_either_side():
    kernel = torch.randn(2, 3, 3, 3).double()
    factors = explicit(kernel) / kernel
    torch.testing.assert_close(factors, factors[:, :1, :1, :1].expand_as(kernel))
    factors = explicit(kernel, side="inputs") / kernel
    torch.testing.assert_close(factors, factors[:1, :, :1, :1].expand_as(kernel))
