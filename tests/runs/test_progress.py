"""What a person sees of a run."""

import io
import re
import sys

import pytest
from rich.console import Console
from support import runs

import lipbench
from lipbench.runs.progress import Lines, Live, Quiet, Reporter, named, reporter


@pytest.fixture(scope="module")
def cells():
    entry = {"name": "clip", "target_accuracy": 0.9}
    return lipbench.plan(runs.config("standard", entry, seeds=(0, 1))).cells


@pytest.fixture
def live():
    """Return a live reporter of four cells, and what it has written to its terminal."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    return Live(4, console.status("")), out


def test_a_cell_is_named_by_what_tells_it_from_others(cells):
    assert named(cells[1]) == "tiny standard seed 1"
    assert named(cells[2]) == "tiny clip 0.9 seed 0"


@pytest.mark.parametrize("make", [Quiet, lambda: Lines(1)])
def test_every_reporter_takes_all_that_a_run_tells(make, cells):
    report = make()
    assert isinstance(report, Reporter)
    report.epoch(list(cells), 1, 2, "train 50.0%")


def test_quiet_shows_the_last_line_only(cells, capsys):
    report = Quiet()
    report.say("a plan")
    report.epoch(list(cells), 1, 2, "")
    report.cell(cells[0], "failed", "boom")
    assert capsys.readouterr().out == ""
    report.conclude("lipbench: 1 failed -> exit 3")
    assert capsys.readouterr().out == "lipbench: 1 failed -> exit 3\n"


def test_lines_count_the_cells_and_guess_the_time_left(cells, capsys, monkeypatch):
    """Ten seconds for the first of three cells that were not done before: twenty are left."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    report = Lines(4)
    report.cell(cells[0], "done", before=True)
    assert capsys.readouterr().out == ""
    now[0] = 110.0
    report.cell(cells[1], "done")
    assert capsys.readouterr().out == "[2/4] tiny standard seed 1 done  ETA 20 s\n"
    report.epoch(list(cells), 1, 2, "")
    assert capsys.readouterr().out == ""
    report.cell(cells[2], "failed", "boom")
    report.cell(cells[3], "done")
    assert capsys.readouterr().out.splitlines()[-1] == "[4/4] tiny clip 0.9 seed 1 done"


def test_a_failure_says_why(cells, capsys):
    Lines(1).cell(cells[0], "failed", "boom")
    assert capsys.readouterr().out == "[1/1] tiny standard seed 0 failed: boom\n"


def test_the_live_line_shows_where_a_stack_is(cells, live):
    report, _ = live
    report.epoch(list(cells[:2]), 3, 40, "train 91.2%")
    text = str(report.line.renderable.text)
    assert "tiny standard seed 0 and 1 more  epoch 3/40  train 91.2%" in text
    report.cell(cells[0], "done")
    assert "[1/4]" in str(report.line.renderable.text)


def test_the_live_line_keeps_what_failed_above_it(cells, live):
    report, out = live
    report.cell(cells[0], "done")
    assert out.getvalue() == ""
    report.cell(cells[1], "nan", "a number was not finite [bold]after epoch 1[/bold]")
    kept = "[2/4] tiny standard seed 1 nan: a number was not finite [bold]after epoch 1[/bold]\n"
    assert out.getvalue() == kept
    assert "1 failed" in str(report.line.renderable.text)


def test_a_terminal_gets_the_live_line_and_a_file_gets_lines(monkeypatch):
    with reporter("auto", 2) as report:
        assert type(report) is Lines
    with reporter("quiet", 2) as report:
        assert type(report) is Quiet
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with reporter("auto", 2) as report:
        assert type(report) is Live


def test_a_run_writes_one_line_for_each_cell_between_plan_and_sum(tmp_path, capsys):
    settings = runs.config("standard", {"name": "clip", "pairs": 65}, seeds=(0, 1))
    assert runs.run(settings, tmp_path / "run", progress="auto") == 3
    lines = capsys.readouterr().out.splitlines()

    assert "4 cells in 2 stacks; estimated time" in "\n".join(lines)
    counted = [line for line in lines if re.match(r"\[\d/4\] tiny ", line)]
    assert len(counted) == 4
    assert [" done" in line for line in counted] == [True, True, False, False]
    assert "needs 65 pair samples" in counted[2]
    assert lines[-1] == "lipbench: 2 done, 2 failed -> exit 3"


def test_a_quiet_run_writes_one_line(tmp_path, capsys):
    assert runs.run(runs.config(), tmp_path / "run", progress="quiet") == 0
    assert capsys.readouterr().out == "lipbench: 1 done -> exit 0\n"
