"""The folder of a cell: its files, its status, and the lock of who works on it."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lipbench.storage.answering_locks import answer
from lipbench.storage.files import (
    Damaged,
    NotAFile,
    StorageError,
    check_is_file,
    clean,
    quarantine,
    read_json,
    update_json,
)

StateName = Literal["running", "done", "failed", "nan", "oom", "timeout", "killed"]
UNSOUND = "unsound"
"""Flag of a cell in which a lower bound exceeds an upper one."""
STATES: tuple[StateName, ...] = ("running", "done", "failed", "nan", "oom", "timeout", "killed")

# A reader that asks whether a lock is free holds it for microseconds; a claim outlasts that.
_PATIENCE = 0.1
_LONGEST = 60
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known about the training of a cell, as status.json holds it."""

    state: StateName
    attempt: int = 1
    pid: int = 0
    host: str = ""
    """Hash of the host's name, see `lipbench.storage.host`."""
    started: float | None = None
    """Seconds since 1970, UTC; the same holds for `finished`."""
    finished: float | None = None
    seconds: float | None = None
    message: str = ""
    """One line for people: why the cell is not done."""
    exception: str = ""
    """Class of the exception that ended it."""
    epoch: int | None = None
    checkpoints: Mapping[str, Any] = field(default_factory=dict)
    """For each saved checkpoint its name, and what is known about it."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellFolder:
    """Paths of one cell, `cells/<benchmark>/<method>/<key>/` in the folder of a run."""

    path: Path

    @classmethod
    def of(cls, run: Path, benchmark: str, method: str, key: str) -> "CellFolder":
        """Return the folder of a cell; nothing is created."""
        return cls(run / "cells" / folder_name(benchmark) / folder_name(method) / key)

    @property
    def cell(self) -> Path:
        """Return where the settings of the cell are, as they entered its key: without defaults."""
        return self.path / "cell.json"

    @property
    def status_file(self) -> Path:
        """Return where the state is."""
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        """Return the file whose lock is the claim; its existence means nothing."""
        return self.path / ".lock"

    @property
    def model(self) -> Path:
        """Return where the chosen checkpoint is."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """Return where the state of training is kept until it is done."""
        return self.path / "last.safetensors"

    @property
    def train(self) -> Path:
        """Return where the record of each epoch is."""
        return self.path / "train.csv"

    @property
    def log(self) -> Path:
        """Return where tracebacks are."""
        return self.path / "log.txt"

    def rows(self, eval_key: str) -> Path:
        """Return where the rows of one evaluation are."""
        return self.path / f"rows-{eval_key}.csv"

    def samples(self, eval_key: str) -> Path:
        """Return where the outcomes per sample of one evaluation are."""
        return self.path / f"samples-{eval_key}.safetensors"

    def proof(self, eval_key: str) -> Path:
        """Return where the witness or certificate of one evaluation is."""
        return self.path / f"proof-{eval_key}.safetensors"

    def seal(self, eval_key: str) -> Path:
        """Return where the digests of all files that one evaluation rests on are."""
        return self.path / f"seal-{eval_key}.json"

    def write_status(self, status: Status) -> None:
        """Replace the state of the cell."""
        update_json(self.status_file, asdict(status))

    def read_status(self) -> Status | None:
        """Read the state of the cell; a damaged file is set aside.

        A cell that says it is running while nobody holds its lock was killed, and one whose file
        is damaged counts as killed.

        Returns:
            The state, None if the cell was never begun.
        """
        try:
            status = self._stored_status()
        except Damaged as damage:
            return Status(state="killed", message=str(damage))
        if status is not None and status.state == "running" and not self.is_held():
            return replace(status, state="killed", message="its process died")
        return status

    def is_held(self) -> bool:
        """Return whether a live process has claimed the cell.

        Raises:
            LocksSilent: If the file system does not say.
        """
        if not self.lock_file.is_file():
            return False
        lock = FileLock(self.lock_file, thread_local=False)
        return answer(lambda: _is_taken(lock), self.lock_file, undo=lock.release)

    def _stored_status(self) -> Status | None:
        table = read_json(self.status_file)
        if table is None:
            return None
        try:
            return _status(table)
        except (TypeError, ValueError, OverflowError) as error:
            path = self.status_file
            raise Damaged(path, quarantine(path), str(error)) from error


class CellLock:
    """The right to work on some cells; it ends with `release`, the with block or the process."""

    def __init__(self, folders: tuple[CellFolder, ...], locks: ExitStack) -> None:
        self.folders = folders
        self._locks = locks

    def release(self) -> None:
        """Let others claim the cells."""
        self._locks.close()

    def __enter__(self) -> "CellLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_cells(folders: Iterable[CellFolder]) -> CellLock | None:
    """Claim all of `folders`.

    The locks belong to the operating system, which frees them when the process dies in whatever
    way. Half-written files of dead processes are removed from the claimed folders.

    Returns:
        The claim, or None if a live process holds one of them.
    """
    # Always in the same order: of two claims that overlap, one gets all it wants.
    ordered = tuple(sorted(folders, key=lambda folder: folder.path))
    locks = ExitStack()
    try:
        free = all(_lock(folder, locks) for folder in ordered)
    except BaseException:
        locks.close()
        raise
    if not free:
        locks.close()
        return None
    for folder in ordered:
        clean(folder.path)
    return CellLock(ordered, locks)


@cache
def folder_name(name: str) -> str:
    """Return a name that every file system takes, the name itself wherever possible.

    Odd characters become underscores; a name that had to be changed or cut ends with a hash of
    the whole, so that different names stay different.
    """
    plain = re.sub(r"[^A-Za-z0-9._=,+-]", "_", name).strip(".") or "_"
    if plain == name and len(name) <= _LONGEST and not _RESERVED.fullmatch(name):
        return name
    return f"{plain[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _lock(folder: CellFolder, stack: ExitStack) -> bool:
    lock = FileLock(folder.lock_file, thread_local=False)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _make_way(folder.lock_file)
        answer(lambda: _acquire(lock), folder.lock_file, undo=lock.release)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise StorageError("lock", folder.lock_file, cause) from error
    stack.callback(lock.release)
    if isinstance(lock, SoftFileLock):  # filelock's substitute, which outlives its process
        raise StorageError("lock", folder.lock_file, OSError("the file system has no locks"))
    return True


def _make_way(path: Path) -> None:
    """Set aside what stands where the file of a lock should be: to open a pipe may never end."""
    with suppress(FileNotFoundError):
        try:
            check_is_file(path)
        except NotAFile:
            quarantine(path)


def _acquire(lock: BaseFileLock) -> None:
    lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 5)


def _is_taken(lock: BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # a lock that one may not even open is somebody's
        return True
    lock.release()
    return False


def _status(table: Any) -> Status:
    """Return the status that a JSON value says.

    Raises:
        ValueError: If it says none; likewise TypeError and OverflowError.
    """
    if not isinstance(table, dict) or table.get("state") not in STATES:
        raise ValueError("it is not a status")
    known = {f.name for f in fields(Status)}
    values = {name: value for name, value in table.items() if name in known}
    for name, value in values.items():
        if not _KINDS[name](value):
            raise ValueError(f"its {name} is {str(value)[:40]!r}")
    return Status(**values | {"flags": tuple(values.get("flags", ()))})


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: object) -> bool:
    # Not isinstance: a truth value is no time.
    return value is None or (type(value) in (int, float) and 0 <= value < math.inf)  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_facts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(facts, dict) for facts in value.values())


_KINDS: dict[str, Callable[[object], bool]] = {
    "state": _is_text,
    "attempt": _is_count,
    "pid": _is_count,
    "host": _is_text,
    "started": _is_time,
    "finished": _is_time,
    "seconds": _is_time,
    "message": _is_text,
    "exception": _is_text,
    "epoch": lambda value: value is None or _is_count(value),
    "checkpoints": _are_facts,
    "flags": _are_texts,
}
"""What the fields of a status may hold."""
