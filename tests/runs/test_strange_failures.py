"""Plugins that fail in strange ways cost their own cells, in this process too."""

import json

import pytest
from support import runs
from support.runs import benchmark, config, results, several
from torch import nn

import lipbench
from lipbench.cli.main import call
from lipbench.cli.output import Unbroken
from lipbench.runs.exits import ExitCode

STRANGE = r'''\
"""Plugins that fail."""

import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lipbench.bound import Bound
from lipbench.method import Method
from lipbench.model import Model
from lipbench.norm import NORMS


class Own(BaseException):
    """No Exception."""


class Mute(Exception):
    """One whose text cannot be had."""

    def __str__(self):
        raise RuntimeError("no text")


class Loud(Exception):
    """One whose text raises something that is no Exception."""

    def __str__(self):
        raise Own()


def fail(how):
    if how == "hook":
        del sys.excepthook
        how = "own"
    if how == "stdout":
        sys.stdout.close()
        how = "own"
    if how == "none":
        return
    raise {
        "generator": GeneratorExit("left"),
        "own": Own("mine"),
        "mute": Mute(),
        "loud": Loud(),
        "surrogate": ValueError("half \ud800 of a letter"),
        "escape": ValueError("red \x1b[31m and a bell \x07"),
        "exit": SystemExit(143),
        "group": BaseExceptionGroup("several", [Own("one"), ValueError("two")]),
        "interrupt": type("Mine", (KeyboardInterrupt,), {})("not a person"),
        "recursion": RecursionError("deep"),
    }[how]


@dataclass(frozen=True, kw_only=True)
class Fails(Method):
    """Fail at the start. \x1b[31mRed."""

    how: str = "own"

    def start(self, net, data, rng):
        """Fail."""
        fail(self.how)
        return {}

    def loss(self, net, batch, state, draw, h):
        """Return the mean loss of the batch."""
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}


@dataclass(frozen=True, kw_only=True)
class Broken(Bound):
    """Fail at every question."""

    how: str = "own"
    at: str = "compute"
    side: ClassVar[str] = "upper"
    norms: ClassVar = NORMS

    def refuses(self, network, norm, domain):
        """Fail."""
        return fail(self.how) if self.at == "refuses" else None

    def cost(self, network, norm, domain):
        """Fail."""
        if self.at == "cost":
            fail(self.how)
        return 0.0

    def compute(self, network, norm, domain, known=(), inputs=None):
        """Fail."""
        fail(self.how)


@dataclass(frozen=True, kw_only=True)
class Unbuilt(Model):
    """Build nothing."""

    how: str = "none"

    def build(self, input_shape, outputs, rng):
        """Fail."""
        return fail(self.how)
'''
HOWS = ["generator", "own", "mute", "loud", "surrogate", "escape", "exit", "group", "interrupt"]
PLUGINS = {
    "lipbench.methods": {"fails": "strange_failures:Fails"},
    "lipbench.bounds": {"broken": "strange_failures:Broken"},
    "lipbench.models": {"unbuilt": "strange_failures:Unbuilt"},
}
SMALL = {"evaluation": {"bound": ["product"]}, "selection": "last"}


@pytest.fixture
def strangers(publish):
    publish("failing", PLUGINS, {"strange_failures.py": STRANGE})


def test_a_method_that_raises_anything_costs_its_own_cell(strangers, tmp_path):
    methods = [{"name": "fails", "how": how} for how in [*HOWS, "recursion", "hook"]]
    folder = tmp_path / "run"
    assert runs.run(config("standard", *methods, **SMALL), folder) == ExitCode.FAILED
    found = [json.loads(path.read_text()) for path in folder.glob("cells/*/fails/*/status.json")]
    assert len(found) == len(methods)
    assert {status["state"] for status in found} == {"failed"}
    (good,) = folder.glob("cells/*/standard/*/status.json")
    assert json.loads(good.read_text())["state"] == "done"
    said = "".join(path.read_text() for path in folder.glob("cells/*/fails/*/log.txt"))
    assert "\x1b" not in said
    assert any("its text cannot be had" in status["message"] for status in found)
    done = {row.method for row in results(folder) if row.status == "done"}
    assert done == {"standard"}


@pytest.mark.parametrize("how", ["none", "own", "generator"])
def test_a_model_that_builds_nothing_costs_its_own_cells(strangers, tmp_path, how):
    parts = [
        benchmark(name="bad", model={"name": "unbuilt", "how": how}, **SMALL),
        benchmark(name="good", **SMALL),
    ]
    folder = tmp_path / "run"
    assert runs.run(several(*parts), folder) == ExitCode.FAILED
    states_of = {
        path.parts[-4]: json.loads(path.read_text())["state"]
        for path in folder.glob("cells/*/*/*/status.json")
    }
    assert states_of == {"bad": "failed", "good": "done"}


@pytest.mark.parametrize("how", HOWS)
def test_a_bound_that_raises_anything_costs_its_own_cell(strangers, tmp_path, how):
    parts = [
        benchmark(name="bad", evaluation={"bound": [{"name": "broken", "how": how}]}),
        benchmark(name="good", **SMALL),
    ]
    folder = tmp_path / "run"
    assert runs.run(several(*parts), folder) == ExitCode.FAILED
    found = {
        path.parts[-4]: json.loads(path.read_text())
        for path in folder.glob("cells/*/*/*/status.json")
    }
    assert {name: status["state"] for name, status in found.items()} == {
        "bad": "failed",
        "good": "done",
    }
    assert "broken" in found["bad"]["message"]


@pytest.mark.parametrize("at", ["refuses", "cost", "compute"])
def test_a_bracket_lists_a_bound_that_fails(publish, at):
    text = STRANGE.replace('at: str = "compute"', f'at: str = "{at}"')
    publish("failing", PLUGINS, {"strange_failures.py": text})
    found = lipbench.bracket(nn.Linear(2, 2), (2,), time_limit=5)
    assert "Own" in found.refused["broken"]
    assert found.lower <= found.upper < 100


def test_the_list_of_plugins_shows_escapes_and_does_not_send_them(strangers, capsys):
    assert call(["ls", "methods"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mRed" in out


@pytest.mark.parametrize(
    "fault", ["raise GeneratorExit", "raise BaseException('b\\x1b[2J')", "import os, nothing"]
)
def test_a_module_that_cannot_be_imported_is_listed_as_broken(publish, fault, capsys):
    publish("failing", PLUGINS, {"strange_failures.py": fault})
    assert call(["ls", "methods"]) == 0
    out = capsys.readouterr().out
    assert "BROKEN" in out
    assert "\x1b" not in out
    assert call(["ls", "bounds"]) == 0


def test_keys_of_a_file_that_are_no_text_are_shown_escaped(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('schema = 1\n"re\\u001b[31md" = 3\n')
    assert call(["plan", str(tmp_path / "mine.toml")]) == ExitCode.USAGE
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert r"\x1b[31m" in shown


def test_a_stream_that_a_plugin_closes_is_that_of_the_process(tmp_path):
    with (tmp_path / "out.txt").open("w") as file:
        stream = Unbroken(file)
        stream.write("before\n")
        stream.close()
        stream.write("after\n")
        stream.flush()
    assert (tmp_path / "out.txt").read_text() == "before\nafter\n"
    assert stream.write("too late") == len("too late")
