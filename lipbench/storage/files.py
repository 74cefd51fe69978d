"""Atomic writes: files that are whole or absent, whenever the process or the machine dies."""

import itertools
import json
import os
import re
import shutil
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
        if path.read_bytes() == data:
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


def read_json(path: Path) -> Any:
    """Read the value that `path` holds; a file that is not JSON is set aside.

    Returns:
        The value, None if there is no such file.

    Raises:
        Damaged: If the file is not JSON; it has been set aside, so that the next call gives None.
        StorageError: If the file exists and cannot be read.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError("read", path, error) from error
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise Damaged(path, quarantine(path), str(error)) from error


def quarantine(path: Path) -> Path | None:
    """Move a damaged file to `<name>.corrupt-<n>`.

    Returns:
        Where it is now, None if it cannot be moved.
    """
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.corrupt-{number}")
        if not kept.exists():
            break
    try:
        return path.rename(kept)
    except OSError:
        return None


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
