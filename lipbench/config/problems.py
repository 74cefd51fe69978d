"""Configuration errors: what is wrong, and on which line of the file."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


_TOKENS = re.compile(r"""\n|#[^\n]*|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[][{},]|[^][{},"'#\s]+""")
"""What matters of TOML inside a list: line ends, comments, strings, brackets, commas, the rest."""


class ConfigError(Exception):
    """A configuration is not valid; `problems` are all its mistakes, each with its location."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Invalid(Exception):
    """A value cannot be used; what is wrong with it has been reported already."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a table stands in a configuration file; problems of all tables go to one list."""

    source: str
    """Name of the file."""
    lines: tuple[str, ...] = ()
    """The text of the file, if it has one."""
    span: range = range(0)
    """The lines, from 0, in which the table stands."""
    labels: tuple[str, ...] = ()
    """How a person calls the table, from the outside in."""
    problems: list[str] = field(default_factory=list)

    def at(self, label: str, span: range | None = None) -> "Location":
        """Return where a table inside this one stands, found by its label without a `span`."""
        first = self._find(label) if span is None else None
        if span is None:
            span = self.span if first is None else range(first, self.span.stop)
        return replace(self, labels=(*self.labels, label), span=span)

    def entries(self, key: str) -> list[range]:
        """Return the lines of each entry of the list in brackets that a key is set to."""
        first = self._find(key)
        if first is None:
            return []
        _, _, text = "\n".join(self.lines[first : self.span.stop]).partition("=")
        return list(_entries(text, first))

    def report(self, problem: str, key: str = "") -> Invalid:
        """Record a problem of the table or of one of its keys.

        Returns:
            An error to raise.
        """
        line = self._find(key)
        if line is None and self.span:
            line = self.span.start
        source = self.source if line is None else f"{self.source}:{line + 1}"
        pieces = (source, ", ".join(self.labels), problem.rstrip("."))
        self.problems.append(": ".join(piece for piece in pieces if piece))
        return Invalid(problem)

    def _find(self, key: str) -> int | None:
        # A key of the table, also in an inline table, or the header of a table inside it.
        pattern = re.compile(rf'(^|[\s,{{\[."]){re.escape(key)}"?\s*(=|\])')
        for number in self.span if key else ():
            text = self.lines[number]
            if not text.lstrip().startswith("#") and pattern.search(text):
                return number
        return None


def attempt(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Return what `make` returns, or None if it found something invalid: to go on looking."""
    try:
        return make(*args, **kwargs)
    except Invalid:
        return None


def _entries(text: str, line: int) -> Iterator[range]:
    """Yield the lines of each entry of the list that a text begins with, from its line on."""
    depth, start = 0, None
    for token in _TOKENS.findall(text):
        line += token == "\n"
        if token == "\n" or token.startswith("#"):
            continue
        depth += (token in "[{") - (token in "]}")
        if depth == 0 or (depth == 1 and token == ","):
            if start is not None:
                yield range(start, line + 1)
            start = None
            if depth == 0:
                return
        elif start is None and (depth, token) != (1, "["):
            start = line
