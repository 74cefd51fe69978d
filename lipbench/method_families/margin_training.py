"""Margin training: what methods share whose radius grows from epoch to epoch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lipbench.method import Method, Scalars, State, Summary
from lipbench.method_families import margins
from lipbench.networks.net import Net

if TYPE_CHECKING:
    from lipbench.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class MarginTraining(Method):
    """Grow the radius in a straight line, and count the samples that keep it.

    The state holds the share of the radius that is due, and the counts of the epoch. A subclass
    has the radius, and what bounds how far logits rise within it.
    """

    stackable: ClassVar[bool] = True

    ramp: float = 0.5
    """Share of the epochs over which the radius grows to its value."""
    first: float = 0.01
    """Share of the radius in the first epoch, if it grows."""
    iterations: int = 1
    """Steps of power iteration per training step."""

    def __post_init__(self) -> None:
        for field in ("ramp", "first"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(f"{field} must be in [0, 1], got {value}.")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}.")

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or None."""
        if data.task == "classification":
            return None
        return "margins need classes, and the data set is a regression"

    def due(self, like: Tensor) -> State:
        """Return the share of the radius in the first epoch, and empty counts, typed like this."""
        return margins.start(like, self.first if self.ramp > 0 else 1.0)

    def begin_epoch(
        self, net: Net, data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state with counts from 0."""
        return {**state, **margins.restarted(state)}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with the share of the radius in the next epoch."""
        return {**state, **margins.grown(state, summary, self.first, self.ramp)}

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return the share of samples that were certified by what was measured in their step."""
        return margins.report(state)
