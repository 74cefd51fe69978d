"""The data that all cells share: looked at after the work on each, and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

from lipbench.data.loading import put_back
from lipbench.data.splits import Data
from lipbench.guards.guard import Tampered
from lipbench.planning.cell import Cell


@contextmanager
def data_unchanged(data: Data, cell: Cell) -> Iterator[None]:
    """Put back data that the method of a cell changed, and let the cell fail by it.

    Methods are given the data themselves, which are too large for copies.

    Raises:
        Tampered: If they were changed, also where the work raised something else.
        DataMissing: If they cannot be read again.
    """
    try:
        yield
    finally:
        changed = put_back(data)
        if changed:
            raise Tampered(
                f"method {cell.entry.name!r} changed {', '.join(changed)}, which all methods "
                "share: train on a copy."
            )
