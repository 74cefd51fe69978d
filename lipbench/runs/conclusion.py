"""Conclusions of cells: how the work on them ended, and the record of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from lipbench.dataset import DataMissing
from lipbench.evaluation.evaluate import EvaluationFailed
from lipbench.failure import class_name, is_kind, pass_signals, text_of, trace_of, wording
from lipbench.guards.guard import Tampered, TorchTampered
from lipbench.planning.cell import Cell
from lipbench.runs.stack import Stack
from lipbench.storage.cell_folder import StateName
from lipbench.storage.files import StorageError, write_text
from lipbench.training.ensemble import TrainingRefused

_SAYS_WHAT = (EvaluationFailed, ExceptionGroup)
"""Errors whose text says already what was raised."""
_MISTAKES = (DataMissing, TrainingRefused, Tampered)
"""What the user can mend: it needs neither a traceback nor the name of its class."""


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How the work on a cell ended."""

    state: StateName
    message: str = ""
    """One line for status.json."""
    exception: str = ""
    """Class of the exception that ended it."""
    said: str = ""
    """What the report says of it, the message if empty."""
    log: str | None = None
    """What log.txt is to hold, None if it is left alone."""
    flags: tuple[str, ...] = ()
    spent: float = 0.0
    """Seconds to be added to those of the training."""


def conclude(stack: Stack, cell: Cell, conclusion: Conclusion) -> None:
    """Write how a cell ended into its folder, and report it.

    Raises:
        StorageError: If a file cannot be written.
    """
    folder = stack.folder(cell)
    if conclusion.log is not None:
        write_text(folder.log, conclusion.log)
    status, message = stack.status(cell), _one_line(conclusion.message)
    folder.write_status(
        replace(
            status,
            state=conclusion.state,
            message=message,
            exception=conclusion.exception,
            finished=time.time(),
            seconds=(status.seconds or 0.0) + conclusion.spent,
            flags=conclusion.flags,
        )
    )
    if cell.key in stack.wanted or conclusion.state != "done":
        stack.report.cell(cell, conclusion.state, _one_line(conclusion.said) or message)


@contextmanager
def killed_if_stopped(stack: Stack) -> Iterator[None]:
    """Conclude the cells that are being worked on as killed if a signal ends the process.

    Raises:
        KeyboardInterrupt: If it does; it goes on.
        SystemExit: Likewise.
        TorchTampered: If a plugin replaced functions of torch; the cells have failed by it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        for cell in stack.siblings:
            if stack.status(cell).state == "running":
                conclude(stack, cell, Conclusion(state="killed", message="stopped by a signal"))
        raise
    except TorchTampered as error:
        for cell in stack.siblings:
            if stack.status(cell).state == "running":
                conclude(stack, cell, failure(error))
        raise


def ends_the_run(error: BaseException) -> bool:
    """Return whether no other cell has a chance: files cannot be written, or torch was replaced.

    Raises:
        KeyboardInterrupt: If a person interrupted the run.
        Terminated: If the process is asked to end; a plugin that calls exit does not ask.
    """
    pass_signals(error)
    return is_kind(error, StorageError, TorchTampered)


def failure(error: BaseException) -> Conclusion:
    """Return the conclusion of a cell that an error ended."""
    is_memory = is_kind(error, torch.OutOfMemoryError, MemoryError)
    is_mistake, text = is_kind(error, *_MISTAKES), text_of(error)
    says_what = is_mistake or is_kind(error, *_SAYS_WHAT)
    return Conclusion(
        state="oom" if is_memory else "failed",
        message=text,
        exception=class_name(error),
        said=text if says_what else wording(error),
        log=text if is_mistake else trace_of(error),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
