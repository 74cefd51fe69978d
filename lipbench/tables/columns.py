"""Columns of a table: which of the measured numbers become one."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lipbench.storage.rows import SELECTION, UNVERIFIED, Row
from lipbench.tables.labels import display_name

GAP = "lipschitz_ratio"
"""Metric of the smallest upper Lipschitz bound over the largest lower one."""
MEDIAN_RADIUS = "certified_radius_quantile[0.5]"
_MOST_NAMES = 3
"""More names of strengths than these are not spelt out in a heading."""

Printed = Literal["train", "test", "noise", "attack", "strength"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table and the rows it is made of."""

    heading: str
    metric: str
    split: str = ""
    """As for the next three, rows with any value are taken if it is empty or None."""
    estimator: str = ""
    norm: float | None = None
    epsilon: float | None = None
    note: str = ""
    side: Literal["", "lower", "upper"] = ""
    """Which side of the truth the numbers are on; of several for one network, the best counts."""
    percent: bool = False
    compared: bool = False
    """Whether more is better, so that the best may be set in bold."""
    printed: Printed | None = None
    """The column of the paper's table that it corresponds to."""

    def takes(self, row: Row) -> bool:
        """Return whether `row` is a measurement for this column, and not unverified."""
        return (
            UNVERIFIED not in row.flags
            and self.metric in (row.metric, row.metric.partition("[")[0])
            and (not self.side or row.side in (self.side, "exact"))
            and self.split in ("", row.split)
            and self.estimator in ("", row.estimator)
            and self.norm in (None, row.norm)
            and self.epsilon in (None, row.epsilon)
        )

    def best(self, rows: Sequence[Row]) -> Row:
        """Return the row that says most about one network: the tightest of valid bounds."""
        if self.metric == "lipschitz":  # a bound for a box is none for all of space
            rows = [row for row in rows if row.domain == "all"] or rows
        if not self.side:
            return rows[0]
        pick: Callable[..., Row] = max if self.side == "lower" else min
        return pick(rows, key=lambda row: row.value)


def choose(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Return the columns for the rows of one benchmark and one checkpoint.

    Train, test, noise, the l2 attack and the strengths as in the CLIP paper's Table 1; then the
    l∞ attack, certified accuracy, the radius within which half of the samples are certified, and
    the Lipschitz constant from both sides with the ratio of these. Of several attacks
    the one that chose the checkpoints is taken if its rows say so, else the first; a column that
    nothing was measured for is left out.
    """
    columns = [*_accuracies(rows), *_attack(rows, 2.0), *_strengths(rows)]
    columns += [*_attack(rows, float("inf")), *_certified(rows), *_radius(rows)]
    return (*columns, *lipschitz_columns(rows), *_gap(rows))


def lipschitz_columns(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of the lower and the upper bounds, in l2 if there are any."""
    rows = [row for row in rows if row.metric == "lipschitz"]
    sides: tuple[Literal["lower", "upper"], ...] = ("lower", "upper")
    columns = [
        Column(heading=f"Lipschitz {side}", metric="lipschitz", norm=norm, side=side)
        for norm in _norms(rows)[:1]
        for side in sides
    ]
    return [column for column in columns if any(column.takes(row) for row in rows)]


def _accuracies(rows: Sequence[Row]) -> list[Column]:
    columns = []
    metrics = list(dict.fromkeys(row.metric for row in rows))
    if "train_accuracy" in metrics:
        columns.append(
            Column(heading="Train", metric="train_accuracy", percent=True, printed="train")
        )
    if "test_accuracy" in metrics:
        columns.append(
            Column(
                heading="Test", metric="test_accuracy", percent=True, compared=True, printed="test"
            )
        )
    for split in dict.fromkeys(row.split for row in rows if row.metric == "mse"):
        columns.append(
            Column(heading=f"{split} mse".strip().capitalize(), metric="mse", split=split)
        )
    for metric in metrics:
        if match := re.fullmatch(r"noise_accuracy\[(.*)\]", metric):
            note = ", ".join(setting.replace("=", " = ") for setting in match[1].split(","))
            columns.append(
                Column(
                    heading="Noise",
                    metric=metric,
                    note=note,
                    percent=True,
                    compared=True,
                    printed="noise",
                )
            )
            break
    return columns


def _attack(rows: Sequence[Row], norm: float) -> list[Column]:
    rows = [row for row in rows if row.metric == "robust_accuracy" and row.norm == norm]
    if not rows:
        return []
    # The paper's column is the attack that chose; in l∞ that attack would be no independent judge.
    chose = [row for row in rows if SELECTION in row.flags and norm == 2]
    estimator = (chose or rows)[0].estimator
    radii = sorted(
        {row.epsilon for row in chose or rows if row.estimator == estimator and row.epsilon}
    )
    # l2: the largest radius, the paper's; l∞: the middle one, where methods differ most.
    epsilon = (radii[-1] if norm == 2 else radii[(len(radii) - 1) // 2]) if radii else None
    return [
        Column(
            heading=display_name(estimator),
            metric="robust_accuracy",
            estimator=estimator,
            norm=norm,
            epsilon=epsilon,
            side="upper",
            percent=True,
            compared=True,
            printed="attack" if norm == 2 else None,
        )
    ]


def _strengths(rows: Sequence[Row]) -> list[Column]:
    """Return one column for all methods, most of which have a strength of their own name."""
    matches = (re.fullmatch(r"strength\[(.*)\]", row.metric) for row in rows)
    names = dict.fromkeys(match[1] for match in matches if match)
    if not names:
        return []
    heading = ", ".join(names) if len(names) <= _MOST_NAMES else "Strength"
    return [Column(heading=heading, metric="strength", printed="strength")]


def _certified(rows: Sequence[Row]) -> list[Column]:
    rows = [row for row in rows if row.metric == "certified_accuracy" and row.epsilon]
    # The smallest radius: certificates are so much weaker than attacks that larger ones say 0.
    return [
        Column(
            heading="Certified",
            metric="certified_accuracy",
            norm=norm,
            epsilon=min(row.epsilon for row in rows if row.norm == norm and row.epsilon),
            side="lower",
            percent=True,
            compared=True,
        )
        for norm in _norms(rows)
    ]


def _radius(rows: Sequence[Row]) -> list[Column]:
    norms = _norms(row for row in rows if row.metric == MEDIAN_RADIUS)[:1]
    return [
        Column(heading="Radius", metric=MEDIAN_RADIUS, norm=norm, side="lower") for norm in norms
    ]


def _gap(rows: Sequence[Row]) -> list[Column]:
    norms = _norms(row for row in rows if row.metric == GAP)[:1]
    return [Column(heading="Ratio", metric=GAP, norm=norm) for norm in norms]


def _norms(rows: Iterable[Row]) -> list[float]:
    """Return the norms of rows, l2 first."""
    norms = dict.fromkeys(row.norm for row in rows if row.norm is not None)
    return sorted(norms, key=lambda norm: norm != 2)
