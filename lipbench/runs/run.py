"""Run a configuration: train what is not trained, evaluate what is not evaluated."""

import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from lipbench.config.resolved import resolved
from lipbench.config.settings import Config
from lipbench.failure import Terminated
from lipbench.planning.cell import Cell
from lipbench.planning.plan import Plan, plan
from lipbench.runs.cell_state import cell_state, state_of
from lipbench.runs.curves import write_curves
from lipbench.runs.exits import ExitCode, summarise
from lipbench.runs.progress import Reporter, named, reporter
from lipbench.storage.cell_folder import UNSOUND
from lipbench.storage.environment import env_id, record
from lipbench.storage.files import clean, probe, update_json, update_text
from lipbench.storage.results import has_cells, write_plan, write_results
from lipbench.storage.row_cache import RowCache
from lipbench.tables.latex import latex
from lipbench.tables.sources import rebuild
from lipbench.tables.table import build

_UPKEEP = 0.02
"""Share of the time that may go into results.csv before all work is done."""


def run(
    config: Config | dict[str, Any] | str | Path,
    out: Path | str | None = None,
    *,
    only: Sequence[str] = (),
    device: str | None = None,
    stacked: bool = True,
    retry: bool = True,
    progress: str = "quiet",
) -> int:
    """Train and evaluate a configuration in a folder.

    What is done already is not done again, so a run that was stopped is resumed by the same call.
    Several processes may share the folder: each cell is worked on by one of them.

    Args:
        config: A configuration, its tables, or the path of its file.
        out: Folder of the run; None takes results/ and the stem of the file.
        only: Names of the benchmarks to run; none runs all.
        device: `cpu`, `cuda` or `auto`; None takes the configuration's.
        stacked: Whether cells that differ in numbers only are trained together.
        retry: Whether cells that failed before are tried again. Those that diverged are not:
            they would again.
        progress: `auto` shows a line while it works, `quiet` only the last line.

    Returns:
        The exit code, see `lipbench.runs.exits`.

    Raises:
        ConfigError: If the configuration is not valid.
        StorageError: If the folder cannot be written.
        TorchTampered: If a plugin replaced functions of torch or numpy, after which no number can
            be relied on.
    """
    stem = Path(config).stem if isinstance(config, str | Path) else "lipbench"
    # Absolute: a plugin may change the working directory.
    folder = (Path(out) if out is not None else Path("results") / stem).absolute()
    whole = plan(config, folder, only, device=device, stacked=stacked)
    probe(folder)
    for directory in (folder, folder / "env"):
        clean(directory)
    with reporter(progress, len(whole.selected)) as report:
        this = _Run(whole, folder, device or whole.config.device, retry, report)
        if this.has_work:
            again = plan(whole.config, folder, only, device=device, stacked=stacked, measure=True)
            this = this.with_plan(again)
        write_plan(folder, this.whole.planned())
        update_json(folder / "config.resolved.json", resolved(whole.config))
        this.announce()
        interrupted = this.work()
        this.derive()
        line, code = this.conclude(interrupted)
        report.conclude(line)
    return int(code)


def run_cells(
    cells: Sequence[Cell], out: Path | str, device: str = "auto", report: Reporter | None = None
) -> dict[str, str]:
    """Train and evaluate cells in the folder of a run.

    It may be called again, and from several processes: what is done is not done again, and cells
    that somebody else works on are left to them, with the state `running`. A cell is trained with
    its stack, whose other cells are saved too. Failures are states and not exceptions.

    Returns:
        The state of each cell by its key.

    Raises:
        StorageError: If the folder cannot be written.
    """
    from lipbench.runs.stack_work import work_on

    folder = Path(out).absolute()
    identity = _recorded(folder)
    stacks: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        # Two benchmarks may share all that is trained and differ in what is evaluated.
        stacks.setdefault((cell.benchmark.name, *cell.stack), []).append(cell)
    with reporter("quiet", len(cells)) as silent:
        for stack in stacks.values():
            work_on(stack, folder, device, identity, report or silent)
    folders = {cell.key: cell.folder(folder) for cell in cells}
    return {
        key: state_of(cell_folder, cell_folder.read_status())
        for key, cell_folder in folders.items()
    }


def run_cell(cell: Cell, out: Path | str, device: str = "auto") -> str:
    """Train and evaluate one cell.

    Returns:
        The state of the cell; see `run_cells`.
    """
    return run_cells([cell], out, device)[cell.key]


def _recorded(folder: Path) -> str:
    """Put this machine and software on record in the folder.

    Returns:
        The hash of both.
    """
    environment = record()
    identity = env_id(environment)
    update_json(folder / "env" / f"{identity}.json", environment)
    return identity


class _Run:
    """One call of `run`: how the cells stand, and what it read of them so far."""

    def __init__(
        self, whole: Plan, folder: Path, device: str, retry: bool, report: Reporter
    ) -> None:
        self.whole, self.folder, self.device = whole, folder, device
        self.retry, self.report = retry, report
        self.read = RowCache().rows
        self.identity = ""
        self.is_behind = False
        self.due = 0.0
        self.disagreements: list[str] = []
        self.states = {
            cell.folder(folder): cell_state(cell, folder, retry, self.read)
            for cell in whole.selected
        }

    @property
    def has_work(self) -> bool:
        """Return whether anything is left to do."""
        return any(state.needs_work for state in self.states.values())

    def with_plan(self, whole: Plan) -> "_Run":
        """Return the same call for a plan with the same cells, whatever their stacks."""
        new = copy(self)
        new.whole = whole
        return new

    def announce(self) -> None:
        """Say what is to be done."""
        for cell in self.whole.selected:
            reason = self.states[cell.folder(self.folder)].interruption
            if reason:
                self.report.say(f"{named(cell)} is taken up again: {reason}")
        self.report.say(self.whole.describe() if self.has_work else "nothing left to do")

    def work(self) -> ExitCode | None:
        """Work on the stacks that need it.

        Returns:
            The signal that stopped it, None if none did.

        Raises:
            SystemExit: If something else asked for the end of the process.
        """
        try:
            for stack in self.whole.stacks():
                self._work_on(stack)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        except Terminated:
            return ExitCode.TERMINATED
        return None

    def derive(self) -> None:
        """Rebuild what is derived from the cells; results that were published have none."""
        if not has_cells(self.folder):
            return
        source = rebuild(self.folder, self.read)
        self.disagreements = source.disagreements
        for line in self.disagreements:
            self.report.say(f"left out: {line}")
        write_curves(self.folder)
        blocks = build(source)
        if blocks:  # nothing may be done yet, of which no table could be made
            update_text(self.folder / "table.tex", latex(blocks))

    def conclude(self, interrupted: ExitCode | None) -> tuple[str, ExitCode]:
        """Return the last line and the exit code."""
        statuses = {folder: folder.read_status() for folder in self.states}
        counts = Counter(state_of(folder, status) for folder, status in statuses.items())
        flags = [flag for status in statuses.values() if status for flag in status.flags]
        violations = flags.count(UNSOUND) + len(self.disagreements)
        return summarise(counts, violations=violations, signal=interrupted)

    def _work_on(self, stack: Sequence[Cell]) -> None:
        todo = []
        for cell in stack:
            current = self.states[cell.folder(self.folder)]
            if current.needs_work:  # somebody else may have done it meanwhile
                current = cell_state(cell, self.folder, self.retry, self.read)
            if current.needs_work:
                todo.append(cell)
            else:
                self.report.cell(cell, current.state, before=True)
        if todo:
            from lipbench.runs.stack_work import work_on

            self.identity = self.identity or _recorded(self.folder)
            self._keep_up()
            work_on(todo, self.folder, self.device, self.identity, self.report, self.read)
            self.is_behind = True

    def _keep_up(self) -> None:
        """Rebuild results.csv before more work, unless that has taken too much time already."""
        began = time.monotonic()
        if self.is_behind and began >= self.due:
            self.is_behind = False
            write_results(self.folder, self.read)
            ended = time.monotonic()
            self.due = ended + (ended - began) / _UPKEEP
