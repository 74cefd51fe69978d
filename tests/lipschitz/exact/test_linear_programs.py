"""Bounds of linear programs by multipliers: whatever these are, no optimum is larger."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbench.lipschitz.exact.linear_programs import LinearProgram
from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.intervals import Interval


def column(numbers):
    return torch.as_tensor(numbers, dtype=torch.float64).reshape(-1, 1)


def random_program(seed, variables=6, equations=2, inequalities=4):
    # It holds at 0, which is in its box.
    rng = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return LinearProgram(
        objective=random(variables),
        constant=0.5,
        equal=Matrix.exact(random(equations, variables)),
        equal_right=Matrix.exact(torch.zeros(equations, 1, dtype=torch.float64)),
        below=random(inequalities, variables),
        below_right=random(inequalities).abs(),
        box=Interval(-column(random(variables)).abs(), column(random(variables)).abs()),
    )


def value(program, point):
    return float(program.objective @ point) + program.constant


@given(st.integers(0, 999))
@settings(max_examples=25)
def test_any_multipliers_bound_the_optimum_and_the_solvers_meet_it(seed):
    program = random_program(seed)
    proposal = program.propose()
    optimum = value(program, proposal.point)
    assert program.bound(proposal.duals) == pytest.approx(optimum, abs=1e-7)
    rng = torch.Generator().manual_seed(seed)
    for size in (0.0, 1e-6, 1.0, 1e3):
        shift = torch.randn(len(program), generator=rng, dtype=torch.float64)
        assert program.bound(proposal.duals + size * shift) >= optimum - 1e-7


def test_a_bound_by_hand():
    """Of 2x + y with x + y ≤ 1 in the unit square: 2 by the multiplier 1, 3 by none."""
    unit = Interval(column([0, 0]), column([1, 1]))
    program = LinearProgram(
        objective=torch.tensor([2.0, 1.0]).double(),
        constant=0.0,
        equal=Matrix.exact(torch.zeros(0, 2).double()),
        equal_right=Matrix.exact(torch.zeros(0, 1).double()),
        below=torch.ones(1, 2).double(),
        below_right=torch.ones(1).double(),
        box=unit,
    )
    for multiplier, bound in ((1.0, 2), (0.0, 3), (2.0, 2), (3.0, 3), (-1.0, 3)):
        proved = program.bound(torch.tensor([multiplier]).double())
        assert bound <= proved <= bound * (1 + 1e-12)


def test_rounding_of_rows_is_paid_for():
    """x = y up to a relative 0.1, in the unit square: x - y may be 0.1."""
    program = LinearProgram(
        objective=torch.tensor([1.0, -1.0]).double(),
        constant=0.0,
        equal=Matrix(values=torch.tensor([[1.0, -1.0]]).double(), radius=column([[0.1, 0]]).T),
        equal_right=Matrix(values=column([0]), radius=column([0.01])),
        below=torch.zeros(0, 2).double(),
        below_right=torch.zeros(0).double(),
        box=Interval(column([0, 0]), column([1, 1])),
    )
    assert program.bound(torch.ones(1).double()) == pytest.approx(0.11, rel=1e-9)


def test_sums_are_rounded_upwards():
    """A hundred tenths, of which none is one: their sum is more than float64 says."""
    count = 100
    program = LinearProgram(
        objective=torch.full((count,), 0.1, dtype=torch.float64),
        constant=0.1,
        equal=Matrix.exact(torch.zeros(0, count).double()),
        equal_right=Matrix.exact(torch.zeros(0, 1).double()),
        below=torch.zeros(0, count).double(),
        below_right=torch.zeros(0).double(),
        box=Interval(column([0.0] * count), column([0.1] * count)),
    )
    exact = math.fsum([0.1] + [0.1 * 0.1] * count)
    assert exact < program.bound(torch.zeros(0).double()) < exact * (1 + 1e-10)


def test_multipliers_that_are_none_prove_nothing():
    program = random_program(0)
    assert program.bound(torch.zeros(len(program) + 1).double()) == math.inf
    assert program.bound(torch.full((len(program),), math.nan, dtype=torch.float64)) == math.inf
    assert program.bound(torch.full((len(program),), math.inf, dtype=torch.float64)) == math.inf
    assert program.bound(torch.full((len(program),), 1e308, dtype=torch.float64)) == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_where_no_point_is_left_multipliers_outweigh_the_objective(seed):
    """x₀ ≤ -c contradicts a box around 0, and a sum of two equations the third."""
    program = random_program(seed)
    row = torch.eye(1, len(program.objective)).double()
    end = float(program.box.lo[0]) - 1e-3
    apart = replace(
        program,
        below=torch.cat([program.below, row]),
        below_right=torch.cat([program.below_right, column([end])[0]]),
    )
    rows, total = program.equal.values, program.equal.values.sum(dim=0, keepdim=True)
    against = replace(
        program,
        equal=Matrix.exact(torch.cat([rows, total])),
        equal_right=Matrix.exact(column([0, 0, 1e-3])),
    )
    for none in (apart, against):
        proposal = none.propose()
        assert proposal.point is None
        assert none.bound(proposal.duals) < 0
