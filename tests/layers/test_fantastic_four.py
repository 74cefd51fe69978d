"""A bound of convolutions from four matrices, against the operator itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.matrices import matrix_of
from torch.nn import functional as F

from lipbench.layers.fantastic_four import kernel_bound


def a_kernel(shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def twin(kernel):
    # Matrices of blocks, written out.
    height, width = kernel.shape[2:]
    taps = [[kernel[:, :, u, v] for v in range(width)] for u in range(height)]
    row = np.hstack([np.hstack(line) for line in taps])
    column = np.vstack([np.vstack(line) for line in taps])
    one = np.vstack([np.hstack(line) for line in taps])
    other = np.hstack([np.vstack(line) for line in taps])
    norms = [np.linalg.norm(part, 2) for part in (row, column, one, other)]
    return (height * width) ** 0.5 * min(norms)


@given(
    st.tuples(*[st.integers(1, 3)] * 4), st.integers(0, 99), st.sampled_from(["zeros", "circular"])
)
def test_it_bounds_the_operator(shape, seed, mode):
    kernel = a_kernel(shape, seed)
    height, width = shape[2:]

    def operate(images):
        pads = [width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2]
        if mode == "zeros":
            return F.conv2d(F.pad(images, pads), kernel)
        return F.conv2d(F.pad(images, pads, mode="circular"), kernel)

    norm = torch.linalg.matrix_norm(matrix_of(operate, (shape[1], 4, 5)), 2)
    found = float(kernel_bound(kernel))
    assert float(norm) <= found * (1 + 1e-12)
    assert found == pytest.approx(twin(kernel.numpy()), rel=1e-12)


def test_it_is_the_norm_where_there_is_one_tap():
    kernel = a_kernel((3, 2, 1, 1))
    expected = torch.linalg.matrix_norm(kernel[:, :, 0, 0], 2)
    torch.testing.assert_close(kernel_bound(kernel), expected)


def test_kernels_may_be_stacked_and_have_a_gradient():
    stack = a_kernel((3, 2, 4, 3, 2))
    found = torch.func.vmap(kernel_bound)(stack)
    for kernel, expected in zip(stack, found, strict=True):
        torch.testing.assert_close(kernel_bound(kernel), expected)
    assert torch.autograd.gradcheck(kernel_bound, (stack[0].requires_grad_(),))
