"""The evaluation of a trained stack, cell by cell."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from lipbench.data.loading import load
from lipbench.data.splits import Data
from lipbench.evaluation.attack_outcomes import AttackOutcomes, Target
from lipbench.evaluation.evaluate import Findings, Trained, Unfit, evaluate
from lipbench.planning.cell import Cell
from lipbench.planning.device import device_name
from lipbench.runs.common_data import data_unchanged
from lipbench.runs.conclusion import Conclusion, ends_the_run, failure
from lipbench.runs.saved_networks import load_network
from lipbench.runs.stack import Stack
from lipbench.storage.cell_folder import UNSOUND, Status
from lipbench.storage.evaluation_files import set_aside
from lipbench.storage.row_checks import untenable
from lipbench.storage.seals import Disagreement, Unsealed, sealed_rows
from lipbench.storage.tensors import Unreadable


def evaluate_stack(stack: Stack) -> Iterator[tuple[Cell, Conclusion]]:
    """Measure what is missing of each trained cell, and yield how that ended, one by one.

    Cells that nobody asks for are left alone, unless they were trained just now.

    Yields:
        Each cell that was evaluated, with its conclusion, which is still to be written.

    Raises:
        StorageError: If a file cannot be written; all else becomes a conclusion.
        SystemExit: If the process is to end.
    """
    networks = _Networks(stack)
    for cell in stack.siblings:
        status = stack.status(cell)
        is_wanted = status.state == "running" or cell.key in stack.wanted
        if not status.checkpoints or not is_wanted:
            continue
        if status.state == "done" and _is_complete(stack, cell):
            stack.report.cell(cell, "done", before=True)
        else:
            yield cell, _evaluate(stack, cell, status, networks)


def _is_complete(stack: Stack, cell: Cell) -> bool:
    """Read what was measured of a cell that is done; what cannot be true at once is set aside.

    Returns:
        Whether all is there, and can be true.

    Raises:
        StorageError: If a file cannot be read or removed.
    """
    folder = stack.folder(cell)
    rows, is_whole = [], True
    for evaluation in cell.evaluations:
        try:
            rows += sealed_rows(folder, evaluation.key, cell.blank, stack.read)
        except (Unsealed, Disagreement):
            is_whole = False
    # It was done, and so had none of these: somebody else wrote them.
    wrong = {row.eval_key for row, _ in untenable(rows)}
    for key in wrong:
        set_aside(folder, key, [folder.rows(key)])
    return is_whole and not wrong


def _evaluate(stack: Stack, cell: Cell, status: Status, networks: "_Networks") -> Conclusion:
    """Measure a cell, which runs meanwhile.

    Returns:
        How that ended.

    Raises:
        StorageError: If a file cannot be written; all else becomes the conclusion.
        SystemExit: If the process is to end.
    """
    began = time.monotonic()
    stack.folder(cell).write_status(replace(status, state="running", pid=os.getpid()))
    try:
        findings = _findings(stack, cell, networks)
    except Unfit as error:
        return Conclusion(state=error.state, message=str(error))
    except BaseException as error:  # a plugin may raise anything
        if ends_the_run(error):
            raise
        return failure(error)
    return _conclusion(findings, began)


def _findings(stack: Stack, cell: Cell, networks: "_Networks") -> Findings:
    data = load(cell.benchmark.dataset, stack.device, stack.dtype)
    attack_outcomes = networks.attack_outcomes(data)
    device = device_name(stack.device)
    with data_unchanged(data, cell):
        checkpoints = networks.of(cell)
        return evaluate(
            cell,
            stack.folder(cell),
            checkpoints,
            data,
            attack_outcomes,
            device,
            stack.env_id,
            stack.read,
        )


def _conclusion(findings: Findings, began: float) -> Conclusion:
    problems, errors = findings.contradictions, findings.errors
    if problems:
        return Conclusion(state="failed", message="; ".join(problems), flags=(UNSOUND,))
    if errors:
        text = "; ".join(map(str, errors))
        return failure(errors[0] if len(errors) == 1 else ExceptionGroup(text, errors))
    return Conclusion(state="done", spent=time.monotonic() - began)


class _Networks:
    """The networks of a stack, each read once, and the outcomes of attacks on them."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._checkpoints: dict[str, list[Trained]] = {}
        self._attack_outcomes: AttackOutcomes | None = None

    def of(self, cell: Cell) -> list[Trained]:
        """Return the checkpoints of a cell.

        Raises:
            Unreadable: If a file is absent or damaged.
        """
        if cell.key not in self._checkpoints:
            folder, status = self._stack.folder(cell), self._stack.status(cell)
            self._checkpoints[cell.key] = [
                load_network(cell, folder, name, facts, self._stack.device)
                for name, facts in status.checkpoints.items()
            ]
        return self._checkpoints[cell.key]

    def attack_outcomes(self, data: Data) -> AttackOutcomes:
        """Return the outcomes of attacks on all networks of the stack, computed when asked for."""
        if self._attack_outcomes is None:
            self._attack_outcomes = AttackOutcomes(self._targets(), data)
        return self._attack_outcomes

    def _targets(self) -> list[Target]:
        targets = []
        for cell in self._stack.siblings:
            # Another cell's damage is that cell's failure.
            with suppress(Unreadable):
                targets += [
                    Target(cell=cell, checkpoint=trained.name, module=trained.module)
                    for trained in self.of(cell)
                ]
        return targets
