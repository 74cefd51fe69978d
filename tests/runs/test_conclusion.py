"""How a cell ended: in its folder, and in what is reported."""

from dataclasses import dataclass, field

import pytest
import torch
from support import runs

import lipbench
from lipbench.dataset import DataMissing
from lipbench.evaluation.evaluate import EvaluationFailed
from lipbench.failure import Terminated
from lipbench.runs.conclusion import (
    Conclusion,
    conclude,
    ends_the_run,
    failure,
    killed_if_stopped,
)
from lipbench.runs.exits import ExitCode
from lipbench.runs.progress import Quiet
from lipbench.runs.stack import Stack
from lipbench.storage.cell_folder import lock_cells
from lipbench.storage.files import StorageError
from lipbench.storage.rows import read_rows
from lipbench.training.ensemble import TrainingRefused


@dataclass
class Kept(Quiet):
    """Keeps what is reported of cells."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def cell(self, cell, state, message="", *, before=False):
        self.lines.append((state, message))


@pytest.fixture
def stack(tmp_path):
    siblings = lipbench.plan(runs.config("standard", seeds=(0, 1))).cells[0].siblings()
    stack = Stack(
        siblings=siblings,
        wanted=frozenset({siblings[0].key}),
        run=tmp_path,
        device=torch.device("cpu"),
        env_id="",
        report=Kept(),
        read=read_rows,
    )
    with lock_cells(stack.folder(cell) for cell in siblings):
        yield stack


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return failure(caught)


def test_a_failure_has_a_traceback_and_names_what_was_raised():
    conclusion = raised(RuntimeError("boom"))
    assert (conclusion.state, conclusion.message, conclusion.exception) == (
        "failed",
        "boom",
        "RuntimeError",
    )
    assert conclusion.said == "RuntimeError: boom"
    assert "Traceback" in conclusion.log


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("full")])
def test_full_memory_is_a_state_of_its_own(error):
    assert raised(error).state == "oom"


@pytest.mark.parametrize("error", [DataMissing("put it there"), TrainingRefused("put it there")])
def test_what_the_user_can_mend_is_said_and_no_more(error):
    conclusion = raised(error)
    assert (conclusion.state, conclusion.said, conclusion.log) == (
        "failed",
        "put it there",
        "put it there",
    )


@pytest.mark.parametrize(
    "error", [EvaluationFailed("bound 'b' raised"), ExceptionGroup("two", [ValueError("one")])]
)
def test_an_error_that_says_what_was_raised_is_not_named(error):
    assert raised(error).said == str(error)


def test_signals_and_disks_end_the_run_and_no_exit_of_a_plugin(tmp_path):
    with pytest.raises(Terminated):
        ends_the_run(Terminated(ExitCode.TERMINATED))
    with pytest.raises(KeyboardInterrupt):
        ends_the_run(KeyboardInterrupt())
    assert not ends_the_run(SystemExit(ExitCode.TERMINATED))
    assert ends_the_run(StorageError("write", tmp_path, OSError("full")))
    assert not ends_the_run(SystemExit(0))
    assert not ends_the_run(RuntimeError("boom"))


def test_a_conclusion_is_one_line_in_the_folder_and_in_the_report(stack):
    cell = stack.siblings[0]
    told = Conclusion(state="failed", message="two\n lines", said="it said\ttwo", log="two\nlines")
    conclude(stack, cell, told)

    status = stack.folder(cell).read_status()
    assert (status.state, status.message) == ("failed", "two lines")
    assert stack.folder(cell).log.read_text() == "two\nlines"
    assert stack.report.lines == [("failed", "it said two")]


def test_the_seconds_of_the_evaluation_are_added_to_those_before(stack):
    for spent in (2.0, 3.0):
        conclude(stack, stack.siblings[0], Conclusion(state="done", spent=spent))

    assert stack.folder(stack.siblings[0]).read_status().seconds == 5.0
    assert not stack.folder(stack.siblings[0]).log.exists()


def test_of_a_cell_that_nobody_asked_for_only_a_failure_is_reported(stack):
    conclude(stack, stack.siblings[1], Conclusion(state="done"))
    assert stack.report.lines == []
    conclude(stack, stack.siblings[1], Conclusion(state="nan", message="no number"))
    assert stack.report.lines == [("nan", "no number")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(ExitCode.TERMINATED)])
def test_a_signal_kills_the_cells_that_run_and_no_others(stack, stop):
    done, running = stack.siblings
    conclude(stack, done, Conclusion(state="done"))
    with pytest.raises(type(stop)), killed_if_stopped(stack):
        raise stop

    states = [stack.folder(cell).read_status() for cell in (done, running)]
    assert [state.state for state in states] == ["done", "killed"]
    assert states[1].message == "stopped by a signal"
