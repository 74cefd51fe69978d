"""Feasibility of a polyhedron's interior, with a proof in rational numbers either way.

A linear program, which computes in floats, only proposes. An interior is proved by a point in it.
That there is none is proved by multipliers y ≥ 0, not all 0, with y'A = 0 and y'b ≤ 0: then Ax < b
would give 0 < y'b ≤ 0. A tolerance instead of a proof would drop thin regions that are there.

Source:
    Motzkin, Beiträge zur Theorie der linearen Ungleichungen (1936): for strict inequalities, one
    of the two always exists.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import linprog, nnls

Rationals = list[Fraction]


@dataclass(frozen=True, eq=False)
class HalfSpace:
    """a·x < b in integers, a not zero."""

    whole: Shaped[np.ndarray, " coordinates_and_one"]
    """a and -b; a positive factor does not matter."""

    @property
    def reverse(self) -> "HalfSpace":
        """Return a·x > b."""
        return HalfSpace(-self.whole)

    @cached_property
    def unit(self) -> Float[np.ndarray, " coordinates_and_one"]:
        """Return it in units of its largest entry, up to a factor of two, rounded."""
        return np.array([float(entry) for entry in self.exact])

    @cached_property
    def exact(self) -> Rationals:
        """Return it in the same units, as it is."""
        return [Fraction(int(entry), 1 << self.bits) for entry in self.whole]

    @cached_property
    def bits(self) -> int:
        """Return the power of two that the unit is."""
        return max(abs(int(entry)).bit_length() for entry in self.whole)

    def slack(self, point: Sequence[Fraction]) -> Fraction:
        """Return b - a·x at a point, in the same units."""
        return -_product(self.exact[:-1], point) - self.exact[-1]

    def holds(self, point: Sequence[Fraction]) -> bool:
        """Return whether it holds strictly."""
        return self.slack(point) > 0


_ROUNDING = 8 * np.finfo(np.float64).eps
_SUPPORT = 1e-9
_LARGEST_RADIUS = 1.0
_MARGIN = 1e-6
"""Distance from all faces of the point that least squares give, in the units of the inputs."""
_SOLVED = 1e-9
"""What is left of a system that has a solution; exact arithmetic decides."""


@dataclass(frozen=True)
class Interior:
    """A point at which all inequalities hold strictly."""

    point: tuple[Fraction, ...]


@dataclass(frozen=True)
class Empty:
    """Inequalities that cannot hold strictly at once, by their numbers."""

    support: tuple[int, ...]
    weights: tuple[float, ...]
    """Roughly their multipliers, for the inequalities in units of their largest entry."""


def interior(
    inequalities: Sequence[HalfSpace],
    dimension: int,
    box: Sequence[HalfSpace] = (),
    *,
    anywhere: bool = False,
) -> Interior | Empty | None:
    """Return a proof that there is an interior point, or that there is none, or neither.

    Neither is rare: where the linear program fails, or is too wrong to be mended.

    Args:
        inequalities: What must hold.
        dimension: How many coordinates there are.
        box: Those of the inequalities that are x_k < hi and lo < x_k, in this order for each k.
        anywhere: Any point will do; else it is the centre of a large ball.
    """
    if not inequalities:
        return Interior((Fraction(0),) * dimension)
    rows = np.array([face.unit for face in inequalities])
    lengths = np.linalg.norm(rows[:, :-1], axis=1)
    if not lengths.all():
        return None  # what is so steep or so far away is not seen in floats
    weights, near = _least_squares(rows / lengths[:, None])
    if near is None:
        empty = _empty(inequalities, weights / lengths, box)
        if empty is not None:
            return empty
    elif anywhere and holds(inequalities, near):
        return Interior(near)
    # The largest ball: the distance to every face is at least its radius.
    solution = linprog(
        np.append(np.zeros(dimension), -1.0),
        A_ub=np.column_stack([rows[:, :-1] / lengths[:, None], np.ones(len(rows))]),
        b_ub=-rows[:, -1] / lengths,
        bounds=[(None, None)] * dimension + [(None, _LARGEST_RADIUS)],
        method="highs",
    )
    if solution.status != 0 or solution.x is None:
        return None
    point = [Fraction(float(x)) for x in solution.x]
    if holds(inequalities, point[:-1]):
        return Interior(tuple(point[:-1]))
    weights = -solution.ineqlin.marginals / lengths
    empty = _empty(inequalities, weights, box)
    if empty is not None:
        return empty
    support = _support(weights)
    faces = [inequalities[number] for number in support]
    mended = _vertex(faces, [lengths[number] for number in support], point)
    if mended is not None and holds(inequalities, mended):
        return Interior(tuple(mended))
    return None


def holds(inequalities: Sequence[HalfSpace], point: Sequence[Fraction]) -> bool:
    """Return whether all inequalities hold strictly at a point."""
    if not inequalities:
        return True
    near = np.array([*map(float, point), 1.0])
    rows = np.array([face.unit for face in inequalities])
    # Where rounding cannot have decided, there is nothing to be decided exactly.
    blur = _ROUNDING * len(near) * (np.abs(rows) @ np.abs(near))
    doubtful = np.flatnonzero(rows @ near + blur >= 0).tolist()
    return all(inequalities[number].holds(point) for number in doubtful)


def excludes(
    inequalities: Sequence[HalfSpace], weights: Sequence[float], box: Sequence[HalfSpace] = ()
) -> bool:
    """Return whether multipliers near `weights` prove that not all inequalities hold strictly.

    In a box the weights will do: what they leave of y'A, its faces cancel. Else the multipliers
    are solved for exactly; where y'A = 0 leaves some of them free, these are the weights.
    """
    if not inequalities:
        return False
    if box and _excludes_in_box(inequalities, weights, box):
        return True
    rows = [face.exact for face in inequalities]
    columns = [list(column) for column in zip(*(row[:-1] for row in rows), strict=True)]
    exact = _solve(columns, [Fraction(0)] * len(columns), [Fraction(w) for w in weights])
    if exact is None or not any(exact) or any(y < 0 for y in exact):
        return False
    return _product(exact, [-row[-1] for row in rows]) <= 0


def _least_squares(
    rows: Float[np.ndarray, "inequalities coordinates_and_one"],
) -> tuple[Float[np.ndarray, " inequalities"], tuple[Fraction, ...] | None]:
    """Return multipliers y ≥ 0, and a point inside, or None if these seem to forbid one.

    Source:
        Lawson, Hanson, Solving Least Squares Problems (1974), chapter 23, for inequalities that
        are a little tighter: y'A = 0 and y'b = -1, or else what is left is a point. It takes a
        fiftieth of the linear program.
    """
    matrix = np.vstack([rows[:, :-1].T, -rows[:, -1] - _MARGIN])
    target = np.append(np.zeros(len(matrix) - 1), -1.0)
    try:
        weights, size = nnls(matrix, target)
    except RuntimeError:  # it did not converge
        return np.zeros(len(rows)), None
    *left, last = (matrix @ weights - target).tolist()
    if size < _SOLVED or not last > 0:
        return weights, None
    return weights, tuple(Fraction(-entry / last) for entry in left)


def _empty(
    inequalities: Sequence[HalfSpace],
    weights: Float[np.ndarray, " inequalities"],
    box: Sequence[HalfSpace],
) -> Empty | None:
    support = _support(weights)
    chosen = [float(weights[number]) for number in support]
    if excludes([inequalities[number] for number in support], chosen, box):
        return Empty(tuple(support), tuple(chosen))
    return None


def _support(weights: Float[np.ndarray, " inequalities"]) -> list[int]:
    return np.flatnonzero(weights > _SUPPORT * weights.max()).tolist()


def _excludes_in_box(
    inequalities: Sequence[HalfSpace], weights: Sequence[float], box: Sequence[HalfSpace]
) -> bool:
    if any(w < 0 for w in weights) or not any(weights):
        return False
    # In integers, which is ten times as fast as in fractions.
    pairs = [float(w).as_integer_ratio() for w in weights]
    units = [
        face.bits + divisor.bit_length() - 1 for face, (_, divisor) in _both(inequalities, pairs)
    ]
    most = max(units)
    factors = [top << (most - unit) for (top, _), unit in _both(pairs, units)]
    whole = np.array(factors, dtype=object) @ np.array([face.whole for face in inequalities])
    *left, total = map(int, whole)
    rest = Fraction(total)
    for coordinate, slope in enumerate(left):
        face = box[2 * coordinate + (slope > 0)].whole
        rest += abs(Fraction(slope, int(face[coordinate]))) * int(face[-1])
    return rest >= 0


def _both(left: Iterable[Any], right: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(left, right, strict=True)


def _vertex(
    faces: Sequence[HalfSpace], lengths: Sequence[float], near: Rationals
) -> Rationals | None:
    """Return the centre of the ball that touches all faces, in rational numbers."""
    rows = [face.exact for face in faces]
    matrix = [
        [*row[:-1], Fraction(float(length))] for row, length in zip(rows, lengths, strict=True)
    ]
    solved = _solve(matrix, [-row[-1] for row in rows], near)
    return None if solved is None else solved[:-1]


def _product(left: Iterable[Any], right: Iterable[Fraction]) -> Fraction:
    return sum((a * x for a, x in zip(left, right, strict=True)), Fraction(0))


def _solve(matrix: list[Rationals], right: Rationals, near: Rationals) -> Rationals | None:
    """Return an exact solution of a linear system whose free unknowns are those of `near`.

    None says that there is no solution. The unknowns with the largest values are solved for.
    """
    order = sorted(range(len(near)), key=lambda unknown: abs(near[unknown]), reverse=True)
    rows = [
        [line[unknown] for unknown in order] + [end]
        for line, end in zip(matrix, right, strict=True)
    ]
    pivots: list[int] = []
    for column in range(len(order)):
        top = len(pivots)
        pivot = next((k for k in range(top, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[top], rows[pivot] = rows[pivot], rows[top]
        factor = 1 / rows[top][column]
        rows[top] = [entry * factor for entry in rows[top]]
        for k, line in enumerate(rows):
            if k != top and line[column]:
                share = line[column]
                rows[k] = [a - share * b if b else a for a, b in zip(line, rows[top], strict=True)]
        pivots.append(column)
    if any(line[-1] for line in rows[len(pivots) :]):
        return None
    solution = [near[unknown] for unknown in order]
    free = [column for column in range(len(order)) if column not in pivots]
    for line, column in zip(rows, pivots, strict=False):
        solution[column] = line[-1] - sum(line[k] * solution[k] for k in free)
    values = dict(zip(order, solution, strict=True))
    return [values[unknown] for unknown in range(len(near))]
