"""The barrier method on a matrix that is written out by hand."""

import pytest
import torch

from lipbench.lipschitz.semidefinite.barrier import BarrierPoint, BarrierProgram, WeightBlock


def a_program(price=None):
    # Two layers of 3x2 and 2x3 weights; the first stands in two blocks of N.
    rng = torch.Generator().manual_seed(0)
    first, both = (torch.rand(3, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    right, last = (torch.rand(n, generator=rng, dtype=torch.float64) for n in (2, 3))
    ones = torch.ones(2, 1, dtype=torch.float64)
    blocks = (
        WeightBlock(0, slice(2, 5), slice(0, 2), first, right),
        WeightBlock(0, slice(7, 10), slice(0, 2), both, right),
        WeightBlock(1, slice(5, 7), slice(2, 5), ones, last),
    )
    target = 3 * torch.randn(12, generator=rng, dtype=torch.float64)
    shapes = ((3, 2), (2, 3))
    return BarrierProgram(
        target=target, shapes=shapes, blocks=blocks, size=10, inputs=2, price=price
    )


@pytest.mark.parametrize("price", [None, 0.5])
def test_what_is_pulled_is_the_adjoint_of_what_is_spread(price):
    program = a_program(price)
    vector = torch.randn(12 + (price is not None), dtype=torch.float64)
    matrix = torch.randn(10, 10, dtype=torch.float64)
    matrix = matrix + matrix.T
    there = float((program.spread(vector) * matrix).sum())
    assert there == pytest.approx(float(vector @ program.pulled(matrix)), rel=1e-12)


@pytest.mark.parametrize("price", [None, 0.5])
def test_at_the_solution_the_barrier_is_flat(price):
    program = a_program(price)
    start = BarrierPoint(torch.zeros_like(program.target), 1.0)
    t = program.size / program.objective(start)
    point = program.centred(start, t)
    _, slope = program.newton(point, t)
    assert -(0.25**2) < slope <= 0
    least = program.barrier(point, t)
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        move = torch.randn(12, generator=rng, dtype=torch.float64)
        away = BarrierPoint(point.weights + 0.5 * move / move.norm(), point.square)
        assert program.barrier(away, t) > least


def test_what_lies_inside_is_its_own_solution():
    program = a_program()
    small = BarrierProgram(**{**vars(program), "target": 0.1 * program.target})
    assert torch.equal(small.solve(1e-6).weights, small.target)
    solution = program.solve(1e-6)
    assert float(torch.linalg.eigvalsh(program.matrix(solution))[0]) > 0
    outside = BarrierPoint(1.01 * solution.weights, 1.0)
    assert float(torch.linalg.eigvalsh(program.matrix(outside))[0]) < 0
