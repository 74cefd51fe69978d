"""Tables in LaTeX, for a document that loads booktabs and nothing else."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined

from lipbench.tables.blocks import Entry, TableBlock, TableLine
from lipbench.tables.columns import Column
from lipbench.tables.notes import legend
from lipbench.tables.render import entry_text, heading, seeds

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",  # \\textquotedbl needs another font encoding than the default
    "±": r"\ensuremath{\pm}",
    "×": r"\ensuremath{\times}",
    "∞": r"\ensuremath{\infty}",
    "–": "--",
}
_ACCENTS = {
    "\u0300": r"\`",
    "\u0301": r"\'",
    "\u0302": r"\^",
    "\u0303": r"\~",
    "\u0308": r"\"",
    "\u030a": r"\r",
    "\u030c": r"\v",
    "\u0327": r"\c",
}
_GREEK = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi"
_GREEK_NAMES = frozenset(_GREEK.split())


def latex(blocks: Sequence[TableBlock]) -> str:
    """Return one table environment per block."""
    environment = Environment(
        loader=PackageLoader("lipbench.tables", ""),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # LaTeX has its own rules: everything below goes through `escape`
        keep_trailing_newline=True,
    )
    template = environment.get_template("table.tex.jinja")
    return template.render(blocks=[_strings(block) for block in blocks])


def escape(text: str) -> str:
    """Return `text` so that LaTeX prints it as it is.

    Accented Latin letters become accent commands; a character that a document without further
    packages cannot print becomes its code point.
    """
    return "".join(_escape_character(c) for c in unicodedata.normalize("NFC", text))


def _escape_character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character if character.isprintable() else " "
    if unicodedata.name(character, "").startswith("GREEK SMALL LETTER "):
        name = unicodedata.name(character).removeprefix("GREEK SMALL LETTER ").lower()
        name = {"lamda": "lambda"}.get(name, name)
        if name in _GREEK_NAMES:
            return rf"\ensuremath{{\{_command(name)}}}"
    decomposed = unicodedata.normalize("NFD", character)
    if len(decomposed) == 2 and decomposed[0].isascii() and decomposed[1] in _ACCENTS:
        return f"{_ACCENTS[decomposed[1]]}{{{decomposed[0]}}}"
    return f"[U+{ord(character):04X}]"


def _strings(block: TableBlock) -> dict[str, object]:
    notes = [*legend(block), *(f"Note: {text}" for text in block.warnings)]
    heads = [_heading(column) for column in block.columns]
    return {
        "title": escape(block.title),
        "alignment": "l" + "r" * (len(block.columns) + 1),
        "heads": list(zip_longest(["Method"], ["Seeds"], *heads, fillvalue="")),
        "lines": [_cells(line, block.columns) for line in block.lines],
        "notes": [escape(note) for note in notes],
    }


def _heading(column: Column) -> list[str]:
    return [_heading_word(word) for word in heading(column)]


def _heading_word(word: str) -> str:
    name, comma = word.removesuffix(","), word.endswith(",") * ","
    if name in _GREEK_NAMES:
        return rf"$\{_command(name)}${comma}"
    if match := re.fullmatch(r"l(inf|\d)", word):
        return r"$\ell_\infty$" if match[1] == "inf" else rf"$\ell_{match[1]}$"
    if match := re.fullmatch(r"(eps|sigma) = ([0-9.]+)", word):
        return rf"$\{match[1].replace('eps', 'varepsilon')} = {match[2]}$"
    return escape(word)


def _cells(line: TableLine, columns: Sequence[Column]) -> list[str]:
    cells = [escape(line.label), seeds(line)]
    for entry, column in zip(line.entries, columns, strict=True):
        text = _entry(entry, column, line)
        cells.append(rf"\textbf{{{text}}}" if entry.best else text)
    return cells


def _entry(entry: Entry, column: Column, line: TableLine) -> str:
    text = entry_text(entry, column, line)
    if entry.mean is None:
        text = "-" + text
    text = escape(text).replace(r" \ensuremath{\pm} ", r"\,$\pm$\,")
    return re.sub(r"(\d)e(-?\d+)", r"\1$\\cdot10^{\2}$", text)


def _command(greek: str) -> str:
    return "varepsilon" if greek == "epsilon" else greek
