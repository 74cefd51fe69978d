"""Arithmetic that rounds upwards, against fractions."""

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from lipbench.lipschitz.operator_norms.rounding_up import plus, raised, times

sizes = st.floats(0, 1e100, allow_subnormal=False)


@given(sizes, sizes)
def test_no_result_is_below_the_exact_one(a, b):
    assert Fraction(plus(a, b)) >= Fraction(a) + Fraction(b)
    assert Fraction(times(a, b)) >= Fraction(a) * Fraction(b)


@given(st.integers(1, 1000))
def test_a_rounded_inverse_is_raised_above_the_exact_one(number):
    assert Fraction(raised(1 / number)) >= Fraction(1, number)


@given(sizes)
def test_nothing_is_added_where_the_result_is_exact(a):
    assert plus(a, 0.0) == plus(0.0, a) == times(a, 1.0) == a
    assert (raised(0.0), raised(1.0)) == (0.0, 1.0)


def test_a_factor_zero_makes_zero_of_infinity():
    assert times(0.0, math.inf) == times(math.inf, 0.0) == 0.0
    assert plus(1.0, math.inf) == math.inf
