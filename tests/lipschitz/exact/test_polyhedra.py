"""A polyhedron has an interior or it has none, and either is proved in rational numbers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.lipschitz.exact.dyadic import Dyadic
from lipbench.lipschitz.exact.polyhedra import (
    Empty,
    HalfSpace,
    Interior,
    excludes,
    holds,
    interior,
)


def inequalities(rows):
    """Return a·x < b for rows (a, b) of floats, exactly."""
    table = torch.tensor(rows, dtype=torch.float64)
    table[:, -1].neg_()
    return [HalfSpace(row) for row in Dyadic.of(table).numerators]


def box(dimension, lo=-2.0, hi=2.0):
    unit = np.eye(dimension)
    return [row for k in range(dimension) for row in ([*unit[k], hi], [*-unit[k], -lo])]


@pytest.mark.parametrize("width", [1e-3, 1e-8, 1e-10, 1e-14, 2.0**-60])
def test_a_thin_interval_has_an_interior(width):
    """A solver with a tolerance of 1e-7 does not see it."""
    faces = inequalities([[-1, width], [1, 0]])
    proof = interior(faces, 1)
    assert isinstance(proof, Interior)
    assert -Fraction(width) < proof.point[0] < 0


def test_any_point_is_found_without_a_linear_program(monkeypatch):
    monkeypatch.delattr("lipbench.lipschitz.exact.polyhedra.linprog")
    faces = inequalities([*box(3), [1.0, 2.0, -1.0, -3.0]])
    assert holds(faces, interior(faces, 3, anywhere=True).point)
    assert isinstance(interior([*faces, faces[-1].reverse], 3, faces[:6]), Empty)


def test_a_point_has_none():
    proof = interior(inequalities([[-1, 0], [1, 0]]), 1)
    assert isinstance(proof, Empty)
    assert proof.support == (0, 1)


def test_no_inequality_is_all_of_space():
    assert interior([], 3) == Interior((Fraction(0),) * 3)


def test_a_cone_without_a_box_is_not_empty():
    proof = interior(inequalities([[-1, -1, -5], [1, -2, -7]]), 2)
    assert isinstance(proof, Interior)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.booleans())
def test_every_answer_is_proved(seed, dimension, count, boxed, anywhere):
    """Points lie inside, and multipliers refute; in small integers, so that faces often meet."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (count, dimension + 1)).astype(float)
    rows[~rows[:, :-1].any(axis=1), 0] = 1
    faces = inequalities([*(box(dimension) if boxed else []), *rows.tolist()])
    box_faces = faces[: 2 * dimension] if boxed else ()
    proof = interior(faces, dimension, box_faces, anywhere=anywhere)
    assert proof is not None
    if isinstance(proof, Interior):
        assert holds(faces, proof.point)
        assert all(
            sum(int(a) * x for a, x in zip(face.whole, (*proof.point, 1), strict=True)) < 0
            for face in faces
        )
    else:
        chosen = [faces[number] for number in proof.support]
        assert excludes(chosen, proof.weights, box_faces)
        assert excludes(chosen, proof.weights) or boxed
        # None of a cloud of points lies inside.
        points = rng.uniform(-3, 3, (200, dimension))
        inside = (points @ rows[:, :-1].T < rows[:, -1]).all(axis=1)
        if boxed:
            inside &= (np.abs(points) < 2).all(axis=1)
        assert not inside.any()


def test_what_is_not_empty_is_not_refuted():
    """Whatever the multipliers are said to be."""
    faces = inequalities([[-1, 1e-10], [1, 0]])
    for weights in ([1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [-1.0, -1.0], [0.0, 0.0]):
        assert not excludes(faces, weights)
        assert not excludes(faces, weights, inequalities(box(1)))
    assert not excludes([], [])


def test_inequalities_of_any_size_are_compared_exactly():
    """0.1 + 0.2 > 0.3 in floats; the numbers themselves are added here."""
    face = inequalities([[1.0, 1.0, 0.3]])[0]
    assert not face.holds([Fraction(0.1), Fraction(0.2)])
    assert face.holds([Fraction(1, 10), Fraction(1, 10)])
    huge = inequalities([[1e300, -1e-300, 0.0]])[0]
    assert huge.holds([Fraction(-1), Fraction(1)])
    assert holds([huge], [Fraction(0), Fraction(1)])
    assert not holds([huge], [Fraction(0), Fraction(0)])


def test_dyadic_matrices_are_exact():
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    total = Dyadic.of(left).times(Dyadic.of(right)).plus(Dyadic.of(left * 2.0**-70))
    for i in range(3):
        for j in range(3):
            exact = sum(
                Fraction(float(left[i, k])) * Fraction(float(right[k, j])) for k in range(3)
            )
            exact += Fraction(float(left[i, j])) / 2**70
            assert Fraction(int(total.numerators[i, j]), 2**total.exponent) == exact
