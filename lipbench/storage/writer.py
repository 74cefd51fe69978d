"""Asynchronous atomic writes: files are written while the caller computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from lipbench.storage.files import write_bytes


class Writer:
    """Writes files in the order in which it is given them, on a thread of its own.

    To wait until a file is safe on the disk takes longer than to compute many a number. All files
    are written when the with block ends; those after one that cannot be written are left out.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def write(self, path: Path, data: bytes) -> None:
        """Replace `path` by `data`, as `lipbench.storage.files.write_bytes` does, some time later.

        Raises:
            StorageError: If one of the files before it cannot be written.
        """
        before = self._last
        if before is not None and before.done():
            before.result()
        self._last = self._thread.submit(_write_after, before, path, data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the files.

        Raises:
            StorageError: If one of them cannot be written, and the with block raised nothing.
        """
        self._thread.shutdown()
        if error is None and self._last is not None:
            self._last.result()


def _write_after(before: Future[None] | None, path: Path, data: bytes) -> None:
    if before is not None:
        before.result()  # it is done, and raises if it failed
    write_bytes(path, data)
