"""Run time estimate: a rough guess of how long a run will take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lipbench.storage.results import read_cell_seconds

if TYPE_CHECKING:
    from lipbench.planning.cell import Cell

# Rough figures for two cores of an x86 server; cells that are done correct the guess.
_PRODUCTS_PER_SECOND = 3e10
_SECONDS_PER_STEP = 2e-3
_SECONDS_PER_PASS = 5e-4
_SECONDS_PER_CELL = 0.3
_GRADIENT = 3
"""Forward and backward passes together, in forward passes."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds that the selected cells need in all, and those that are left."""

    total: float
    remaining: float
    measured: bool
    """Whether finished cells of the run corrected the guess."""

    def __str__(self) -> str:
        source = "from the cells already done" if self.measured else "a rough guess for 2 cores"
        left = "" if self.remaining == self.total else f", {duration(self.remaining)} left"
        return f"estimated time {duration(self.total)}{left} ({source})"


def estimate(cells: "Sequence[Cell]", run: Path | None) -> Estimate:
    """Return the time that `cells` need, corrected by those that are done in the folder `run`."""
    works = {}
    for cell in cells:
        if cell.benchmark.name not in works:
            works[cell.benchmark.name] = cell.benchmark.anatomy.forward_products
    guesses = [_guess(cell, works[cell.benchmark.name]) for cell in cells]
    spent = [None if run is None else read_cell_seconds(cell.folder(run)) for cell in cells]
    done = [(guess, real) for guess, real in zip(guesses, spent, strict=True) if real is not None]
    factor = 1.0
    if done and sum(guess for guess, _ in done) > 0:
        factor = sum(real for _, real in done) / sum(guess for guess, _ in done)
    left = [guess for guess, real in zip(guesses, spent, strict=True) if real is None]
    return Estimate(
        total=factor * sum(left) + sum(real for _, real in done),
        remaining=factor * sum(left),
        measured=bool(done),
    )


def duration(seconds: float) -> str:
    """Return a duration as a person would say it."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _guess(cell: "Cell", products: float) -> float:
    benchmark, entry, data = cell.benchmark, cell.entry, cell.benchmark.dataset
    samples = data.train_size or data.published_size
    training = entry.training
    epochs = training.epochs * max(1, len(entry.path))
    second = 1 / _PRODUCTS_PER_SECOND
    steps = epochs * math.ceil(samples / training.batch_size)
    train = epochs * samples * entry.method.cost * _GRADIENT * products * second
    train += steps * _SECONDS_PER_STEP * entry.method.cost / len(cell.stack)
    selection = 0.0
    if benchmark.selection != "last":
        attacked = benchmark.selection.size or data.validation_size
        passes = epochs * attacked * benchmark.selection.attack.cost
        selection = passes * _GRADIENT * products * second / 2
    evaluation = benchmark.evaluation
    judged = 0.0
    for attack in evaluation.attack:
        size = attack.size or evaluation.test_size or data.published_test_size
        # Broken samples leave: on average a third of the passes is taken.
        passes = attack.attack.cost * len(attack.epsilon) / 3
        judged += passes * (size * _GRADIENT * products * second + _SECONDS_PER_PASS)
    checkpoints = 2 + len(entry.path)
    return train + selection + checkpoints * judged + _SECONDS_PER_CELL
