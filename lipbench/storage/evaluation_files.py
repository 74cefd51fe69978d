"""The files of one evaluation of a cell: its rows, outcomes per sample, and proofs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.files import StorageError, quarantine
from lipbench.storage.rows import Read, Row, RowsDamaged, format_rows, read_rows
from lipbench.storage.tensors import Unreadable, is_whole, packed, read_tensors
from lipbench.storage.writer import Writer


def write_evaluation(
    writer: Writer,
    folder: CellFolder,
    key: str,
    rows: Iterable[Row],
    samples: Mapping[str, Tensor],
    proofs: Mapping[str, Tensor],
) -> None:
    """Let `writer` write the files of an evaluation; there are none of tensors without any.

    Raises:
        StorageError: If a file that the writer was given before cannot be written.
    """
    # The rows come last: their file says that the evaluation is complete.
    if samples:
        writer.write(folder.samples(key), packed(samples, {}))
    if proofs:
        writer.write(folder.proof(key), packed(proofs, {}))
    writer.write(folder.rows(key), format_rows(rows).encode())


def is_measured(folder: CellFolder, key: str, read: Read = read_rows) -> bool:
    """Return whether the files of an evaluation are there and look whole; nothing is changed."""
    try:
        read(folder.rows(key))
    except (RowsDamaged, StorageError):
        return False
    return all(is_whole(path) for path in _beside(folder, key))


def drop_damaged(folder: CellFolder, key: str) -> bool:
    """Read the files of an evaluation, and take its rows away if one of them is damaged.

    The damaged file is kept under another name; without rows the evaluation is measured anew.

    Returns:
        Whether the evaluation is there, and whole to the last byte.

    Raises:
        StorageError: If a file cannot be read.
    """
    rows = folder.rows(key)
    if not rows.exists():
        return False
    path = rows
    try:
        read_rows(rows)
        for path in _beside(folder, key):
            read_tensors(path)
    except (RowsDamaged, Unreadable):
        quarantine(path)
        rows.unlink(missing_ok=True)
        return False
    return True


def read_samples(folder: CellFolder, key: str) -> dict[str, Tensor]:
    """Return the outcomes per sample of an evaluation by their names, empty if it has none.

    Raises:
        Unreadable: If the file is damaged.
    """
    path = folder.samples(key)
    return read_tensors(path)[0] if path.exists() else {}


def _beside(folder: CellFolder, key: str) -> list[Path]:
    """Return the files of tensors that an evaluation has."""
    return [path for path in (folder.samples(key), folder.proof(key)) if path.exists()]
