"""The state of a cell: done, interrupted, or with work left."""

from dataclasses import dataclass
from pathlib import Path

from lipbench.planning.cell import Cell
from lipbench.storage.cell_folder import CellFolder, Status
from lipbench.storage.files import StorageError
from lipbench.storage.row_checks import untenable
from lipbench.storage.rows import Read, Row, read_rows
from lipbench.storage.seals import Disagreement, Unsealed, sealed_rows


@dataclass(frozen=True, kw_only=True)
class CellState:
    """How one cell stands before it is worked on."""

    state: str
    """As in status.json; `missing` if it was never begun, `running` if a live process holds it."""
    needs_work: bool
    interruption: str
    """Why a cell that was begun has no end, or one that cannot be believed; empty if it has one or
    was never begun."""


def cell_state(cell: Cell, run: Path, retry: bool = True, read: Read = read_rows) -> CellState:
    """Read how a cell stands in the folder of a run.

    Args:
        cell: The cell.
        run: The folder.
        retry: Whether a cell that failed is to be tried again; one that diverged never is.
        read: How files of rows are read.

    Returns:
        Its state.
    """
    folder = cell.folder(run)
    status = folder.read_status()
    interruption = _interruption(folder, status)
    if status is None or status.state in ("running", "killed"):
        needs_work = True
    elif status.state == "nan" and not status.checkpoints:
        # Training has no chance in it: it would diverge again, and so would train its whole stack.
        needs_work = False
    elif status.state != "done":
        needs_work = retry
    else:
        needs_work, interruption = _unmeasured(cell, folder, read)
    return CellState(
        state=state_of(folder, status),
        needs_work=needs_work,
        interruption=interruption,
    )


def state_of(folder: CellFolder, status: Status | None) -> str:
    """Return the state of a cell whose status was read, as `CellState.state` says it."""
    if status is not None and status.state == "done":
        return "done"
    if folder.is_held():  # by somebody who has not said so yet
        return "running"
    return "missing" if status is None else status.state


def _unmeasured(cell: Cell, folder: CellFolder, read: Read) -> tuple[bool, str]:
    """Return whether something is to be measured of a cell that is done, and what was wrong."""
    rows: list[Row] = []
    reasons: list[str] = []
    is_missing = False
    for evaluation in cell.evaluations:
        try:
            rows += sealed_rows(folder, evaluation.key, cell.blank, read)
        except Unsealed:
            is_missing = True
        except (Disagreement, StorageError) as damage:
            reasons.append(str(damage))
    reasons += [reason for _, reason in untenable(rows)]
    return is_missing or bool(reasons), "; ".join(dict.fromkeys(reasons))


def _interruption(folder: CellFolder, status: Status | None) -> str:
    if status is not None:
        return status.message if status.state == "killed" else ""
    damaged = sorted(path.name for path in folder.path.glob("status.json.corrupt-*"))
    return f"its status.json is damaged and kept as {damaged[-1]}" if damaged else ""
