"""The training of a stack: together, or one by one where one cell spoils it for all."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lipbench.data.loading import load
from lipbench.dataset import DataMissing
from lipbench.evaluation.selection import selection_score
from lipbench.failure import text_of
from lipbench.planning.cell import Cell
from lipbench.runs.common_data import data_unchanged
from lipbench.runs.conclusion import Conclusion, conclude, ends_the_run, failure
from lipbench.runs.progress import named
from lipbench.runs.saved_networks import (
    check_network,
    network_path,
    save_networks,
    write_history,
)
from lipbench.runs.stack import Stack
from lipbench.runs.training_state import read_training_state, write_training_state
from lipbench.storage.cell_folder import Status
from lipbench.storage.files import discard, quarantine, write_json
from lipbench.storage.host import host_id
from lipbench.storage.tensors import Unreadable
from lipbench.training.ensemble import TrainingState
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Outcome

SAVE_EVERY = 30.0
"""Seconds between two copies of the training state."""


def untrained(stack: Stack) -> list[Cell]:
    """Find the cells without networks, and set aside networks that cannot be read.

    Returns:
        The cells, in the order of the stack.
    """
    return [cell for cell in stack.siblings if not _is_trained(stack, cell)]


def train_stack(stack: Stack, pending: Sequence[Cell]) -> None:
    """Train the stack if one of the pending cells is wanted, and save what they have not yet.

    Raises:
        StorageError: If a file cannot be written; all else becomes the state of a cell.
        SystemExit: If the process is to end.
    """
    is_wanted = any(cell.key in stack.wanted for cell in pending)
    if is_wanted:
        for cell in pending:
            _begin(stack, cell)
        _train(stack, pending, stack.siblings)
    if is_wanted or not pending:
        for cell in stack.siblings:  # the first one's; others are of stacks cut otherwise
            discard(stack.folder(cell).last)


def _is_trained(stack: Stack, cell: Cell) -> bool:
    """Look whether the networks of a cell are there, and set aside one that cannot be read.

    Returns:
        Whether all are there and can be read.
    """
    folder = stack.folder(cell)
    status = folder.read_status()
    if status is None or not status.checkpoints:
        return False
    for name in status.checkpoints:
        path = network_path(folder, name)
        try:
            check_network(cell, folder, name, status.checkpoints[name])
        except Unreadable as damage:
            stack.report.say(f"{damage}; {named(cell)} is trained again")
            quarantine(path)
            return False
    return True


def _begin(stack: Stack, cell: Cell) -> None:
    """Write that a cell is being trained, and remove what another training of it left."""
    folder = stack.folder(cell)
    before = folder.read_status()
    write_json(folder.cell, {"train_key": cell.key, "stack": cell.stack, **cell.inputs})
    folder.write_status(
        Status(
            state="running",
            attempt=1 if before is None else before.attempt + 1,
            pid=os.getpid(),
            host=host_id(),
            started=time.time(),
        )
    )
    for pattern in ("rows-*.csv", "seal-*.json", "*-*.safetensors", "log.txt"):
        for path in folder.path.glob(pattern):
            discard(path)


def _train(stack: Stack, pending: Sequence[Cell], members: Sequence[Cell]) -> None:
    """Train `members` as one stack and save the networks of those that are pending.

    Raises:
        StorageError: If a file cannot be written; all else becomes the state of a cell.
        SystemExit: If the process is to end.
    """
    try:
        outcomes = _outcomes(stack, members)
    except BaseException as error:  # a plugin may raise anything
        if ends_the_run(error):
            raise
        if len(members) == 1 or isinstance(error, DataMissing):
            for cell in pending:
                conclude(stack, cell, failure(error))
            return
        stack.report.say(f"a stack of {len(members)} failed ({text_of(error)}): one by one")
    else:
        for cell, outcome in zip(members, outcomes, strict=True):
            if cell in pending:
                _save(stack, cell, outcome)
        return
    # One trial may have spoilt it for all, or filled the memory: each gets its chance alone,
    # after the exception has let go of what the stack needed.
    for cell in pending:
        _train(stack, [cell], [cell])


def _outcomes(stack: Stack, members: Sequence[Cell]) -> Sequence[Outcome]:
    """Train `members`; only the whole stack is resumed, and its state saved meanwhile.

    Returns:
        What became of each.
    """
    benchmark = members[0].benchmark
    is_whole = len(members) == len(stack.siblings)
    data = load(benchmark.dataset, stack.device, stack.dtype)
    score = selection_score(benchmark, data)
    with data_unchanged(data, members[0]):
        trainer = Trainer([cell.trial for cell in members], benchmark.model, data, score)
        state = trainer.begin()
        if is_whole:
            state = _resumed(stack, state)
        return trainer.run(state, _after_epoch(stack, members, is_whole))


def _resumed(stack: Stack, fresh: TrainingState) -> TrainingState:
    """Read where the stack stood when it was stopped, and say so if that is of no use.

    Returns:
        It, else the beginning.
    """
    stored = read_training_state(stack.last, fresh, stack.siblings[0].stack)
    if stored is None and stack.last.exists():
        stack.report.say(f"{stack.last} is damaged or of other cells: training starts afresh")
    return stored or fresh


def _after_epoch(
    stack: Stack, members: Sequence[Cell], is_whole: bool
) -> Callable[[TrainingState], None]:
    """Return what reports each epoch, and saves the state of training now and then."""
    epochs = stack.training.epochs
    total = epochs * len(members[0].trial.points)
    saved = time.monotonic()

    def after_epoch(state: TrainingState) -> None:
        nonlocal saved
        done = state.point * epochs + state.epoch
        accuracy = state.histories[0][-1]["train_accuracy"]
        remark = "" if accuracy is None else f"train {accuracy:.1%}"
        stack.report.epoch(list(members), done, total, remark)
        if is_whole and time.monotonic() - saved >= SAVE_EVERY:
            write_training_state(stack.last, state, stack.siblings[0].stack)
            saved = time.monotonic()

    return after_epoch


def _save(stack: Stack, cell: Cell, outcome: Outcome) -> None:
    """Write history and networks of a cell; one that diverged has no networks and ends here."""
    folder = stack.folder(cell)
    write_history(folder, outcome)
    if outcome.state != "done":
        conclude(stack, cell, Conclusion(state="nan", message=outcome.message))
        return
    facts = save_networks(cell, folder, outcome)
    folder.write_status(replace(stack.status(cell), checkpoints=facts, seconds=outcome.seconds))
