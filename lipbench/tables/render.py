"""Tables for the terminal, for Markdown, and for other programs."""

import csv
import io
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from lipbench.tables.blocks import Entry, TableBlock, TableLine
from lipbench.tables.columns import Column
from lipbench.tables.notes import legend

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 1000
"""Columns of a console that never cuts or wraps."""
_CSV_COLUMNS = (
    *("table", "method", "label", "params", "checkpoint", "column", "metric", "norm", "epsilon"),
    *("estimator", "side", "mean", "standard_deviation", "n", "seeds", "best", "printed"),
)


def to_console(blocks: Sequence[TableBlock], console: "Console") -> None:
    """Print `blocks` to a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for block in blocks:
        table = Table(title=Text(block.title), title_justify="left", box=SIMPLE_HEAD)
        table.add_column(Text("Method"), no_wrap=True)
        table.add_column("Seeds", justify="right", no_wrap=True)
        for column in block.columns:
            table.add_column(Text("\n".join(heading(column))), justify="right", no_wrap=True)
        for line in block.lines:
            cells = [
                Text(entry_text(entry, column, line), style="bold" if entry.best else "")
                for entry, column in zip(line.entries, block.columns, strict=True)
            ]
            table.add_row(Text(line.label), seeds(line), *cells)
        console.print(table)
        for note in (*legend(block), *(f"Note: {text}" for text in block.warnings)):
            console.print(Text(note))
        console.print()


def plain(blocks: Sequence[TableBlock]) -> str:
    """Return what a terminal would show, without colours and uncut."""
    from rich.console import Console

    text = io.StringIO()
    to_console(blocks, Console(file=text, width=_WIDE, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip() + "\n"


def markdown(blocks: Sequence[TableBlock]) -> str:
    """Return one Markdown table per block, with notes beneath it."""
    from tabulate import tabulate

    sections = []
    for block in blocks:
        head = ["Method", "Seeds", *(" ".join(heading(column)) for column in block.columns)]
        body = [[line.label, seeds(line), *_marked(line, block.columns)] for line in block.lines]
        table = tabulate(
            [[_pipes(cell) for cell in row] for row in body],
            headers=[_pipes(cell) for cell in head],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=("left", *["right"] * (len(head) - 1)),
        )
        notes = [*legend(block), *(f"Note: {text}" for text in block.warnings)]
        sections.append(f"### {block.title}\n\n{table}\n\n" + "\n".join(f"- {n}" for n in notes))
    return "\n\n".join(sections) + "\n"


def csv_text(blocks: Sequence[TableBlock]) -> str:
    """Return one line per method and column, in full precision and as fractions, not percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for block in blocks:
        for line in block.lines:
            about = (block.title, line.method, line.label, line.params, block.checkpoint)
            for column, entry in zip(block.columns, line.entries, strict=True):
                key = (column.metric, _short(column.norm), _short(column.epsilon))
                what = (column.heading, *key, column.estimator, column.side)
                how = (_full(entry.mean), _full(entry.deviation), len(entry.rows), line.seeds)
                paper = _full(entry.printed and entry.printed / (100 if column.percent else 1))
                writer.writerow([*about, *what, *how, "yes" if entry.best else "no", paper])
    return text.getvalue()


def heading(column: Column) -> list[str]:
    """Return the words of a column's name, then what its numbers mean: norm, epsilon, settings."""
    norm = "" if column.norm is None else f"l{_short(column.norm)}"
    epsilon = "" if column.epsilon is None else f"eps = {_short(column.epsilon)}"
    notes = (text.strip() for text in column.note.split(","))
    return [*column.heading.split(), *(text for text in (norm, epsilon, *notes) if text)]


def seeds(line: TableLine) -> str:
    """Return how many seeds a method's numbers stand for: n, or k/n if some have none."""
    return f"{line.done}/{line.seeds}" if line.failed else str(line.seeds)


def entry_text(entry: Entry, column: Column, line: TableLine) -> str:
    """Return mean ± deviation; (k) if other seeds than the failed ones lack this number."""
    if entry.mean is None:
        text = "-"
    else:
        text = figure(entry.mean, column)
        if entry.deviation is not None:
            text += f" ± {figure(entry.deviation, column)}"
        if len(entry.rows) != line.done:
            text += f" ({len(entry.rows)})"
    if entry.printed is None:
        return text
    return f"{text} [{entry.printed:{'.1f' if column.percent else 'g'}}]"


def figure(value: float, column: Column) -> str:
    """Return an accuracy as percent with one decimal, another number with three digits."""
    if not isfinite(value):
        return str(value)
    if column.percent:
        return f"{100 * value + 0.0:.1f}".replace("-0.0", "0.0")
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text.replace("-0", "0") if value == 0 else text


def _marked(line: TableLine, columns: Sequence[Column]) -> list[str]:
    texts = [entry_text(e, c, line) for e, c in zip(line.entries, columns, strict=True)]
    return [f"**{t}**" if e.best else t for t, e in zip(texts, line.entries, strict=True)]


def _pipes(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


def _full(number: float | None) -> str:
    return "" if number is None else repr(float(number))
