"""Atomic writes: files that are whole or absent, whenever the process or the machine dies."""

import errno
import itertools
import json
import math
import os
import re
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lipbench.storage.host import host_id, is_alive

_TEMPORARY = re.compile(r"\.tmp-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+")
_DAY = 86400.0
_counter = itertools.count()


class StorageError(Exception):
    """A file cannot be written or read; the message names it and the free space."""

    def __init__(self, what: str, path: Path, error: OSError) -> None:
        self.path = path
        super().__init__(
            f"cannot {what} {path}: {error.strerror or error}{_free_space(path)}. "
            "Make room or check the permissions, or choose another folder."
        )


class NotAFile(OSError):
    """Something stands where a file should be: a folder, a pipe, a device, a link to nothing."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, f"it is {what} and no file")


class Damaged(Exception):
    """A file is not what it should be; it was set aside and now reads as absent."""

    def __init__(self, path: Path, kept: Path | None, reason: str) -> None:
        self.path = path
        self.kept = kept
        """Where the damaged file is now; None if it could not be moved."""
        remark = f"kept as {kept.name}" if kept else "it could not be set aside"
        super().__init__(f"{path} is damaged ({reason}); {remark}.")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, making its folder if there is none.

    When this returns, the content survives a power cut; when it does not, the old file is intact.

    Raises:
        StorageError: If the file cannot be written.
    """
    temporary = path.parent / f".tmp-{host_id()}-{os.getpid()}-{next(_counter)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError("write", path, error) from error


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def update_text(path: Path, text: str) -> None:
    """Let `path` hold `text`, as `write_text` does; a file that holds just that is not touched."""
    data = text.encode("utf-8")
    try:
        if read_bytes(path) == data:
            return
    except OSError:  # absent, or the attempt to replace it says what is wrong
        pass
    write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON with sorted keys, as `write_bytes` does."""
    write_text(path, _json(value))


def update_json(path: Path, value: Any) -> None:
    """Let `path` hold `value`, as `write_json` does; a file that does already is not touched."""
    update_text(path, _json(value))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; what is none is refused, for to read a pipe may never end.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        NotAFile: If there is something else.
        OSError: If it cannot be read.
    """
    check_is_file(path)
    return path.read_bytes()


def check_is_file(path: Path) -> None:
    """Look whether there is a file at `path`.

    Raises:
        FileNotFoundError: If there is nothing.
        NotAFile: If there is something else.
        OSError: If one may not know.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            raise NotAFile("a link that leads nowhere") from error
        raise
    if not stat.S_ISREG(mode):
        raise NotAFile("a folder" if stat.S_ISDIR(mode) else "a pipe or a device")


def read_json(path: Path) -> Any:
    """Read the value that `path` holds; a file that is not JSON is set aside.

    Returns:
        The value, None if there is no such file.

    Raises:
        Damaged: If it is no file, or not JSON; it has been set aside, so that the next call gives
            None.
        StorageError: If the file exists and cannot be read.
    """
    try:
        return parse_json(read_bytes(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (NotAFile, ValueError) as error:
        raise Damaged(path, quarantine(path), _reason(error)) from error
    except OSError as error:
        raise StorageError("read", path, error) from error


def parse_json(text: str) -> Any:
    """Return the value that a text says in JSON.

    Raises:
        ValueError: If it is not JSON, says one key twice, holds a number that is not finite or a
            text that cannot be written again, or is nested deeper than this can follow.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if "\\u" in text:  # which may spell half a character
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def quarantine(path: Path) -> Path | None:
    """Move a damaged file to `<name>.corrupt-<n>`.

    Returns:
        Where it is now, None if it cannot be moved.
    """
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.corrupt-{number}")
        if not os.path.lexists(kept):
            break
    try:
        return path.rename(kept)
    except OSError:
        return None


def discard(path: Path) -> None:
    """Remove a file that is of no use any more; what is none is set aside.

    Raises:
        StorageError: If it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        quarantine(path)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError("remove", path, error) from error


def clean(folder: Path) -> list[Path]:
    """Remove the half-written files of dead processes from `folder`.

    Returns:
        The files that were removed.
    """
    removed = []
    for path in sorted(folder.glob(".tmp-*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        with suppress(OSError):
            here = match["host"] == host_id()
            old = time.time() - path.stat().st_mtime > _DAY
            if old or (here and not is_alive(int(match["pid"]))):
                path.unlink()
                removed.append(path)
    return removed


def probe(folder: Path) -> None:
    """Write and remove a small file, so that a bad folder is found before hours of training.

    Raises:
        StorageError: If nothing can be written to `folder`.
    """
    # One name for all: what a killed process left, the next one removes.
    trial = folder / ".probe"
    write_bytes(trial, b"")
    try:
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError("remove", trial, error) from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("it says one key twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(path: Path) -> str:
    for folder in path.parents:
        with suppress(OSError):
            return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free)"
    return ""
