"""Which epoch's network is the one that a run is judged by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Snapshot = TypeVar("Snapshot")

TARGET_WINDOW = 0.015
"""A row with a target may choose among epochs whose training accuracy is this close to it."""
MAXIMUM_WINDOW = 0.005
"""A row without a target: among those this close to the largest training accuracy of the run."""


@dataclass(frozen=True)
class Candidate(Generic[Snapshot]):
    """One epoch that may be chosen."""

    epoch: int
    accuracy: float
    """Training accuracy after the epoch."""
    score: float
    """Validation accuracy under the selection attack; NaN if the epoch is not eligible."""
    snapshot: Snapshot
    regularised: bool = True
    """Whether the strength that is driven to the target had any effect."""


@dataclass
class Choice(Generic[Snapshot]):
    """Follows one run and keeps no more networks than may still be chosen.

    Eligible are epochs after warm-up whose training accuracy is near the target, or near the
    maximum of the run; of these the one with the highest validation accuracy under attack is
    chosen. The attack alone would pick a network after one epoch: hardly trained, flat and
    inaccurate. An epoch in which the driven strength had no effect is not eligible either: the
    network passes its target while it learns, as any method would. If no epoch is eligible, the
    nearest to the target is chosen, of those with an effect if there are any; it is flagged
    `target_missed` where it is not near.
    """

    target: float | None
    warmup: int
    candidates: list[Candidate[Snapshot]]

    def offer(
        self,
        epoch: int,
        accuracy: float,
        score: Callable[[], float],
        snapshot: Callable[[], Snapshot],
        regularised: bool = True,
    ) -> float | None:
        """Return the score of an epoch if it had to be computed, having considered the epoch.

        `score` and `snapshot` are called only for an epoch that can still be chosen.
        """
        if epoch <= self.warmup or accuracy != accuracy:
            return None
        if self.target is None:
            return self._offer_near_maximum(epoch, accuracy, score, snapshot)
        return self._offer_near_target(self.target, epoch, accuracy, regularised, score, snapshot)

    def chosen(self) -> tuple[Candidate[Snapshot], tuple[str, ...]] | None:
        """Return the chosen epoch and the flags of its rows; None if no epoch was offered."""
        if not self.candidates:
            return None
        best = max(self.candidates, key=lambda c: (c.score, c.accuracy))
        missed = self.target is not None and not _near(best.accuracy, self.target)
        return best, ("target_missed",) if missed else ()

    def _offer_near_target(
        self,
        target: float,
        epoch: int,
        accuracy: float,
        regularised: bool,
        score: Callable[[], float],
        snapshot: Callable[[], Snapshot],
    ) -> float | None:
        def rank(accuracy: float, score: float, regularised: bool) -> tuple[bool, bool, float]:
            scored = not math.isnan(score)
            return scored, regularised, score if scored else -abs(accuracy - target)

        value = score() if regularised and _near(accuracy, target) else math.nan
        held = self.candidates[0] if self.candidates else None
        if held is None or rank(accuracy, value, regularised) > rank(
            held.accuracy, held.score, held.regularised
        ):
            self.candidates = [Candidate(epoch, accuracy, value, snapshot(), regularised)]
        return None if math.isnan(value) else value

    def _offer_near_maximum(
        self,
        epoch: int,
        accuracy: float,
        score: Callable[[], float],
        snapshot: Callable[[], Snapshot],
    ) -> float | None:
        maximum = max([accuracy, *(c.accuracy for c in self.candidates)])
        if accuracy < maximum - MAXIMUM_WINDOW:
            return None
        value = score()
        # The maximum of the whole run is not known yet: keep whatever is not beaten in both.
        rivals = [c for c in self.candidates if c.accuracy >= maximum - MAXIMUM_WINDOW]
        if any(c.accuracy >= accuracy and c.score >= value for c in rivals):
            self.candidates = rivals
            return value
        rivals = [c for c in rivals if c.accuracy > accuracy or c.score > value]
        self.candidates = [*rivals, Candidate(epoch, accuracy, value, snapshot())]
        return value


def _near(accuracy: float, target: float) -> bool:
    return abs(accuracy - target) <= TARGET_WINDOW
