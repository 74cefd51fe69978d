"""Figures: what was measured of one work, in seconds and as ratios."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median of the ratios of all repeats, with the smallest and the largest."""

    value: float
    spread: tuple[float, float]

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        """Return the median, the smallest and the largest of the ratios of the repeats."""
        return cls(value=statistics.median(ratios), spread=(min(ratios), max(ratios)))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured of one work."""

    what: str
    """What the ratio is, for people."""
    ratio: Ratio
    ours_s: float
    """Median of seconds, as the next two."""
    plain_s: float | None = None
    eager_s: float | None = None
    baseline_s: tuple[str, float] | None = None
    """What ours is compared with where that is ours, too: its name and its seconds."""
    ratio_eager: Ratio | None = None
    """Eager over ours, where that side exists."""
    peak_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """Memory of each side, see `lipbench.speed.stopwatch`."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other numbers, as values for JSON."""
    remarks: tuple[str, ...] = ()
    """Lines for people."""
    problems: tuple[str, ...] = ()
    """Why the figure cannot be believed: the sides did not do the same."""

    def as_json(self) -> dict[str, Any]:
        """Return the figure as values for JSON."""
        values: dict[str, Any] = {
            "ratio": _number(self.ratio.value),
            "ours_s": self.ours_s,
            "plain_s": self.plain_s,
            "eager_s": self.eager_s,
            "spread": [_number(ratio) for ratio in self.ratio.spread],
        }
        if self.baseline_s is not None:
            values[f"{self.baseline_s[0]}_s"] = self.baseline_s[1]
        if self.ratio_eager is not None:
            values["ratio_eager"] = _number(self.ratio_eager.value)
            values["spread_eager"] = [_number(ratio) for ratio in self.ratio_eager.spread]
        return values | {"peak_bytes": dict(self.peak_bytes), **self.more}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
