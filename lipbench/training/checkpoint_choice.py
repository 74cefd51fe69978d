"""Model selection: which epoch's checkpoint a run is judged by."""

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

    def wants(self, epoch: int, accuracy: float, regularised: bool = True) -> bool:
        """Return whether the score of an epoch is needed: whether it is eligible so far."""
        if epoch <= self.warmup or accuracy != accuracy:
            return False
        if self.target is not None:
            return regularised and _near(accuracy, self.target)
        return accuracy >= self._maximum(accuracy) - MAXIMUM_WINDOW

    def offer(
        self,
        epoch: int,
        accuracy: float,
        score: float | None,
        snapshot: Callable[[], Snapshot],
        regularised: bool = True,
    ) -> None:
        """Consider an epoch.

        `score` must be given for an epoch whose score is wanted; `snapshot` is called only for an
        epoch that can still be chosen.
        """
        if epoch <= self.warmup or accuracy != accuracy:
            return
        value = math.nan if score is None else score
        if self.target is not None:
            self._offer_near_target(self.target, epoch, accuracy, value, regularised, snapshot)
        elif score is not None:
            self._offer_near_maximum(epoch, accuracy, value, snapshot)

    def chosen(self) -> tuple[Candidate[Snapshot], tuple[str, ...]] | None:
        """Return the chosen epoch and the flags of its rows; None if no epoch was offered."""
        if not self.candidates:
            return None
        best = max(self.candidates, key=lambda c: (c.score, c.accuracy))
        missed = self.target is not None and not _near(best.accuracy, self.target)
        return best, ("target_missed",) if missed else ()

    def _maximum(self, accuracy: float) -> float:
        return max([accuracy, *(c.accuracy for c in self.candidates)])

    def _offer_near_target(
        self,
        target: float,
        epoch: int,
        accuracy: float,
        score: float,
        regularised: bool,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        def rank(accuracy: float, score: float, regularised: bool) -> tuple[bool, bool, float]:
            scored = not math.isnan(score)
            return scored, regularised, score if scored else -abs(accuracy - target)

        held = self.candidates[0] if self.candidates else None
        if held is None or rank(accuracy, score, regularised) > rank(
            held.accuracy, held.score, held.regularised
        ):
            self.candidates = [Candidate(epoch, accuracy, score, snapshot(), regularised)]

    def _offer_near_maximum(
        self, epoch: int, accuracy: float, score: float, snapshot: Callable[[], Snapshot]
    ) -> None:
        # The maximum of the whole run is not known yet: keep whatever is not beaten in both.
        least = self._maximum(accuracy) - MAXIMUM_WINDOW
        rivals = [c for c in self.candidates if c.accuracy >= least]
        if not any(c.accuracy >= accuracy and c.score >= score for c in rivals):
            rivals = [c for c in rivals if c.accuracy > accuracy or c.score > score]
            rivals.append(Candidate(epoch, accuracy, score, snapshot()))
        self.candidates = rivals


def _near(accuracy: float, target: float) -> bool:
    return abs(accuracy - target) <= TARGET_WINDOW
