"""Words for whatever a plugin raises, and what of it ends a run."""

import pytest

from lipbench.failure import Terminated, class_name, is_kind, pass_signals, text_of, wording
from lipbench.printable import printable, printable_line


class Mute(Exception):
    def __str__(self):
        raise GeneratorExit


class Posing(Exception):
    """One that says to be an interrupt."""

    @property
    def __class__(self):
        return KeyboardInterrupt


class Mine(KeyboardInterrupt):
    """A plugin's own."""


def test_words_of_strange_exceptions():
    assert wording(ValueError("plain")) == "ValueError: plain"
    assert wording(ValueError()) == "ValueError"
    assert text_of(Mute()) == "(its text cannot be had: GeneratorExit)"
    assert text_of(ValueError("a\x1b[0m\ud800\n\tb")) == "a\\x1b[0m\\ud800\n\tb"
    assert len(text_of(ValueError("x" * 10**6))) < 11_000
    assert class_name(type("Re\x1bd", (Exception,), {})()) == "Re\\x1bd"


@pytest.mark.parametrize("make", [KeyboardInterrupt, lambda: Terminated(143)])
def test_a_signal_ends_a_run_alone_and_in_a_group(make):
    signal = make()
    with pytest.raises(type(signal)):
        pass_signals(signal)
    with pytest.raises(type(signal)):
        pass_signals(BaseExceptionGroup("both", [ValueError(), BaseExceptionGroup("in", [signal])]))


@pytest.mark.parametrize(
    "make", [GeneratorExit, lambda: SystemExit(143), Mine, Posing, Mute, MemoryError]
)
def test_nothing_else_does(make):
    error = make()
    pass_signals(error)
    assert not is_kind(error, Terminated)


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\ud800"])
def test_what_a_terminal_obeys_is_shown_as_its_escape(letter):
    shown = printable(f"a{letter}b\n\t")
    assert letter not in shown
    assert shown.startswith("a\\")
    assert shown.endswith("b\n\t")
    assert "\n" not in printable_line(shown)


def test_letters_of_any_language_are_shown_as_they_are():
    text = "λ = 1, Björck, 利普希茨, ‖W‖₂ ≤ 1"
    assert printable_line(text) == text
