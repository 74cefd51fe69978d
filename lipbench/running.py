"""Run a configuration: train what is not trained, evaluate what is not evaluated."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lipbench.cell import Cell
from lipbench.cells import UNSOUND, CellFolder
from lipbench.curves import write_curves
from lipbench.environment import env_id, record
from lipbench.evaluate import is_measured
from lipbench.exits import ExitCode, summarise
from lipbench.files import clean, probe, write_json, write_text
from lipbench.planning import Plan, plan
from lipbench.progress import Progress, named, reporter
from lipbench.resolved import resolved
from lipbench.results import write_plan, write_results
from lipbench.settings import Config
from lipbench.table import table_text


def run(
    config: Config | dict[str, Any] | str | Path,
    out: Path | str | None = None,
    *,
    only: Sequence[str] = (),
    device: str | None = None,
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
        retry: Whether cells that failed before are tried again.
        progress: `auto` shows a line while it works, `quiet` only the last line.

    Returns:
        The exit code, see `lipbench.exits`.

    Raises:
        ConfigError: If the configuration is not valid.
        StorageError: If the folder cannot be written.
    """
    stem = Path(config).stem if isinstance(config, str | Path) else "lipbench"
    folder = Path(out) if out is not None else Path("results") / stem
    whole = plan(config, folder, only)
    probe(folder)
    for place in (folder, folder / "env"):
        clean(place)
    write_plan(folder, whole.planned())
    write_json(folder / "config.resolved.json", resolved(whole.config))
    with reporter(progress, len(whole.selected)) as report:
        for cell in whole.selected:
            reason = _interruption(cell.folder(folder))
            if reason:
                report.say(f"{named(cell)} is taken up again: {reason}")
        report.say(whole.describe() if _todo(whole, folder, retry) else "nothing left to do")
        interrupted = _work(whole, folder, device or whole.config.device, retry, report)
        _derive(folder)
        line, code = _conclude(whole, folder, interrupted, report)
        report.conclude(line)
    return int(code)


def run_cells(
    cells: Sequence[Cell], out: Path | str, device: str = "auto", report: Progress | None = None
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
    from lipbench.work import work_on

    folder = Path(out)
    environment = record()
    identity = env_id(environment)
    write_json(folder / "env" / f"{identity}.json", environment)
    stacks: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        # Two benchmarks may share all that is trained and differ in what is evaluated.
        stacks.setdefault((cell.benchmark.name, *cell.stack), []).append(cell)
    with reporter("quiet", len(cells)) as silent:
        for stack in stacks.values():
            work_on(stack, folder, device, identity, report or silent)
    return {cell.key: _state(cell.folder(folder)) for cell in cells}


def run_cell(cell: Cell, out: Path | str, device: str = "auto") -> str:
    """Return the state of one cell after it was trained and evaluated, see `run_cells`."""
    return run_cells([cell], out, device)[cell.key]


def _work(whole: Plan, folder: Path, device: str, retry: bool, report: Progress) -> ExitCode | None:
    """Return the signal that stopped the work on the stacks that need it, None if none did.

    Raises:
        SystemExit: If something else asked for the end of the process.
    """
    try:
        for stack in whole.stacks():
            todo = [cell for cell in stack if _needs_work(cell, folder, retry)]
            for cell in stack:
                if cell not in todo:
                    report.cell(cell, _state(cell.folder(folder)), before=True)
            if todo:
                run_cells(todo, folder, device, report)
                write_results(folder)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as stop:
        if stop.code != ExitCode.TERMINATED:
            raise
        return ExitCode.TERMINATED
    return None


def _derive(folder: Path) -> None:
    """Rebuild what is derived from the cells."""
    write_results(folder)
    write_curves(folder)
    # Nothing may be done yet, of which no table could be made.
    with suppress(ValueError):
        write_text(folder / "table.tex", table_text(folder, "latex"))


def _interruption(place: CellFolder) -> str:
    """Return why a cell that was begun has no end, empty if it has one or was never begun."""
    status = place.read_status()
    if status is not None:
        return status.message if status.state == "killed" else ""
    damaged = sorted(path.name for path in place.path.glob("status.json.corrupt-*"))
    return f"its status.json is damaged and kept as {damaged[-1]}" if damaged else ""


def _todo(whole: Plan, folder: Path, retry: bool) -> bool:
    return any(_needs_work(cell, folder, retry) for cell in whole.selected)


def _needs_work(cell: Cell, folder: Path, retry: bool) -> bool:
    place = cell.folder(folder)
    status = place.read_status()
    if status is None or status.state in ("running", "killed"):
        return True
    if status.state != "done":
        return retry
    return not all(is_measured(place, evaluation) for evaluation in cell.evaluations)


def _conclude(
    whole: Plan, folder: Path, interrupted: ExitCode | None, report: Progress
) -> tuple[str, ExitCode]:
    places = [cell.folder(folder) for cell in whole.selected]
    counts = Counter(_state(place) for place in places)
    statuses = [place.read_status() for place in places]
    unsound = sum(status is not None and UNSOUND in status.flags for status in statuses)
    return summarise(counts, violations=unsound, signal=interrupted)


def _state(place: CellFolder) -> str:
    status = place.read_status()
    if status is not None and status.state == "done":
        return "done"
    if place.is_held():  # by somebody who has not said so yet
        return "running"
    return "missing" if status is None else status.state
