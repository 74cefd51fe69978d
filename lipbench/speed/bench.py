"""Settings of the measurement: how much is measured, where, and on what."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from lipbench.speed.samples import Samples, mnist
from lipbench.speed.stopwatch import TimedSide, Times, alternate
from lipbench.speed.tables import Table, digits


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured; the defaults are those of published figures."""

    stack: int = 16
    """Networks that this project trains at once."""
    pairs: int = 500
    few_pairs: int = 64
    epochs: int = 3
    """Of each training; after these the accuracies of all sides are compared."""
    seeds: int = 3
    tolerance: float = 0.005
    """By how much the mean test accuracies of two sides may differ."""
    attack_steps: int = 100
    attack_batches: tuple[int, ...] = (500, 1_000, 10_000)
    """Batch sizes of the yardstick; the fastest counts, in every repeat anew."""
    run: Table = field(default_factory=digits)
    """A configuration whose run is compared with its training and evaluation alone."""
    cells: int = 1_000
    """Finished cells that a run finds."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every work needs."""

    device: torch.device
    repeats: int
    scale: Scale = field(default_factory=Scale)
    read: Callable[[torch.device], Samples] = mnist
    say: Callable[[str], None] = lambda text: None
    """Is told how far the work is."""

    @cached_property
    def samples(self) -> Samples:
        """Return the samples of all sides."""
        return self.read(self.device)

    def alternate(self, sides: dict[str, TimedSide], times: int = 1) -> Times:
        """Run the sides in turn, `times` as often as asked for.

        Returns:
            Their times.
        """
        return alternate(sides, times * self.repeats, self.device, self.say)
