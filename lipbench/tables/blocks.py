"""A table as values: blocks of lines of entries."""

from dataclasses import dataclass

from lipbench.storage.rows import Row
from lipbench.tables.columns import Column
from lipbench.tables.statistics import summary


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one column says about one method."""

    rows: tuple[Row, ...] = ()
    """One row per seed that has a number."""
    best: bool = False
    """Whether the method is better than the second best beyond chance."""
    printed: float | None = None
    """The paper's number, in percent if it is an accuracy."""

    @property
    def values(self) -> dict[int, float]:
        """Return the number of each seed."""
        return {row.seed: row.value for row in self.rows if row.value is not None}

    @property
    def mean(self) -> float | None:
        """Return the mean over the seeds that have a number, None if no seed has."""
        return summary(list(self.values.values()))[0] if self.rows else None

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation over seeds, None for fewer than two."""
        return summary(list(self.values.values()))[1] if self.rows else None


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """One method: a name with its parameters."""

    label: str
    method: str
    params: str
    seeds: int
    """Number of seeds that were planned."""
    failed: tuple[tuple[int, str], ...]
    """Seeds that have not finished, each with its state."""
    missing: tuple[tuple[str, int], ...]
    """What could not be measured and why, each with the number of seeds of which."""
    entries: tuple[Entry, ...]

    @property
    def done(self) -> int:
        """Return the number of seeds that have finished."""
        return self.seeds - len(self.failed)


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """The table of one benchmark."""

    title: str
    benchmark: str
    checkpoint: str
    columns: tuple[Column, ...]
    lines: tuple[TableLine, ...]
    warnings: tuple[str, ...]
    """What a reader must know about single rows."""
    input_scales: tuple[tuple[float, ...], ...] = ()
    """For each line the standard deviations by which its networks divide their inputs."""
