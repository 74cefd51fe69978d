"""Rows: one measured number each, and the CSV file of many."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from lipbench.storage.files import NotAFile, StorageError, read_bytes

SCHEMA = 1
SELECTION = "selection"
"""Flag of the rows that were measured with the attack that chose the checkpoints."""
UNVERIFIED = "unverified"
"""Flag of values that nothing proves, as `lipbench.bound` has it; they enter no table."""
_SIDES = ("", "lower", "upper", "exact", "estimate")
_STATUSES = ("done", "refused", "failed", "timeout", "invalid")


class RowsDamaged(Exception):
    """A file of rows is truncated, foreign or of another schema; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one checkpoint; its fields are the columns of results.csv, in this order.

    Text fields are empty and number fields None where they say nothing. A value that was measured
    and is not a number is NaN; one that was not measured is None.
    """

    schema: int = SCHEMA
    benchmark: str
    dataset: str
    """JSON with sorted keys, its name among them; the same holds for `model`."""
    model: str
    method: str
    params: str
    """JSON of all fields of the method with sorted keys, never empty."""
    seed: int
    checkpoint: str = ""
    """`chosen`, `last`, or a point of a path."""
    split: str = ""
    n: int | None = None
    """Number of samples behind the value."""
    metric: str
    norm: float | None = None
    epsilon: float | None = None
    """Size of the perturbation, in pixel units."""
    domain: str = ""
    """`all`, or the box."""
    estimator: str = ""
    side: str = ""
    """Which side of the truth the value is on: lower, upper, exact or estimate."""
    value: float | None = None
    status: str = "done"
    flags: tuple[str, ...] = ()
    seconds: float | None = None
    device: str = ""
    train_key: str = ""
    eval_key: str = ""
    env_id: str = ""

    def __post_init__(self) -> None:
        if self.side not in _SIDES:
            raise ValueError(f"side must be one of {_SIDES}, got {self.side!r}.")
        if self.status not in _STATUSES:
            raise ValueError(f"status must be one of {_STATUSES}, got {self.status!r}.")
        if self.flags and any(";" in flag or not flag for flag in self.flags):
            raise ValueError(f"a flag is text without semicolons, got {self.flags!r}.")

    @property
    def box(self) -> tuple[float, float] | None:
        """Return the domain as a box, None for all of space."""
        if self.domain in ("", "all"):
            return None
        low, high = self.domain.strip("[]").split(", ")
        return float(low), float(high)


Read = Callable[[Path], list[Row]]
"""How a file of rows is read: `read_rows`, or something that remembers what it read."""
COLUMNS = tuple(field.name for field in fields(Row))
_cells = attrgetter(*COLUMNS)


def box_text(box: tuple[float, float] | None) -> str:
    """Return what the column `domain` says."""
    return "all" if box is None else f"[{_shortest(box[0])}, {_shortest(box[1])}]"


def format_rows(rows: Iterable[Row]) -> str:
    """Return `rows` as CSV text with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_write, _cells(row)) for row in rows)
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """Return the rows that `path` holds.

    Raises:
        RowsDamaged: If the file is truncated, not a file of rows, or of another schema.
        StorageError: If the file cannot be read.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except NotAFile as error:
        raise RowsDamaged(f"{path} is damaged: {error.strerror}.") from error
    except OSError as error:
        raise StorageError("read", path, error) from error
    except UnicodeDecodeError as error:
        raise RowsDamaged(f"{path} is not text in UTF-8: {error}.") from error
    return _parse(text, path)


def _shortest(number: float) -> str:
    return text if float(text := f"{number:g}") == number else repr(number)


def _parse(text: str, path: Path) -> list[Row]:
    if "\0" in text:
        raise RowsDamaged(f"{path} is damaged: it holds NUL bytes.")
    if not text.endswith("\n"):
        raise RowsDamaged(f"{path} is truncated: its last line does not end.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if tuple(next(reader)) != COLUMNS:
            raise RowsDamaged(f"{path} is no file of rows: its header is not {','.join(COLUMNS)}.")
        return [_read(cells) for cells in reader if cells]
    except (ValueError, csv.Error) as error:
        raise RowsDamaged(f"{path} is damaged in line {reader.line_num}: {error}") from error


def _read(cells: list[str]) -> Row:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"it has {len(cells)} cells and not {len(COLUMNS)}.")
    text = dict(zip(COLUMNS, cells, strict=True))
    if text["schema"] != str(SCHEMA):
        raise ValueError(
            f"its schema is {text['schema']!r} and this lipbench reads {SCHEMA}: "
            "use the version that wrote it, or run the benchmark again."
        )
    return Row(
        schema=SCHEMA,
        benchmark=text["benchmark"],
        dataset=text["dataset"],
        model=text["model"],
        method=text["method"],
        params=text["params"],
        seed=int(text["seed"]),
        checkpoint=text["checkpoint"],
        split=text["split"],
        n=int(text["n"]) if text["n"] else None,
        metric=text["metric"],
        norm=_number(text["norm"]),
        epsilon=_number(text["epsilon"]),
        domain=text["domain"],
        estimator=text["estimator"],
        side=text["side"],
        value=_number(text["value"]),
        status=text["status"],
        flags=tuple(text["flags"].split(";")) if text["flags"] else (),
        seconds=_number(text["seconds"]),
        device=text["device"],
        train_key=text["train_key"],
        eval_key=text["eval_key"],
        env_id=text["env_id"],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _write(value: object) -> str | None:
    if value is None or (type(value) is str and "\r" not in value and "\0" not in value):
        return value  # csv writes None as an empty cell
    if isinstance(value, tuple):
        value = ";".join(value)
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")  # float(): numpy's own repr names its type
    # A carriage return would end the line for csv's reader, a NUL the file for others.
    return str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
