"""Progress of a run, as a person sees it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lipbench.planning.estimate import duration
from lipbench.printable import printable

if TYPE_CHECKING:
    from rich.status import Status as Spinner

    from lipbench.planning.cell import Cell


@runtime_checkable
class Reporter(Protocol):
    """What a run tells while it works."""

    def say(self, text: str) -> None:
        """Show a text that stays."""

    def epoch(self, cells: "list[Cell]", done: int, total: int, remark: str) -> None:
        """Tell that cells that are trained together finished an epoch."""

    def cell(self, cell: "Cell", state: str, message: str = "", *, before: bool = False) -> None:
        """Tell that a cell reached a state, or was in it before the run began."""

    def conclude(self, line: str) -> None:
        """Show the last line."""


class Quiet:
    """Shows the last line only."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def epoch(self, cells: "list[Cell]", done: int, total: int, remark: str) -> None:
        """Show nothing."""

    def cell(self, cell: "Cell", state: str, message: str = "", *, before: bool = False) -> None:
        """Show nothing."""

    def conclude(self, line: str) -> None:
        """Print the line."""
        _print(line)


class Lines(Quiet):
    """Prints one line for each cell that is finished: for logs."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.skipped = total, 0, 0
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Print the text."""
        _print(text)

    def cell(self, cell: "Cell", state: str, message: str = "", *, before: bool = False) -> None:
        """Print the cell, its state and the time left; cells done before are counted silently."""
        self.done += 1
        if before:
            self.skipped += 1
            return
        remark = f": {message}" if message else ""
        self.say(f"{self._count()} {named(cell)} {state}{remark}{self._left()}")

    def _count(self) -> str:
        width = len(str(self.total))
        return f"[{self.done:{width}}/{self.total}]"

    def _left(self) -> str:
        fresh = self.done - self.skipped
        if not fresh or self.done >= self.total:
            return ""
        elapsed = time.monotonic() - self.began
        return f"  ETA {duration(elapsed / fresh * (self.total - self.done))}"


class Live(Lines):
    """Shows one line that changes, and keeps only what went wrong: for a terminal."""

    def __init__(self, total: int, line: "Spinner") -> None:
        super().__init__(total)
        self.line = line
        self.failed = 0

    def say(self, text: str) -> None:
        """Print the text above the line."""
        self.line.console.print(printable(text), markup=False, highlight=False)

    def epoch(self, cells: "list[Cell]", done: int, total: int, remark: str) -> None:
        """Change the line."""
        seeds = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        self._show(f"{named(cells[0])}{seeds}  epoch {done}/{total}  {remark}")

    def cell(self, cell: "Cell", state: str, message: str = "", *, before: bool = False) -> None:
        """Count the cell; print it only if it is not done."""
        self.done += 1
        self.skipped += before
        if state != "done" and not before:
            self.failed += 1
            self.say(f"{self._count()} {named(cell)} {state}: {message}")
        self._show(named(cell))

    def _show(self, text: str) -> None:
        failed = f"  {self.failed} failed" if self.failed else ""
        self.line.update(f"{self._count()} {text}{self._left()}{failed}".replace("[", "\\["))


@contextmanager
def reporter(style: str, total: int) -> Iterator[Reporter]:
    """Give what reports a run of `total` cells: `quiet`, or `auto` by where the output goes."""
    if style == "quiet":
        yield Quiet()
    elif not sys.stdout.isatty():
        yield Lines(total)
    else:
        from rich.console import Console

        console = Console()
        live = Live(total, console.status(""))
        with live.line:
            yield live
            concluded = live.line
            concluded.stop()


def named(cell: "Cell") -> str:
    """Return how a person calls a cell."""
    target = cell.entry.target_accuracy
    goal = "" if target is None else f" {target:g}"
    return f"{cell.benchmark.name} {cell.entry.name}{goal} seed {cell.seed}"


def _print(text: str) -> None:
    # A run goes on without its reader, and where a plugin has closed the stream.
    with suppress(ValueError, OSError):
        print(printable(text), flush=True)
