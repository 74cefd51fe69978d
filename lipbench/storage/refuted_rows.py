"""Refuted rows: values that nothing proves, and that a proved or measured one contradicts."""

from collections.abc import Iterable
from dataclasses import replace

from lipbench.storage.rows import UNVERIFIED, Row

_TOLERANCE = 1e-9
"""Relative difference below which two values do not contradict each other."""


def with_refuted(rows: list[Row]) -> list[Row]:
    """Return the rows of a cell; those of refuted values are invalid, and say who refutes them.

    Only a value that is flagged `unverified` is refuted: a Lipschitz value that crosses a proved
    one, and a certified accuracy above the accuracy under an attack. Two proved ones that
    contradict each other are no matter of a row: the cell has failed.
    """
    values = [row for row in rows if row.status == "done" and row.value is not None]
    if not any(UNVERIFIED in row.flags for row in values):
        return rows
    sure = [row for row in values if UNVERIFIED not in row.flags]
    doubted = {id(row) for row in values if UNVERIFIED in row.flags}
    return [_judged(row, sure) if id(row) in doubted else row for row in rows]


def _judged(row: Row, sure: Iterable[Row]) -> Row:
    for other in sure:
        if row.checkpoint == other.checkpoint and _contradicts(row, other):
            flags = (*row.flags, f"refuted by {other.estimator}")
            return replace(row, status="invalid", flags=flags)
    return row


def _contradicts(row: Row, other: Row) -> bool:
    if row.metric == other.metric == "lipschitz":
        return _exceeds(row, other) or _exceeds(other, row)
    if (row.metric, other.metric) != ("certified_accuracy", "robust_accuracy"):
        return False
    assert row.value is not None
    assert other.value is not None
    of_the_same = (row.norm, row.epsilon, row.n) == (other.norm, other.epsilon, other.n)
    return of_the_same and row.value > other.value


def _exceeds(lower: Row, upper: Row) -> bool:
    """Return whether one value is a lower bound above another, which is an upper one."""
    if lower.side not in ("lower", "exact") or upper.side not in ("upper", "exact"):
        return False
    if lower.norm != upper.norm or not _inside(lower.box, upper.box):
        return False
    assert lower.value is not None
    assert upper.value is not None
    return lower.value > upper.value * (1 + _TOLERANCE)


def _inside(inner: tuple[float, float] | None, outer: tuple[float, float] | None) -> bool:
    if outer is None:
        return True
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]
