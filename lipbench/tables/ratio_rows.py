"""Ratios of upper to lower Lipschitz bound, as rows."""

from collections.abc import Sequence
from dataclasses import replace

from lipbench.storage.rows import Row
from lipbench.tables.columns import GAP, lipschitz_columns


def gap_rows(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each network that has bounds from both sides, of which the lower is not 0.

    Args:
        rows: Those of one method and one checkpoint.
    """
    sides = {column.side: column for column in lipschitz_columns(rows)}
    if not {"lower", "upper"} <= set(sides):
        return []
    ratios = []
    for seed in sorted({row.seed for row in rows}):
        taken = {
            side: [row for row in rows if row.seed == seed and column.takes(row)]
            for side, column in sides.items()
        }
        if not all(taken.values()):
            continue
        lower, upper = (sides[side].best(taken[side]) for side in ("lower", "upper"))
        if lower.value and upper.value is not None and lower.domain == upper.domain:
            ratio = upper.value / lower.value
            ratios.append(replace(upper, metric=GAP, side="upper", value=ratio, estimator=""))
    return ratios
