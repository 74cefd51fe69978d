"""Tables of means over seeds, one block per benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lipbench.storage.rows import UNVERIFIED, Row
from lipbench.tables.blocks import Entry, TableBlock, TableLine
from lipbench.tables.columns import Column, choose
from lipbench.tables.comparison import with_best
from lipbench.tables.labels import labels, parse, target
from lipbench.tables.notes import warnings
from lipbench.tables.paper import printed_row
from lipbench.tables.ratio_rows import gap_rows
from lipbench.tables.sources import Source, load

Style = Literal["plain", "latex", "markdown", "csv"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table as text, and what is wrong with the results that it is of."""

    text: str
    """Ready to be printed; empty if no number can be believed."""
    disagreements: tuple[str, ...]
    """One line for each stored number or file that is not what was written or cannot be true: it
    is not in the table."""


def table_text(path: Path, style: str, checkpoint: str = "chosen", paper: bool = False) -> str:
    """Make the table of the results at `path`, as `table_report` does.

    Returns:
        The table as text, ready to be printed.
    """
    return table_report(path, style, checkpoint, paper).text


def table_report(path: Path, style: str, checkpoint: str = "chosen", paper: bool = False) -> Report:
    """Make the table of the results at `path`; results.csv is rebuilt first where there are cells.

    Args:
        path: A run, a folder of runs, or a results.csv.
        style: How it is written: plain, latex, markdown or csv.
        checkpoint: Whose numbers: `chosen`, `last`, or a point of a path.
        paper: Whether to set the CLIP paper's numbers in brackets beside ours.

    Returns:
        The table, and what is wrong with the results.

    Raises:
        ValueError: If `style` is unknown, or no row is about `checkpoint`.
    """
    from lipbench.tables import latex, render

    writers = {
        "plain": render.plain,
        "latex": latex.latex,
        "markdown": render.markdown,
        "csv": render.csv_text,
    }
    if style not in writers:
        raise ValueError(f"style must be one of {', '.join(writers)}, got {style!r}.")
    sources = load(path)
    problems = tuple(line for source in sources for line in source.disagreements)
    try:
        found = _blocks(path, sources, checkpoint, paper)
    except ValueError:
        if not problems:
            raise
        return Report(text="", disagreements=problems)
    return Report(text=writers[style](found), disagreements=problems)


def blocks(path: Path, checkpoint: str = "chosen", paper: bool = False) -> list[TableBlock]:
    """Read all runs found at `path`, as `load` does, and make their blocks for the renderers.

    Returns:
        The blocks, at least one.

    Raises:
        ValueError: If no row is about `checkpoint`, or there are no rows.
    """
    return _blocks(path, load(path), checkpoint, paper)


def _blocks(
    path: Path, sources: Sequence[Source], checkpoint: str, paper: bool
) -> list[TableBlock]:
    """Make the blocks of all sources.

    Returns:
        The blocks, at least one.

    Raises:
        ValueError: If no row is about `checkpoint`, or there are no rows.
    """
    there = {row.checkpoint for source in sources for row in source.rows if row.checkpoint}
    if checkpoint != "chosen" and checkpoint not in there:
        known = ", ".join(sorted(there)) or "none"
        raise ValueError(f"{path} has no checkpoint {checkpoint!r}; it has: {known}.")
    titled = []
    for source in sources:
        prefix = f"{source.name}: " if len(sources) > 1 else ""
        for block in build(source, checkpoint, paper=paper):
            titled.append(replace(block, title=prefix + block.title))
    if not titled:
        raise ValueError(f"{path} has no results yet: none of its cells was begun.")
    return titled


def build(source: Source, checkpoint: str = "chosen", paper: bool = False) -> list[TableBlock]:
    """Return one block for each benchmark of `source`, in order of appearance.

    A benchmark without the chosen checkpoint, such as a regression, shows its last one; one of
    which no cell was ever begun is left out.
    """
    names = dict.fromkeys(row.benchmark for row in source.rows if "missing" not in row.flags)
    return [
        _block(source, [row for row in source.rows if row.benchmark == name], checkpoint, paper)
        for name in names
    ]


def _block(source: Source, rows: list[Row], checkpoint: str, paper: bool) -> TableBlock:
    there = {row.checkpoint for row in rows if row.metric != "cell"}
    if checkpoint == "chosen" and checkpoint not in there and "last" in there:
        checkpoint = "last"
    usable = [row for row in rows if row.checkpoint == checkpoint and _is_number(row)]
    of_method = _by_method(rows)
    usable_of = {
        method: [*method_rows, *gap_rows(method_rows)]
        for method, method_rows in _by_method(usable).items()
    }
    columns = choose([row for method_rows in usable_of.values() for row in method_rows])
    methods = list(of_method)
    lines = [
        _line(label, of_method[method], checkpoint, usable_of.get(method, []), columns, paper)
        for method, label in zip(methods, labels(methods), strict=True)
    ]
    lines = with_best(lines, columns, source)
    dataset, model = parse(rows[0].dataset).get("name"), parse(rows[0].model).get("name")
    about = ", ".join(str(name) for name in (dataset, model) if name)
    return TableBlock(
        title=rows[0].benchmark + (f" ({about})" if about else ""),
        benchmark=rows[0].benchmark,
        checkpoint=checkpoint,
        columns=columns,
        lines=tuple(lines),
        warnings=tuple(warning for line in lines for warning in warnings(line, columns)),
        input_scales=tuple(_input_scales(usable_of.get(method, [])) for method in methods),
    )


def _by_method(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.params), []).append(row)
    return groups


def _is_number(row: Row) -> bool:
    is_proved = UNVERIFIED not in row.flags
    return is_proved and row.status == "done" and row.value is not None and row.value == row.value


def _input_scales(rows: Sequence[Row]) -> tuple[float, ...]:
    values = (row.value for row in rows if row.metric == "input_scale")
    return tuple(sorted({value for value in values if value is not None}))


def _missing(rows: Sequence[Row], checkpoint: str) -> tuple[tuple[str, int], ...]:
    """Return what a checkpoint has no number of, and the number of seeds for each reason."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        what = " ".join(filter(None, (row.estimator, row.metric)))
        if row.checkpoint != checkpoint:
            continue
        if row.status != "done":
            text = f"{what} {row.status}: {row.flags[-1] if row.flags else 'no reason given'}"
        elif UNVERIFIED in row.flags:
            text = f"{what} is {UNVERIFIED}, and in no column"
        else:
            continue
        seeds.setdefault(text, set()).add(row.seed)
    return tuple((text, len(which)) for text, which in seeds.items())


def _line(
    label: str,
    rows: list[Row],
    checkpoint: str,
    usable: list[Row],
    columns: Sequence[Column],
    paper: bool,
) -> TableLine:
    name, first = rows[0].method, rows[0]
    failed = {row.seed: " ".join(row.flags) or "failed" for row in rows if row.metric == "cell"}
    paper_row = printed_row(
        str(parse(first.dataset).get("name")), name, target(parse(first.params))
    )
    entries = []
    for column in columns:
        taken: dict[int, list[Row]] = {}
        for row in usable:
            if column.takes(row):
                taken.setdefault(row.seed, []).append(row)
        entry = Entry(rows=tuple(column.best(taken[seed]) for seed in sorted(taken)))
        if paper and paper_row and column.printed and (entry.rows or column.printed != "strength"):
            entry = replace(entry, printed=getattr(paper_row, column.printed))
        entries.append(entry)
    return TableLine(
        label=label,
        method=name,
        params=first.params,
        seeds=len({row.seed for row in rows}),
        failed=tuple(sorted(failed.items())),
        missing=_missing(rows, checkpoint),
        entries=tuple(entries),
    )
