"""The figures as text for people, and as values for JSON."""

from collections.abc import Mapping
from typing import Any

from lipbench.speed.figure import Figure, Ratio
from lipbench.speed.limits import Limit, Limits

_HEAD = ("work", "over", "ratio", "spread", "limit", "reached", "ours s", "other s", "peak MiB")


def text(figures: Mapping[str, Figure], limits: Mapping[str, Limits], machine: str) -> str:
    """Return a table of the ratios, what each means, and the machine they come from."""
    from tabulate import tabulate

    rows = [row for name in figures for row in _rows(name, figures[name], limits)]
    table = tabulate(rows, headers=_HEAD, disable_numparse=True)
    meanings = [f"{name}: {line}" for name in figures for line in _lines(figures[name])]
    return "\n".join([table, "", *meanings, "", machine])


def as_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Return one object for each work that was measured, and nothing else."""
    return {name: figure.as_json() for name, figure in figures.items()}


def machine(environment: Mapping[str, Any]) -> str:
    """Return one line about the machine that `lipbench.storage.environment.record` describes."""
    torch, memory = environment["torch"], environment["memory_bytes"]
    facts = [
        environment["cpu"],
        f"{environment['cores']} cores",
        *([f"{memory / 2**30:.0f} GiB"] if memory else []),
        *torch["gpus"],
        environment["platform"],
        f"Python {environment['python']}",
        f"torch {environment['libraries']['torch']} with {torch['threads']} threads",
        f"lipbench {environment['lipbench']}{_commit(environment['git'])}",
    ]
    return ", ".join(facts)


def _commit(git: Mapping[str, Any] | None) -> str:
    return f" at {git['commit'][:12]}{' with changes' * git['dirty']}" if git else ""


def _rows(name: str, figure: Figure, limits: Mapping[str, Limits]) -> list[tuple[str, ...]]:
    wanted = limits.get(name, Limits())
    peaks = figure.peak_bytes

    def row(over: str, ratio: Ratio, limit: Limit | None, theirs: float | None) -> tuple[str, ...]:
        low, high = ratio.spread
        reached = "" if limit is None else ("yes" if limit.reached(ratio.value) else "no")
        return (
            *(name, over, f"{ratio.value:.3g}", f"{low:.3g} to {high:.3g}"),
            *(str(limit or ""), reached, f"{figure.ours_s:.4g}"),
            "" if theirs is None else f"{theirs:.4g}",
            " / ".join(_mebibytes(peaks[side]) for side in ("ours", over) if side in peaks),
        )

    over, theirs = figure.baseline_s or ("plain" if figure.plain_s else "", figure.plain_s)
    rows = [row(over, figure.ratio, wanted.plain, theirs)]
    if figure.ratio_eager is not None:
        rows.append(row("eager", figure.ratio_eager, wanted.eager, figure.eager_s))
    return rows


def _mebibytes(peak: int | None) -> str:
    return "?" if peak is None else f"{peak / 2**20:.0f}"


def _lines(figure: Figure) -> list[str]:
    return [figure.what, *figure.remarks]
