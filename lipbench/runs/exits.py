"""Exit codes of a run, and its last line."""

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every verb."""

    DONE = 0
    INTERNAL = 1
    """An internal error, or a file that cannot be read or written."""
    USAGE = 2
    """Bad usage, configuration or plugin."""
    FAILED = 3
    """Finished, but some cells failed or lack their data."""
    BUSY = 4
    """No cell is free: those that remain are held by live processes."""
    NOTHING = 5
    """Nothing selected."""
    UNSOUND = 6
    """A lower bound above an upper one, or stored numbers that are not what was written."""
    INTERRUPTED = 130
    TERMINATED = 143


_ORDER = ("done", "failed", "nan", "oom", "timeout", "killed", "missing", "running")
_WORDS = {"running": "held by another process"}


def summarise(
    counts: Mapping[str, int],
    *,
    violations: int = 0,
    error: str | None = None,
    signal: ExitCode | None = None,
) -> tuple[str, ExitCode]:
    """Return the last line of a run and its exit code.

    Several reasons at once rank: a signal, an internal error, unsoundness, failure, busy.

    Args:
        counts: Number of selected cells in each state; `running` are held by other processes.
        violations: Number of soundness violations.
        error: What went wrong in the harness itself.
        signal: INTERRUPTED or TERMINATED if the run was stopped.
    """
    phrases = [f"{counts[s]} {_WORDS.get(s, s)}" for s in _ORDER if counts.get(s)]
    phrases += [f"{n} {s}" for s, n in counts.items() if n and s not in _ORDER]
    if not phrases and not error:
        phrases.append("nothing selected")
    if violations:
        phrases.append(f"{violations} soundness violation{'s' if violations > 1 else ''}")
    if error:
        phrases.append(error)
    if signal:
        phrases.append("interrupted" if signal is ExitCode.INTERRUPTED else "terminated")
    code = _code(counts, violations > 0, error is not None, signal)
    return f"lipbench: {', '.join(phrases)} -> exit {int(code)}", code


def _code(
    counts: Mapping[str, int], unsound: bool, error: bool, signal: ExitCode | None
) -> ExitCode:
    failed = sum(n for state, n in counts.items() if state not in ("done", "running"))
    if signal is not None:
        return signal
    if error:
        return ExitCode.INTERNAL
    if unsound:
        return ExitCode.UNSOUND
    if failed:
        return ExitCode.FAILED
    if counts.get("running"):
        return ExitCode.BUSY
    return ExitCode.DONE if counts.get("done") else ExitCode.NOTHING
