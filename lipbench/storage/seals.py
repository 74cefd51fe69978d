"""Seals of evaluations: digests of all files that stored rows rest on."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.files import NotAFile, StorageError, parse_json, read_bytes
from lipbench.storage.row_checks import misplaced, untenable
from lipbench.storage.rows import Read, Row, RowsDamaged, read_rows

_SCHEMA = 1


class Unsealed(Exception):
    """There are no rows of an evaluation: it was not measured, or not to its end."""


class Disagreement(Exception):
    """Files of an evaluation are not what was written; the message says of each what is wrong."""

    def __init__(self, problems: Mapping[Path, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path.name} {why}" for path, why in problems.items()))


def seal_text(train_key: str, eval_key: str, digests: Mapping[str, str]) -> str:
    """Return what the seal of an evaluation says.

    Args:
        train_key: The key of the cell.
        eval_key: The key of the evaluation.
        digests: The digest of each file that the rows rest on, and of theirs, by its name.
    """
    table = {"schema": _SCHEMA, "train_key": train_key, "eval_key": eval_key, "files": digests}
    return json.dumps(table, indent=1, sort_keys=True) + "\n"


def digest_of(data: bytes) -> str:
    """Return the digest of a file's content."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of the file at `path`; one that stays the same is read once.

    Raises:
        OSError: If it cannot be read, or is no file.
    """
    status = path.stat()
    mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return _digest(os.fspath(path), mark)


def sealed_rows(folder: CellFolder, key: str, blank: Row, read: Read = read_rows) -> list[Row]:
    """Return the rows of an evaluation, whose files are all what was written.

    Args:
        folder: The cell.
        key: The eval key.
        blank: A row with all the columns that the cell fixes.
        read: How the file of rows is read.

    Raises:
        Unsealed: If it was not measured.
        Disagreement: If a file is not what was written, rows are of something else, or numbers
            cannot be true. Networks that were removed are missed by no number.
        StorageError: If a file cannot be read.
    """
    rows, seal = folder.rows(key), folder.seal(key)
    if not os.path.lexists(seal):
        if os.path.lexists(rows):
            raise Disagreement({rows: "has no seal beside it"})
        raise Unsealed(f"{rows} is not there")
    problems = _broken(folder, key, _digests(seal, key, blank.train_key))
    if problems:
        raise Disagreement(problems)
    try:
        found = read(rows)
    except RowsDamaged as error:
        raise Disagreement({rows: str(error)}) from error
    reasons = [*misplaced(found, blank, key), *untenable(found)]
    if reasons:
        raise Disagreement({rows: reasons[0][1]})
    return found


def sealed_networks(folder: CellFolder) -> dict[str, set[str]]:
    """Return by the name of its file the digests that a network had when it was measured."""
    digests: dict[str, set[str]] = {}
    for seal in folder.path.glob("seal-*.json"):
        try:
            files = _table(seal)["files"]
        except (OSError, ValueError, KeyError):
            continue
        for name, digest in files.items() if isinstance(files, dict) else ():
            if name.startswith("model") and isinstance(digest, str):
                digests.setdefault(name, set()).add(digest)
    return digests


def _digests(seal: Path, key: str, train_key: str) -> Mapping[str, str]:
    """Return what a seal says of files.

    Raises:
        Disagreement: If it is none, or one of another evaluation.
        StorageError: If it cannot be read.
    """
    try:
        table = _table(seal)
    except (NotAFile, ValueError) as error:
        raise Disagreement({seal: f"is damaged: {error}"}) from error
    except OSError as error:
        raise StorageError("read", seal, error) from error
    files = table.get("files")
    if table.get("schema") != _SCHEMA or not isinstance(files, dict):
        raise Disagreement({seal: f"is no seal of schema {_SCHEMA}"})
    if (table.get("train_key"), table.get("eval_key")) != (train_key, key):
        raise Disagreement({seal: "is of another cell or evaluation"})
    return files


def _table(seal: Path) -> dict[str, Any]:
    table = parse_json(read_bytes(seal).decode())
    if not isinstance(table, dict):
        raise ValueError("it is not an object")
    return table


def _broken(folder: CellFolder, key: str, digests: Mapping[str, str]) -> dict[Path, str]:
    """Return what is wrong with each file of an evaluation that is not as it was sealed."""
    own = (folder.rows(key), folder.samples(key), folder.proof(key))
    problems = {
        path: "was not written with its rows"
        for path in own
        if path.name not in digests and os.path.lexists(path)
    }
    if folder.rows(key).name not in digests:
        problems[folder.seal(key)] = "names no rows"
    for name, digest in digests.items():
        path = folder.path / Path(name).name
        reason = _reason(path, digest, may_lack=path not in own)
        if reason:
            problems[path] = reason
    return problems


def _reason(path: Path, digest: str, may_lack: bool) -> str:
    """Return why a file is not the one with a digest, empty if it is."""
    try:
        return "" if file_digest(path) == digest else "is not what was written"
    except NotAFile as error:
        return f"is damaged: {error.strerror}"
    except FileNotFoundError:
        if path.is_symlink():
            return "is a link that leads nowhere"
        return "" if may_lack else "was removed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


@lru_cache(maxsize=1 << 16)
def _digest(path: str, mark: tuple[int, ...]) -> str:
    return digest_of(read_bytes(Path(path)))
