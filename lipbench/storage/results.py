"""results.csv, derived from the cells of a plan."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lipbench.storage.cell_folder import STATES, CellFolder, Status
from lipbench.storage.files import (
    Damaged,
    StorageError,
    quarantine,
    read_json,
    update_json,
    update_text,
)
from lipbench.storage.refuted_rows import with_refuted
from lipbench.storage.row_checks import foreign, untenable
from lipbench.storage.rows import Read, Row, format_rows, read_rows
from lipbench.storage.seals import Disagreement, Unsealed, sealed_rows

_SCHEMA = 1
_KEY = re.compile(r"\w[\w.-]*")
_CHECKPOINTS = ("chosen", "last")
DAMAGED = "damaged"
"""Flag of the row that stands for an evaluation whose files are not what was written."""
_UNTENABLE = "cannot be true: "
"""Beginning of the flag of a row that was stored as a number and is none any more."""


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
    disagreements: tuple[str, ...] = ()
    """One line for each stored number or file that is not what was written or cannot be true."""

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
        text = [tabulate(body, headers=head), *self.problems, *self.disagreements]
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
        Damaged: If it does not say cells; it has been set aside.
    """
    table = read_json(run / "plan.json")
    if table is None:
        raise PlanMissing(f"{run} is not the folder of a run: it has no plan.json.{_hint(run)}")
    if not isinstance(table, dict) or table.get("schema") != _SCHEMA:
        raise PlanMissing(
            f"{run / 'plan.json'} is not a plan of schema {_SCHEMA}: run the benchmark again."
        )
    try:
        return [_planned(cell) for cell in table["cells"]]
    except (TypeError, ValueError, KeyError) as error:
        path = run / "plan.json"
        raise Damaged(path, quarantine(path), f"no list of cells: {error}") from error


def has_cells(run: Path) -> bool:
    """Return whether results.csv of a run can be rebuilt; a published one has no cells."""
    return (run / "cells").is_dir() and os.path.lexists(run / "plan.json")


def collect(run: Path, cells: Sequence[PlannedCell], read: Read = read_rows) -> list[Row]:
    """Collect the rows of all cells of a plan.

    A cell that is not done gives one row, metric `cell`, status `failed`, with its state as a
    flag and no value. So does an evaluation that is missing (flag `unevaluated`) or of which a file
    is not what was written (flag `damaged`); the other evaluations of that cell still count, and
    those of their rows that cannot be true beside each other are `invalid`, and so is a Lipschitz
    value that nothing proves and that a proved one contradicts. A benchmark of which no
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


def tenable(rows: Sequence[Row]) -> list[Row]:
    """Return `rows`, of which those that cannot be true are `invalid`, for the reason they say."""
    reasons: dict[int, str] = {}
    for row, reason in (*untenable(rows), *foreign(rows)):
        reasons.setdefault(id(row), reason)
    return [_refuted(row, reasons[id(row)]) if id(row) in reasons else row for row in rows]


def disagreements(rows: Iterable[Row]) -> list[str]:
    """Return what `collect` and `tenable` found wrong, one line for each file and each reason."""
    wrong = [row for row in rows if row.flags and (DAMAGED in row.flags or _is_refuted(row))]
    return list(dict.fromkeys(map(_disagreement, wrong)))


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
        A line for each method, what is wrong with single cells, and with stored numbers.
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
        lines=tuple(lines.values()),
        problems=tuple(problems),
        stale=tuple(stale(run, cells)),
        disagreements=tuple(disagreements(collect(run, cells))),
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
    keys = cell.evaluations or _measured(folder)
    rows, lacking = [], []
    for key in keys:
        try:
            rows += sealed_rows(folder, key, _blank(cell), read)
        except Disagreement as damage:
            name = next(iter(damage.problems)).name
            lacking.append(_lacking(cell, DAMAGED, name, _flag(str(damage))))
        except (Unsealed, StorageError):
            lacking.append(_lacking(cell, "unevaluated", folder.rows(key).name))
    if not keys:
        lacking.append(_lacking(cell, "unevaluated"))
    return lacking + sorted(tenable(with_refuted(rows)), key=_checkpoint_order)


def _measured(folder: CellFolder) -> list[str]:
    """Return the eval keys of all evaluations that a cell has, sorted."""
    paths = (*folder.path.glob("rows-*.csv"), *folder.path.glob("seal-*.json"))
    return sorted({path.stem.partition("-")[2] for path in paths})


def _refuted(row: Row, reason: str) -> Row:
    flags = (*row.flags, _flag(_UNTENABLE + reason))
    return replace(row, status="invalid", flags=flags)


def _is_refuted(row: Row) -> bool:
    return row.flags[-1].startswith(_UNTENABLE)


def _disagreement(row: Row) -> str:
    where = f" of {row.checkpoint}" if row.checkpoint else ""
    return f"{row.benchmark}, {row.method}, seed {row.seed}: {row.flags[-1]}{where}"


def _flag(text: str) -> str:
    return " ".join(text.replace(";", ",").split())


def _checkpoint_order(row: Row) -> tuple[int, str]:
    if row.checkpoint in _CHECKPOINTS:
        return _CHECKPOINTS.index(row.checkpoint), ""
    return len(_CHECKPOINTS), row.checkpoint


def _lacking(cell: PlannedCell, *flags: str) -> Row:
    return replace(_blank(cell), metric="cell", status="failed", flags=flags)


def _blank(cell: PlannedCell) -> Row:
    """Return a row with all the columns that a cell fixes."""
    return Row(
        benchmark=cell.benchmark,
        dataset=cell.dataset,
        model=cell.model,
        method=cell.method,
        params=cell.params,
        seed=cell.seed,
        metric="",
        train_key=cell.key,
    )


def _planned(table: dict[str, Any]) -> PlannedCell:
    """Return the cell that a table of plan.json says.

    Raises:
        ValueError: If it says none; likewise TypeError.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{str(table)[:40]} is no cell")
    known = {f.name for f in fields(PlannedCell)}
    values = {name: value for name, value in table.items() if name in known}
    cell = PlannedCell(**values | {"evaluations": tuple(values.get("evaluations", ()))})
    texts = [value for name, value in vars(cell).items() if name not in ("seed", "evaluations")]
    if type(cell.seed) is not int or not all(
        isinstance(t, str) for t in (*texts, *cell.evaluations)
    ):
        raise ValueError(f"{cell.benchmark!r} has a field of another type")
    if not all(_KEY.fullmatch(key) for key in (cell.key, *cell.evaluations)):
        raise ValueError(f"{cell.key!r} is no key")
    home = CellFolder.of(Path(), cell.benchmark, cell.method, cell.key).path.as_posix()
    if cell.folder != home:
        raise ValueError(f"{cell.folder!r} is not the folder {home!r}")
    return cell
