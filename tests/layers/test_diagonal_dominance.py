"""Diagonal matrices above Gram matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbench.layers.diagonal_dominance import column_sums, rescaled


def random(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def matrix(layer, shape):
    # A layer without its bias, column by column.
    size = math.prod(shape)
    inputs = torch.eye(size, dtype=torch.float64).view(size, *shape)
    return (layer(inputs) - layer(torch.zeros_like(inputs))).flatten(1).T.detach()


def naive(weight, q):
    # Literally the sum over channels, and shifts of one kernel against the other.
    out, channels, height, width = weight.shape
    sums = [0.0] * channels
    for i in range(channels):
        for j in range(channels):
            for down in range(-height + 1, height):
                for right in range(-width + 1, width):
                    total = 0.0
                    for o in range(out):
                        for a in range(height):
                            for b in range(width):
                                if 0 <= a + down < height and 0 <= b + right < width:
                                    one, other = (
                                        weight[o, i, a, b],
                                        weight[o, j, a + down, b + right],
                                    )
                                    total += float(one * other)
                    sums[i] += abs(total) * float(q[j] / q[i])
    return sums


@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (2, 3, 2, 3), (3, 2, 3, 3)])
def test_sums_are_over_channels_and_shifts(shape):
    weight, log_q = random(*shape), random(shape[1], seed=1)
    expected = torch.tensor(naive(weight, log_q.exp()), dtype=torch.float64)
    torch.testing.assert_close(column_sums(weight, log_q), expected)
    plain = torch.tensor(naive(weight, torch.ones(shape[1])), dtype=torch.float64)
    torch.testing.assert_close(column_sums(weight), plain)


def test_a_matrix_is_a_kernel_of_one_tap():
    weight, log_q = random(5, 3), random(3, seed=1)
    torch.testing.assert_close(
        column_sums(weight, log_q), column_sums(weight.view(5, 3, 1, 1), log_q)
    )


def test_a_gaussian_matrix_keeps_most_of_its_norm():
    norm = float(torch.linalg.matrix_norm(rescaled(random(30, 20)), ord=2))
    assert 0.75 < norm < 0.9


def test_orthogonal_columns_stay_as_they_are():
    weight = torch.linalg.qr(random(7, 4)).Q
    torch.testing.assert_close(rescaled(weight), weight)


def test_a_column_of_zeros_stays_and_has_a_gradient():
    weight = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = rescaled(weight)
    assert found[:, 1].tolist() == [0.0, 0.0]
    found.sum().backward()
    assert weight.grad.isfinite().all()


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular"]),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_no_rescaled_convolution_expands_distances(
    seed, sizes, stride, padding, dilation, mode, spread
):
    out, channels, *kernel = sizes
    if mode == "circular":  # Wider padding would repeat outputs.
        padding = min(padding, *((size - 1) * dilation // 2 for size in kernel))
    layer = nn.Conv2d(
        channels, out, kernel, stride, padding, dilation, padding_mode=mode, dtype=torch.float64
    )
    log_q = spread * random(channels, seed=seed + 1)
    layer.weight = nn.Parameter(rescaled(random(*sizes, seed=seed), log_q))
    found = matrix(layer, (channels, 7, 7))
    assert float(torch.linalg.matrix_norm(found, ord=2)) <= 1 + 1e-9
