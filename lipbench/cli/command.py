"""Command conventions: mistakes of the user, examples, and the traceback on demand."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lipbench.printable import printable
from lipbench.runs.exits import ExitCode

F = TypeVar("F", bound=Callable[..., Any])


class Quit(click.ClickException):
    """A mistake of the user; the message says what to do about it."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code

    def show(self, file: Any = None) -> None:
        """Write the message to standard error."""
        click.echo(printable(f"lipbench: {self.format_message()}"), file=file, err=True)


def verbose(command: F) -> F:
    """Return the command with the option that shows the traceback of an error."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            context.find_root().obj["verbose"] = True

    return click.option(
        *("-v", "--verbose"),
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


def examples(*lines: str) -> str:
    """Return the end of a help text."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
