"""Work on the cells of one stack: claim, train, evaluate, conclude."""

from collections.abc import Sequence
from pathlib import Path

from lipbench.guards.guard import TorchTampered
from lipbench.guards.torch_itself import computes_otherwise
from lipbench.networks.precision import products
from lipbench.planning.cell import Cell
from lipbench.planning.device import few_threads, resolve
from lipbench.runs.conclusion import conclude, killed_if_stopped
from lipbench.runs.progress import Reporter
from lipbench.runs.stack import Stack
from lipbench.runs.stack_evaluation import evaluate_stack
from lipbench.runs.stack_training import train_stack, untrained
from lipbench.storage.cell_folder import lock_cells
from lipbench.storage.rows import Read, read_rows


def work_on(
    cells: Sequence[Cell],
    run: Path,
    device: str,
    env_id: str,
    report: Reporter,
    read: Read = read_rows,
) -> None:
    """Train the stack of `cells` where it is needed, and evaluate all its cells.

    `cells` belong to one stack. A stack that somebody else has claimed is left alone. Files of rows
    are read by `read`, which may remember them.

    Raises:
        StorageError: If a file cannot be written; all else becomes the state of a cell.
        KeyboardInterrupt: If it is stopped by a signal; the cells are marked as killed.
        SystemExit: Likewise.
        TorchTampered: If a plugin changed what torch computes.
    """
    siblings = cells[0].siblings()
    held = lock_cells(cell.folder(run) for cell in siblings)
    if held is None:
        return
    with held, few_threads(siblings[0].benchmark), products():
        stack = Stack(
            siblings=siblings,
            wanted=frozenset(cell.key for cell in cells),
            run=run,
            device=resolve(device),
            env_id=env_id,
            report=report,
            read=read,
        )
        pending = untrained(stack)
        with killed_if_stopped(stack):
            train_stack(stack, pending)
            for cell, conclusion in evaluate_stack(stack):
                conclude(stack, cell, conclusion)
    if computes_otherwise():
        raise TorchTampered(
            f"torch computes other numbers since method {siblings[0].entry.name!r} or a plugin "
            "that measured it ran: what cannot be put back ends the run."
        )
