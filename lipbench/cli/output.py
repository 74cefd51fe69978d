"""Output through a pipe that may close (SIGPIPE): the command goes on without its reader."""

import os
from typing import IO, Any

import click

from lipbench.printable import printable


def echo(text: str, *, err: bool = False) -> None:
    """Print a text whose control characters are escaped: names and messages are anybody's."""
    click.echo(printable(text), err=err)


class Unbroken:
    """A text stream that goes on, into nothing, when its reader has left (`| head`).

    A run must not die because nobody reads its progress.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Return the number of characters written, or that would have been."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
        except ValueError:  # it was closed, or cannot hold what is written
            pass
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()
        except ValueError:
            pass

    def close(self) -> None:
        """Pass on what is buffered, and stay open: the stream belongs to the whole process."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
