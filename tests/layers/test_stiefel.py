"""Maps onto matrices with orthonormal columns, against the papers' formulas in numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.layers.stiefel import cayley, exponential, series

SHAPES = [(4, 4), (7, 4), (4, 7), (5, 1), (1, 5), (1, 1)]
MAPS = [cayley, exponential, lambda matrix: series(matrix, 40)]


def a_matrix(shape, scale=1.0, seed=0, dtype=torch.complex128):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=rng, dtype=dtype)


def cayley_twin(matrix):
    # [(I + A)⁻¹(I - A); -2V(I + A)⁻¹], as the paper has it.
    if matrix.shape[0] < matrix.shape[1]:
        return cayley_twin(matrix.conj().T).conj().T
    n = matrix.shape[1]
    u, v = matrix[:n], matrix[n:]
    a = u - u.conj().T + v.conj().T @ v
    inverse = np.linalg.inv(np.eye(n) + a)
    return np.vstack([inverse @ (np.eye(n) - a), -2 * v @ inverse])


def exponential_twin(matrix):
    # Channels of zeros make the matrix square, and are cut off again.
    rows, columns = matrix.shape
    square = np.zeros((max(rows, columns),) * 2, dtype=matrix.dtype)
    square[:rows, :columns] = matrix
    return scipy.linalg.expm((square - square.conj().T) / 2)[:rows, :columns]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_it_is_the_formula_of_the_paper(shape, dtype):
    matrix = a_matrix(shape, dtype=dtype)
    np.testing.assert_allclose(
        cayley(matrix).resolve_conj(), cayley_twin(matrix.numpy()), atol=1e-13
    )
    expected = exponential_twin(matrix.numpy())
    np.testing.assert_allclose(exponential(matrix).resolve_conj(), expected, atol=1e-13)
    np.testing.assert_allclose(series(matrix, 40).resolve_conj(), expected, atol=1e-13)


@given(st.sampled_from(SHAPES), st.sampled_from([0.0, 1e-9, 0.3, 2.0]), st.integers(0, 99))
def test_all_singular_values_are_1(shape, scale, seed):
    matrix = a_matrix(shape, scale, seed)
    for each in MAPS:
        values = torch.linalg.svdvals(each(matrix))
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_numbers_lose_no_more_than_rounding(scale):
    for shape in SHAPES:
        values = torch.linalg.svdvals(cayley(a_matrix(shape, scale)))
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-9, rtol=0)


@pytest.mark.parametrize("each", MAPS)
def test_a_stack_and_conjugates_are_mapped_one_by_one(each):
    stack = a_matrix((3, 5, 2))
    found = each(stack)
    for one, expected in zip(stack, found, strict=True):
        torch.testing.assert_close(each(one), expected)
        torch.testing.assert_close(each(one.conj()), expected.conj())
    torch.testing.assert_close(torch.func.vmap(each)(stack), found)


@pytest.mark.parametrize("each", MAPS)
def test_it_has_a_gradient(each):
    matrix = a_matrix((5, 3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(each, (matrix,))


@pytest.mark.parametrize("terms", [0, 3, 5])
def test_what_the_series_leaves_out_is_as_small_as_taylor_says(terms):
    matrix = a_matrix((6, 4), 0.3)
    padded = torch.nn.functional.pad(matrix, (0, 2))
    turn = float(torch.linalg.matrix_norm(padded - padded.mH, 2)) / 2
    rest = float(torch.linalg.matrix_norm(series(matrix, terms) - exponential(matrix), 2))
    assert 0 < rest <= turn ** (terms + 1) / np.prod(range(1, terms + 2))
