"""Which epoch's network is the one that a run is judged by."""

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
    """Validation accuracy under the selection attack."""
    snapshot: Snapshot


@dataclass
class Choice(Generic[Snapshot]):
    """Follows one run and keeps no more networks than may still be chosen.

    Eligible are epochs after warm-up whose training accuracy is near the target, or near the
    maximum of the run; of these the one with the highest validation accuracy under attack is
    chosen. The attack alone would pick a network after one epoch: hardly trained, flat and
    inaccurate. If no epoch is eligible, the one nearest to the target is chosen and flagged
    `target_missed`.
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
    ) -> float | None:
        """Return the score of an epoch if it had to be computed, having considered the epoch.

        `score` and `snapshot` are called only for an epoch that can still be chosen.
        """
        if epoch <= self.warmup or accuracy != accuracy:
            return None
        if self.target is None:
            return self._offer_near_maximum(epoch, accuracy, score, snapshot)
        return self._offer_near_target(self.target, epoch, accuracy, score, snapshot)

    def chosen(self) -> tuple[Candidate[Snapshot], tuple[str, ...]] | None:
        """Return the chosen epoch and the flags of its rows; None if no epoch was offered."""
        if not self.candidates:
            return None
        best = max(self.candidates, key=lambda c: (c.score, c.accuracy))
        missed = self.target is not None and abs(best.accuracy - self.target) > TARGET_WINDOW
        return best, ("target_missed",) if missed else ()

    def _offer_near_target(
        self,
        target: float,
        epoch: int,
        accuracy: float,
        score: Callable[[], float],
        snapshot: Callable[[], Snapshot],
    ) -> float | None:
        held = self.candidates[0] if self.candidates else None
        held_is_near = held is not None and abs(held.accuracy - target) <= TARGET_WINDOW
        if abs(accuracy - target) > TARGET_WINDOW:
            nearer = held is None or abs(accuracy - target) < abs(held.accuracy - target)
            if not held_is_near and nearer:
                self.candidates = [Candidate(epoch, accuracy, float("nan"), snapshot())]
            return None
        value = score()
        if held is None or not held_is_near or value > held.score:
            self.candidates = [Candidate(epoch, accuracy, value, snapshot())]
        return value

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
