"""Significance of a difference: which method is better than all others beyond chance."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np

from lipbench.storage.rows import Row
from lipbench.tables.blocks import Entry, TableLine
from lipbench.tables.columns import Column
from lipbench.tables.sources import Source
from lipbench.tables.statistics import (
    paired_image_variance,
    paired_interval,
    unpaired_image_variance,
)


def with_best(
    lines: Sequence[TableLine], columns: Sequence[Column], source: Source
) -> list[TableLine]:
    """Return `lines` with the best entry of a column marked where it is separated from the second.

    Separated means that a 95 % interval for their difference, over the seeds that both have and
    over test images, excludes zero.
    """
    lines = list(lines)
    for index, column in enumerate(columns):
        if not column.compared:
            continue
        rated = [(line.entries[index].mean, n) for n, line in enumerate(lines)]
        order = sorted((-mean, n) for mean, n in rated if mean is not None)
        if len(order) < 2:
            continue
        first, second = order[0][1], order[1][1]
        if _separated(lines[first].entries[index], lines[second].entries[index], source):
            entries = list(lines[first].entries)
            entries[index] = replace(entries[index], best=True)
            lines[first] = replace(lines[first], entries=tuple(entries))
    return lines


def _separated(best: Entry, second: Entry, source: Source) -> bool:
    ours = {row.seed: row for row in best.rows}
    theirs = {row.seed: row for row in second.rows}
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return False
    differences = [(a.value or 0.0) - (b.value or 0.0) for a, b in pairs]
    low, _ = paired_interval(differences, _image_variance(pairs, source))
    return low > 0


def _image_variance(pairs: Sequence[tuple[Row, Row]], source: Source) -> float:
    outcomes = [(source.outcomes(a), source.outcomes(b)) for a, b in pairs]
    paired = [a - b for a, b in outcomes if a is not None and b is not None and a.shape == b.shape]
    if len(paired) == len(pairs) and len({difference.shape for difference in paired}) == 1:
        return paired_image_variance(np.stack(paired))
    images = [row.n for pair in pairs for row in pair if row.n]
    if not images:
        return inf
    means = [float(np.mean([pair[side].value or 0.0 for pair in pairs])) for side in (0, 1)]
    return unpaired_image_variance(means, min(images))
