"""Numbers of many digits against fractions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact_outputs import fractions
from torch.nn import functional as F

from lipbench.lipschitz.enclosures.digits import Digits, TooWide

SCALES = st.sampled_from([1.0, 2.0**-20, 1e30, 1e-150, 1e-300, 5e-324, 1e200])


def numbers(digits):
    """Return the numbers as fractions."""
    return [whole * Fraction(2) ** power for whole, power in digits.binary()]


def holds(digits, truth):
    """Return whether all true numbers are within the radius."""
    reach = fractions(digits.radius)
    return all(abs(n - t) <= r for n, t, r in zip(numbers(digits), truth, reach, strict=True))


def matrix(seed, rows, columns, scale):
    """Return entries of either sign, some of them far smaller than others, and some 0."""
    rng = torch.Generator().manual_seed(seed)
    entries = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    small = torch.rand(rows, columns, generator=rng)
    entries = torch.where(small < 0.2, entries * 1e-40, entries)
    return torch.where(small > 0.9, 0.0, entries) * scale


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SCALES, st.integers(1, 15))
def test_float64_numbers_are_kept(seed, scale, most):
    values = matrix(seed, 3, 4, scale)
    digits = Digits.of(values, most)
    assert holds(digits, fractions(values))
    rounded, radius = digits.rounded()
    for near, reach, truth in zip(*map(fractions, (rounded, radius, values)), strict=True):
        assert abs(near - truth) <= reach
    rest = digits.digits[1:]
    assert bool(((rest >= 0) & (rest < 2**16)).all())
    if most >= 14 and scale == 1:
        assert not bool(digits.radius.any())  # 40 decimals and 53 bits are less


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), SCALES, SCALES, st.integers(2, 10))
def test_sums_and_products(seed, scale, other, most):
    x, y = matrix(seed, 3, 4, scale), matrix(seed + 1, 3, 4, other)
    left, right = Digits.of(x, most), Digits.of(y, most)
    pairs = list(zip(fractions(x), fractions(y), strict=True))
    assert holds(left.plus(right), [a + b for a, b in pairs])
    assert holds(left.minus(right), [a - b for a, b in pairs])
    assert holds(left.negated, [-a for a, _ in pairs])
    if scale * other < 1e250:
        assert holds(left.times(right), [a * b for a, b in pairs])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), SCALES, SCALES, st.integers(2, 10))
def test_matrix_products_with_what_the_input_may_be_off_by(seed, scale, other, most):
    weight, x = matrix(seed, 5, 4, scale), matrix(seed + 1, 3, 4, other)
    if scale * other > 1e250:
        return
    digits = Digits.of(x, most)
    off = digits.radius + 2.0**-60 * x.abs()
    digits = Digits(digits=digits.digits, exponent=digits.exponent, radius=off, most=most)
    image = digits.through(lambda w, v: F.linear(v, w), weight, 4)
    w, rows = [fractions(row) for row in weight], [fractions(row) for row in x]
    moves = [fractions(row) for row in 2.0**-60 * x.abs()]
    for sign in (-1, 0, 1):
        moved = [
            [v + sign * m for v, m in zip(*both, strict=True)]
            for both in zip(rows, moves, strict=True)
        ]
        truth = [sum(a * b for a, b in zip(ws, v, strict=True)) for v in moved for ws in w]
        assert holds(image, truth)


def test_what_is_cut_off_is_a_share_of_the_largest():
    rng = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(64, 64, generator=rng, dtype=torch.float64) for _ in range(2))
    for most in (4, 8, 16):
        image = Digits.of(x, most).through(lambda w, v: F.linear(v, w), weight, 64)
        assert float(image.radius.max()) <= 2.0 ** (-16 * most + 45)


def test_products_that_cannot_be_added_exactly_are_refused():
    x = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(TooWide, match="1048576 products"):
        Digits.of(x / 3, 4).through(lambda w, v: F.linear(v, w), x, 2**20)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), SCALES)
def test_ranks_order_numbers(seed, scale):
    x = matrix(seed, 2, 6, scale)
    digits = Digits.of(x, 8)
    spread = digits.radius.amax(dim=1, keepdim=True).expand_as(x)
    chosen = digits.chosen(lambda v: v.sort(dim=1).values, spread)
    assert holds(chosen, fractions(x.sort(dim=1).values))


def test_numbers_that_differ_beyond_float64():
    """1 + 2^-90 and 1 are told apart, and so is what is left of their difference."""
    one = torch.ones(1, 1, dtype=torch.float64)
    left = Digits.of(one, 8).plus(Digits.of(one * 2.0**-90, 8))
    assert numbers(left) == [1 + Fraction(2) ** -90]
    difference, radius = left.minus(Digits.of(one, 8)).rounded()
    assert abs(float(difference) - 2.0**-90) <= float(radius) <= 2.0**-100
    assert [bool(number.negative) for number in (left, left.negated)] == [False, True]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**200), 2**200), st.integers(-300, 100)), min_size=1))
def test_binary_numbers_are_read_back(pairs):
    digits = Digits.of_binary(pairs, (1, len(pairs)), 8)
    assert holds(digits, [whole * Fraction(2) ** power for whole, power in pairs])
    largest = max(math.log2(abs(w)) + p if w else -math.inf for w, p in pairs)
    if largest > -math.inf:
        assert float(digits.radius.max()) <= 2.0 ** (largest - 100)
