"""Failures of plugins: what they raise costs what asked for them, and only a signal ends a run.

A plugin may raise anything: its own kind of `BaseException`, an exit, an exception whose text
raises in turn. Where a plugin is called, catch `BaseException`, let `pass_signals` raise what ends
the run, and take the words from here:

    except BaseException as error:
        pass_signals(error)
        refused[name] = f"it failed with {wording(error)}"
"""

import traceback
from typing import Any

from lipbench.printable import printable

_LONGEST = 10_000
"""Characters of a text of an exception that are kept."""


class Terminated(SystemExit):
    """The process is asked to end (SIGTERM); a plugin that calls exit raises another."""


def pass_signals(error: BaseException) -> None:
    """Raise what an error carries that ends the run; return if it ends only what raised it.

    An interrupt is exactly `KeyboardInterrupt`, also within a group: a class that a plugin derives
    from it is a failure like any other.

    Raises:
        KeyboardInterrupt: If a person interrupted the run.
        Terminated: If the process is asked to end.
    """
    for one in _leaves(error):
        if type(one) in (KeyboardInterrupt, Terminated):
            raise one


def is_kind(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Return whether an error is of one of the classes, whatever it says of its class itself."""
    return issubclass(type(error), kinds)


def class_name(error: BaseException) -> str:
    """Return the name of the class of an error."""
    named: Any = type.__dict__["__name__"]  # a class may have another idea of its name
    return printable(str(named.__get__(type(error))))


def text_of(error: BaseException) -> str:
    """Return the text of an error, printable; one that cannot be had is said to be so."""
    try:
        # A copy, for a text may be of a class of its own.
        text = str.__str__(str(error))
    except BaseException as fault:
        pass_signals(fault)
        return f"(its text cannot be had: {class_name(fault)})"
    kept = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
    return printable(kept)


def wording(error: BaseException) -> str:
    """Return class and text of an error, as a message names it."""
    return ": ".join(filter(None, (class_name(error), text_of(error))))


def trace_of(error: BaseException) -> str:
    """Return the traceback of an error, printable, or what can be had of it."""
    try:
        return printable("".join(traceback.format_exception(error)))
    except BaseException as fault:
        pass_signals(fault)
        return f"(its traceback cannot be had: {class_name(fault)})\n{wording(error)}\n"


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, of any depth; an error that is no group is its own only one."""
    leaves, todo = [], [error]
    while todo:
        one = todo.pop()
        if issubclass(type(one), BaseExceptionGroup):
            todo += BaseExceptionGroup.exceptions.__get__(one)
        else:
            leaves.append(one)
    return leaves
