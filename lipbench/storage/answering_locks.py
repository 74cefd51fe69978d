"""Locks of files, asked for with patience: some file systems never answer."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from lipbench.storage.files import StorageError

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds within which a file system says whether a lock is free; it needs microseconds."""


class LocksSilent(StorageError):
    """The locks of a file system do not answer; the message names the file and the way out."""

    def __init__(self, path: Path) -> None:
        Exception.__init__(
            self,
            f"locks on {path} do not answer: the file system was asked {PATIENCE:g} s ago. "
            "Choose another folder with -o, or mount this one with locks.",
        )
        self.path = path


def answer(ask: Callable[[], T], path: Path, undo: Callable[[], object]) -> T:
    """Return what `ask` returns, which is asked on a thread of its own.

    A call of the operating system that hangs cannot be stopped: the thread is left to it, and
    `undo` is called should it return after all.

    Raises:
        LocksSilent: If it does not return in time; `path` is what the message names.
        OSError: As `ask` raises; all else, too.
    """
    question = _Question(ask, undo)
    threading.Thread(target=question.ask, daemon=True).start()
    if not question.is_answered(PATIENCE):
        raise LocksSilent(path)
    if question.error is not None:
        raise question.error
    return question.answers[0]


class _Question(Generic[T]):
    """One call, its answer, and whether anybody waits for it still."""

    def __init__(self, ask: Callable[[], T], undo: Callable[[], object]) -> None:
        self._ask, self._undo = ask, undo
        self._one, self._done = threading.Lock(), threading.Event()
        self._is_given_up = False
        self.answers: list[T] = []
        self.error: BaseException | None = None

    def ask(self) -> None:
        """Make the call."""
        try:
            self.answers.append(self._ask())
        except BaseException as error:
            self.error = error
        with self._one:
            self._done.set()
            if self._is_given_up and self.error is None:
                self._undo()

    def is_answered(self, seconds: float) -> bool:
        """Wait for the call, and give it up if it does not come back in time.

        Returns:
            Whether it came back.
        """
        self._done.wait(seconds)
        with self._one:
            self._is_given_up = not self._done.is_set()
        return not self._is_given_up
