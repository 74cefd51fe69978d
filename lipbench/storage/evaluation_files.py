"""The files of one evaluation of a cell: its rows, outcomes per sample, proofs, and their seal."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.files import StorageError, discard, quarantine
from lipbench.storage.rows import Read, Row, format_rows, read_rows
from lipbench.storage.seals import Disagreement, Unsealed, digest_of, seal_text, sealed_rows
from lipbench.storage.tensors import packed, read_tensors
from lipbench.storage.writer import Writer


def write_evaluation(
    writer: Writer,
    folder: CellFolder,
    key: str,
    rows: Iterable[Row],
    samples: Mapping[str, Tensor],
    proofs: Mapping[str, Tensor],
    train_key: str = "",
    networks: Mapping[str, str] | None = None,
) -> None:
    """Let `writer` write the files of an evaluation; there are none of tensors without any.

    Args:
        writer: Who writes.
        folder: The cell.
        key: The eval key.
        rows: What was measured.
        samples: Outcomes per sample, by name.
        proofs: Witnesses and certificates, by name.
        train_key: The key of the cell.
        networks: The digests of the files of the networks that were measured, by their names.

    Raises:
        StorageError: If a file that the writer was given before cannot be written.
    """
    files = {folder.rows(key): format_rows(rows).encode()}
    if samples:
        files[folder.samples(key)] = packed(samples, {})
    if proofs:
        files[folder.proof(key)] = packed(proofs, {})
    for path, data in files.items():
        writer.write(path, data)
    digests = {path.name: digest_of(data) for path, data in files.items()}
    # The seal comes last: it says that the evaluation is complete.
    seal = seal_text(train_key, key, digests | dict(networks or {}))
    writer.write(folder.seal(key), seal.encode())


def is_measured(folder: CellFolder, key: str, blank: Row, read: Read = read_rows) -> bool:
    """Return whether an evaluation is there and is what was written; nothing is changed."""
    try:
        sealed_rows(folder, key, blank, read)
    except (Unsealed, Disagreement, StorageError):
        return False
    return True


def drop_damaged(folder: CellFolder, key: str, blank: Row, read: Read = read_rows) -> bool:
    """Read the files of an evaluation, and take its rows away if one of them is not as written.

    What disagrees is kept under another name; without rows the evaluation is measured anew.

    Args:
        folder: The cell.
        key: The eval key.
        blank: A row with all the columns that the cell fixes.
        read: How the file of rows is read.

    Returns:
        Whether the evaluation is there, and all it was.

    Raises:
        StorageError: If a file cannot be read.
    """
    try:
        sealed_rows(folder, key, blank, read)
    except Unsealed:
        return False
    except Disagreement as damage:
        set_aside(folder, key, [*damage.problems])
        return False
    return True


def set_aside(folder: CellFolder, key: str, damaged: Collection[Path]) -> None:
    """Keep the damaged files of an evaluation under other names, and remove rows and seal.

    Raises:
        StorageError: If a file cannot be removed.
    """
    own = (folder.rows(key), folder.samples(key), folder.proof(key), folder.seal(key))
    for path in own:
        if path in damaged and os.path.lexists(path):
            quarantine(path)
    discard(folder.rows(key))
    discard(folder.seal(key))


def read_samples(folder: CellFolder, key: str) -> dict[str, Tensor]:
    """Return the outcomes per sample of an evaluation by their names, empty if it has none.

    Raises:
        Unreadable: If the file is damaged.
    """
    path = folder.samples(key)
    return read_tensors(path)[0] if path.exists() else {}
