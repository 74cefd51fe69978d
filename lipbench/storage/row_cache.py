"""A cache of files of rows, each parsed once as long as it stays the same."""

import os
from pathlib import Path

from lipbench.storage.files import StorageError
from lipbench.storage.rows import Row, read_rows

_Mark = tuple[int, ...]


class RowCache:
    """What was read of the files of rows of a run.

    A file is parsed again if its identity, size or times changed. Those who write rows replace
    the file, which changes all of them.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_Mark, list[Row]]] = {}

    def rows(self, path: Path) -> list[Row]:
        """Return the rows that `path` holds, as `lipbench.storage.rows.read_rows` does.

        Raises:
            RowsDamaged: If the file is truncated, not a file of rows, or of another schema.
            StorageError: If the file cannot be read.
        """
        try:
            # Before the file is read: one that is replaced meanwhile is read again next time.
            mark = _mark(path.stat())
        except OSError as error:
            raise StorageError("read", path, error) from error
        known = self._known.get(path)
        if known is None or known[0] != mark:
            known = self._known[path] = (mark, read_rows(path))
        return known[1]


def _mark(stat: os.stat_result) -> _Mark:
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
