"""results.csv, derived from the cells of a plan."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lipbench.storage.cell_folder import STATES, CellFolder, Status
from lipbench.storage.files import StorageError, read_json, update_json, update_text
from lipbench.storage.refuted_rows import with_refuted
from lipbench.storage.rows import Read, Row, RowsDamaged, format_rows, read_rows

_SCHEMA = 1
_CHECKPOINTS = ("chosen", "last")


class PlanMissing(Exception):
    """A folder is not the folder of a run; the message says what it lacks."""


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """What plan.json says about one cell; everything a table needs if the cell never ran."""

    key: str
    """The train key."""
    benchmark: str
    method: str
    label: str
    params: str
    """JSON, as in `lipbench.storage.rows`; the same holds for `dataset` and `model`."""
    seed: int
    folder: str
    """Folder of the cell, relative to that of the run, with forward slashes."""
    dataset: str = "{}"
    model: str = "{}"
    evaluations: tuple[str, ...] = ()
    """Eval keys in the order of the configuration; empty takes whatever the cell has."""


@dataclass(frozen=True, kw_only=True)
class StatusLine:
    """How far one method of one benchmark is."""

    benchmark: str
    label: str
    counts: dict[str, int] = field(default_factory=dict)
    """Number of cells in each state; a cell that was never begun is `missing`."""


@dataclass(frozen=True, kw_only=True)
class StatusTable:
    """How far a run is."""

    lines: tuple[StatusLine, ...]
    problems: tuple[str, ...]
    """One line for each cell that ended badly."""
    stale: tuple[Path, ...]
    """Folders of cells that no longer belong to the plan."""

    @property
    def states(self) -> tuple[str, ...]:
        """Return the states that occur, `done` first."""
        order = ("done", *(state for state in STATES if state != "done"), "missing")
        seen = {state for line in self.lines for state, n in line.counts.items() if n}
        return tuple(state for state in order if state == "done" or state in seen)

    def __str__(self) -> str:
        from tabulate import tabulate

        head = ("benchmark", "method", *self.states)
        body = [
            (line.benchmark, line.label, *(line.counts.get(s, 0) for s in self.states))
            for line in self.lines
        ]
        text = [tabulate(body, headers=head), *self.problems]
        text += [f"stale, not in the plan: {path}" for path in self.stale]
        return "\n".join(text)


def write_plan(run: Path, cells: Iterable[PlannedCell]) -> None:
    """Write plan.json of the run in folder `run`, unless it says the same already."""
    table = [{**vars(cell), "evaluations": list(cell.evaluations)} for cell in cells]
    update_json(run / "plan.json", {"schema": _SCHEMA, "cells": table})


def read_plan(run: Path) -> list[PlannedCell]:
    """Read the cells that plan.json of a run lists.

    Returns:
        The cells, in its order.

    Raises:
        PlanMissing: If there is no plan, or one of another schema.
    """
    table = read_json(run / "plan.json")
    if table is None:
        raise PlanMissing(f"{run} is not the folder of a run: it has no plan.json.{_hint(run)}")
    if not isinstance(table, dict) or table.get("schema") != _SCHEMA:
        raise PlanMissing(
            f"{run / 'plan.json'} is not a plan of schema {_SCHEMA}: run the benchmark again."
        )
    return [_planned(cell) for cell in table["cells"]]


def has_cells(run: Path) -> bool:
    """Return whether results.csv of a run can be rebuilt; a published one has no cells."""
    return (run / "cells").is_dir() and (run / "plan.json").is_file()


def collect(run: Path, cells: Sequence[PlannedCell], read: Read = read_rows) -> list[Row]:
    """Collect the rows of all cells of a plan.

    A cell that is not done gives one row, metric `cell`, status `failed`, with its state as a
    flag and no value. So does an evaluation that is missing (flag `unevaluated`) or whose file is
    damaged (flag `damaged`); the other evaluations of that cell still count. A Lipschitz value that
    nothing proves, and that a proved one contradicts, becomes `invalid`. A benchmark of which no
    cell was begun gives nothing: it was not asked for.

    Returns:
        The rows, in the order of the plan, of each cell those of the chosen checkpoint first.
    """
    folders = [CellFolder(run / cell.folder) for cell in cells]
    statuses = list(zip(cells, folders, [folder.read_status() for folder in folders], strict=True))
    begun = {cell.benchmark for cell, _, status in statuses if status is not None}
    return [
        row
        for cell, folder, status in statuses
        if cell.benchmark in begun
        for row in _rows_of(cell, folder, status, read)
    ]


def write_results(run: Path, read: Read = read_rows) -> Path | None:
    """Write results.csv anew from the cells.

    Returns:
        The path of the file, None where there are no cells.
    """
    if not has_cells(run):
        return None
    return store(run, collect(run, read_plan(run), read))


def store(run: Path, rows: Iterable[Row]) -> Path:
    """Write `rows` to results.csv, if it holds others.

    Returns:
        The path of the file.
    """
    path = run / "results.csv"
    update_text(path, format_rows(rows))
    return path


def stale(run: Path, cells: Sequence[PlannedCell]) -> list[Path]:
    """Return the folders of cells that are on disk and not in the plan, sorted."""
    planned = {run / cell.folder for cell in cells}
    on_disk = {path.parent for path in (run / "cells").glob("*/*/*/status.json")}
    return sorted(on_disk - planned)


def read_cell_seconds(folder: CellFolder) -> float | None:
    """Read how long a finished cell took.

    Returns:
        Its seconds, None if it is not done.
    """
    status = folder.read_status()
    return status.seconds if status and status.state == "done" else None


def status_table(run: Path) -> StatusTable:
    """Read how far each method of each benchmark of a run is.

    Returns:
        A line for each method, and what is wrong with single cells.
    """
    cells = read_plan(run)
    lines: dict[tuple[str, str], StatusLine] = {}
    problems = []
    for cell in cells:
        name = (cell.benchmark, cell.label)
        line = lines.setdefault(name, StatusLine(benchmark=name[0], label=name[1]))
        status = CellFolder(run / cell.folder).read_status()
        state = status.state if status else "missing"
        line.counts[state] = line.counts.get(state, 0) + 1
        if status and state not in ("done", "running"):
            problems.append(_problem(run, cell, status))
    return StatusTable(
        lines=tuple(lines.values()), problems=tuple(problems), stale=tuple(stale(run, cells))
    )


def _hint(folder: Path) -> str:
    """Return what to give instead of a folder that holds runs, or results without their cells."""
    if (folder / "results.csv").exists():
        return " It holds published results, which `lipbench table` shows."
    inside = sorted(str(path.parent) for path in folder.glob("*/plan.json"))
    return f" Give one of its runs: {', '.join(inside)}." if inside else ""


def _problem(run: Path, cell: PlannedCell, status: Status) -> str:
    reason = ": ".join(filter(None, (status.exception, status.message)))
    return (
        f"{cell.benchmark}, {cell.label}, seed {cell.seed}: {status.state}"
        f"{f' ({reason})' if reason else ''}, see {run / cell.folder}"
    )


def _rows_of(cell: PlannedCell, folder: CellFolder, status: Status | None, read: Read) -> list[Row]:
    if status is None or status.state != "done":
        return [_lacking(cell, status.state if status else "missing")]
    paths = [folder.rows(key) for key in cell.evaluations] or sorted(folder.path.glob("rows-*.csv"))
    rows, lacking = [], []
    for path in paths:
        try:
            rows += read(path)
        except RowsDamaged:
            lacking.append(_lacking(cell, "damaged", path.name))
        except StorageError:
            lacking.append(_lacking(cell, "unevaluated", path.name))
    if not paths:
        lacking.append(_lacking(cell, "unevaluated"))
    return lacking + sorted(with_refuted(rows), key=_checkpoint_order)


def _checkpoint_order(row: Row) -> tuple[int, str]:
    if row.checkpoint in _CHECKPOINTS:
        return _CHECKPOINTS.index(row.checkpoint), ""
    return len(_CHECKPOINTS), row.checkpoint


def _lacking(cell: PlannedCell, *flags: str) -> Row:
    return Row(
        benchmark=cell.benchmark,
        dataset=cell.dataset,
        model=cell.model,
        method=cell.method,
        params=cell.params,
        seed=cell.seed,
        metric="cell",
        status="failed",
        flags=flags,
        train_key=cell.key,
    )


def _planned(table: dict[str, Any]) -> PlannedCell:
    known = {f.name for f in fields(PlannedCell)}
    values = {name: value for name, value in table.items() if name in known}
    return PlannedCell(**values | {"evaluations": tuple(values.get("evaluations", ()))})
