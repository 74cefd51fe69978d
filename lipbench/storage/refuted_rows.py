"""Refuted rows: Lipschitz values that nothing proves, and that a proved one contradicts."""

from collections.abc import Iterable
from dataclasses import replace

from lipbench.storage.rows import UNVERIFIED, Row

_TOLERANCE = 1e-9
"""Relative difference below which two values do not contradict each other."""


def with_refuted(rows: list[Row]) -> list[Row]:
    """Return the rows of a cell; those of refuted values are invalid, and say who refutes them.

    Only a value that is flagged `unverified` is refuted. Two proved ones that contradict each other
    are no matter of a row: the cell has failed.
    """
    doubted = [row for row in rows if _is_value(row) and UNVERIFIED in row.flags]
    if not doubted:
        return rows
    proved = [row for row in rows if _is_value(row) and UNVERIFIED not in row.flags]
    return [_judged(row, proved) if row in doubted else row for row in rows]


def _is_value(row: Row) -> bool:
    return row.metric == "lipschitz" and row.status == "done" and row.value is not None


def _judged(row: Row, proved: Iterable[Row]) -> Row:
    for other in proved:
        if row.checkpoint == other.checkpoint and (_exceeds(row, other) or _exceeds(other, row)):
            flags = (*row.flags, f"refuted by {other.estimator}")
            return replace(row, status="invalid", flags=flags)
    return row


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
