"""Sources of a table's rows: a run, a folder of runs, or a file of rows."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lipbench.storage.files import StorageError
from lipbench.storage.outcomes import read_outcomes
from lipbench.storage.results import (
    PlanMissing,
    collect,
    disagreements,
    has_cells,
    read_plan,
    store,
    tenable,
)
from lipbench.storage.rows import Read, Row, read_rows


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows of one run."""

    name: str
    rows: tuple[Row, ...]
    cells: Mapping[str, Path] = field(default_factory=dict)
    """Folder of each cell by its train key; empty for published results, which have no cells."""

    @property
    def disagreements(self) -> list[str]:
        """Return what is not what was written or cannot be true, a line each."""
        return disagreements(self.rows)

    def outcomes(self, row: Row) -> np.ndarray | None:
        """Return the outcome of each image behind `row`, or None if they were not kept."""
        cell = self.cells.get(row.train_key)
        return None if cell is None else read_outcomes(cell, row)


def load(path: Path) -> list[Source]:
    """Read the runs found at `path`; results.csv is rebuilt first where there are cells.

    Returns:
        One source for each run.

    Raises:
        PlanMissing: If there is neither a run, nor a folder of runs, nor a file of rows.
    """
    if path.name == "results.csv" and has_cells(path.parent):
        return [_run(path.parent)]  # which the file is derived from
    if path.is_file():
        return [_published(path, path.stem)]
    if _is_run(path):
        return [_run(path)]
    folders = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if not folders:
        raise PlanMissing(
            f"{path} holds no results: give the folder that `lipbench run` wrote to, a folder of "
            "such folders, or a results.csv."
        )
    return [_run(folder) for folder in folders]


def rebuild(run: Path, read: Read = read_rows) -> Source:
    """Rebuild results.csv of a run from its cells.

    Args:
        run: The folder of the run.
        read: How files of rows are read.

    Returns:
        What the cells hold, which the file says from now on.

    Raises:
        PlanMissing: If the folder has no plan.
        StorageError: If results.csv cannot be written.
    """
    source = _collected(run, read)
    store(run, source.rows)
    return source


def _is_run(folder: Path) -> bool:
    return (folder / "results.csv").is_file() or has_cells(folder)


def _run(folder: Path) -> Source:
    if not has_cells(folder):
        if (folder / "cells").is_dir():
            raise PlanMissing(f"{folder} has cells and no plan.json: run the benchmark again.")
        return _published(folder / "results.csv", folder.resolve().name)
    source = _collected(folder, read_rows)
    with suppress(StorageError):  # somebody else's folder may be read and not written
        store(folder, source.rows)
    return source


def _published(path: Path, name: str) -> Source:
    """Return the rows of a file; all that can be seen of them is whether they can be true."""
    return Source(name=name, rows=tuple(tenable(read_rows(path))))


def _collected(run: Path, read: Read) -> Source:
    cells = read_plan(run)
    return Source(
        name=run.resolve().name,
        rows=tuple(collect(run, cells, read)),
        cells={cell.key: run / cell.folder for cell in cells},
    )
