r"""Printable text: control characters and halves of characters escaped (U+001B becomes \x1b).

A name or a docstring of a plugin, and a message of whatever it raises, may hold anything. What a
terminal would obey, what turns the direction of a line, and what no encoding can hold is shown as
its escape; all else, letters of any language among it, is shown as it is.
"""

import re

_SHOWN = "\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
_NEVER = f"{_SHOWN}\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
_IN_TEXTS = re.compile(f"[{_NEVER}]")
_IN_LINES = re.compile(f"[\t\n{_NEVER}]")


def printable(text: str) -> str:
    """Return a text whose control characters are escaped, all but tabs and ends of lines."""
    return _IN_TEXTS.sub(_escape, text)


def printable_line(text: str) -> str:
    """Return a text as one line: tabs and ends of lines are escaped too."""
    return _IN_LINES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
