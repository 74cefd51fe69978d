import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.norm import Norm

NORMS = (1, 2, math.inf)


@pytest.mark.parametrize("p", [0, 3, -1, math.nan])
def test_other_norms_are_refused(p):
    with pytest.raises(ValueError, match="must be 1, 2 or inf"):
        Norm(p)


def test_norm_prints_and_compares_like_its_number():
    assert [str(Norm(p)) for p in NORMS] == ["1", "2", "inf"]
    assert Norm(2) == 2
    assert pickle.loads(pickle.dumps(Norm(math.inf))) == math.inf


def test_length_takes_all_axes_of_a_sample_as_one_vector():
    vectors = torch.tensor([[[3.0, -4.0]], [[0.0, 1.0]]])
    lengths = {p: Norm(p).length(vectors).tolist() for p in NORMS}
    assert {1: [7, 1], 2: [5, 1], math.inf: [4, 1]} == lengths


@given(st.sampled_from(NORMS), st.integers(0, 2**31))
def test_dual_norm_bounds_inner_products_and_is_attained(p, seed):
    """Hölder's inequality, with the vector that makes it an equality."""
    norm = Norm(p)
    one, other = torch.randn(
        2, 1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    product = norm.length(one) * norm.dual().length(other)
    assert (one * other).sum().abs() <= product * (1 + 1e-12)
    aligned = {
        1: (other.abs() == other.abs().max()) * other.sign(),
        2: other,
        math.inf: other.sign(),
    }[p]
    attained = (aligned * other).sum() / norm.length(aligned)
    torch.testing.assert_close(attained, norm.dual().length(other))


@given(st.sampled_from(NORMS), st.integers(0, 2**31))
def test_margin_factor_bounds_the_change_of_a_gap(p, seed):
    norm = Norm(p)
    change = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gap = (change[:, 0] - change[:, 1]).abs()
    assert gap <= norm.margin_factor() * norm.length(change) * (1 + 1e-12)


@pytest.mark.parametrize(("p", "factor"), [(1, 1), (2, math.sqrt(2)), (math.inf, 2)])
def test_margin_factor_is_the_smallest_possible(p, factor):
    """The change (c, -c) of two outputs is the worst for p > 1, (1, 0) as bad for p = 1."""
    assert factor == pytest.approx(Norm(p).margin_factor())
    assert factor == pytest.approx(2 / Norm(p).length(torch.tensor([[1.0, -1.0]])).item())
