from dataclasses import replace

import pytest
from support.synthetic import a_row, a_run, as_row_of, write_sealed

from lipbench.storage.cell_folder import CellFolder, Status, lock_cells
from lipbench.storage.results import (
    PlanMissing,
    collect,
    read_cell_seconds,
    read_plan,
    stale,
    status_table,
    write_results,
)
from lipbench.storage.rows import read_rows


def rows_of(seed, **changes):
    return [
        a_row(seed=seed, checkpoint="last", value=0.8, **changes),
        a_row(seed=seed, checkpoint="chosen", value=0.9, **changes),
    ]


@pytest.fixture(name="run")
def _run(tmp_path):
    a_run(
        tmp_path,
        [
            ("standard", {}, 0, "done", rows_of(0)),
            ("standard", {}, 1, "nan", rows_of(1)),
            ("clip", {"tau": 1}, 0, None, []),
            ("clip", {"tau": 1}, 1, "running", []),
        ],
    )
    return tmp_path


def test_only_done_cells_give_numbers_and_every_other_cell_gives_one_row(run):
    rows = collect(run, read_plan(run))
    assert [(row.method, row.seed, row.metric, row.value, row.flags) for row in rows] == [
        ("standard", 0, "test_accuracy", 0.9, ()),
        ("standard", 0, "test_accuracy", 0.8, ()),
        ("standard", 1, "cell", None, ("nan",)),
        ("clip", 0, "cell", None, ("missing",)),
        ("clip", 1, "cell", None, ("killed",)),
    ]
    assert {row.status for row in rows if row.metric == "cell"} == {"failed"}
    assert rows[3].params == '{"tau": 1}'


def test_the_csv_is_the_same_whenever_it_is_rebuilt(run):
    path = write_results(run)
    first = path.read_bytes()
    path.write_text("truncat")
    assert write_results(run) == path
    assert path.read_bytes() == first
    assert read_rows(path) == collect(run, read_plan(run))


def test_a_published_csv_without_cells_is_not_touched(tmp_path):
    (tmp_path / "results.csv").write_text("published")
    assert write_results(tmp_path) is None
    assert (tmp_path / "results.csv").read_text() == "published"


def test_a_damaged_file_of_rows_is_named_and_the_rest_still_counts(run):
    cell = CellFolder(run / read_plan(run)[0].folder)
    cell.rows("e1").write_bytes(cell.rows("e0").read_bytes()[:-30])
    rows = [row for row in collect(run, read_plan(run)) if row.seed == 0 and row.method != "clip"]
    assert rows[0].flags[:2] == ("damaged", "rows-e1.csv")
    assert [row.value for row in rows[1:]] == [0.9, 0.8]


def test_the_plan_says_which_evaluations_count(tmp_path):
    """Rows of an evaluation that is no longer configured are left out, missing ones are named."""
    (planned,) = a_run(tmp_path, [("standard", {}, 0, "done", rows_of(0))])
    cell = CellFolder(tmp_path / planned.folder)
    write_sealed(cell, "e9", [as_row_of(planned, row, "e9") for row in rows_of(0)])
    assert len(collect(tmp_path, [planned])) == 4
    assert len(collect(tmp_path, [replace(planned, evaluations=("e9",))])) == 2
    lacking, *rows = collect(tmp_path, [replace(planned, evaluations=("e0", "e5"))])
    assert lacking.flags == ("unevaluated", "rows-e5.csv")
    assert len(rows) == 2


def test_a_done_cell_without_rows_is_no_silent_success(tmp_path):
    planned = a_run(tmp_path, [("standard", {}, 0, "done", [])])
    (row,) = collect(tmp_path, planned)
    assert row.flags == ("unevaluated",)


def test_cells_outside_the_plan_are_listed_and_never_collected(run):
    old = CellFolder.of(run, "mnist", "standard", "old")
    old.write_status(Status(state="done"))
    cells = read_plan(run)
    assert stale(run, cells) == [old.path]
    assert len(collect(run, cells)) == 5
    assert f"stale, not in the plan: {old.path}" in str(status_table(run))


def test_the_status_counts_the_cells_of_each_method_in_each_state(run):
    cell = CellFolder(run / read_plan(run)[3].folder)
    with lock_cells([cell]):
        table = status_table(run)
    assert [(line.label, line.counts) for line in table.lines] == [
        ("standard", {"done": 1, "nan": 1}),
        ("clip", {"missing": 1, "running": 1}),
    ]
    assert table.states == ("done", "running", "nan", "missing")
    (problem,) = table.problems
    assert "standard, seed 1: nan (a reason)" in problem
    assert "nan" in str(table)


def test_only_a_finished_cell_has_a_duration(tmp_path):
    cell = CellFolder(tmp_path)
    assert read_cell_seconds(cell) is None
    cell.write_status(Status(state="failed", seconds=3.0))
    assert read_cell_seconds(cell) is None
    cell.write_status(Status(state="done", seconds=3.0))
    assert read_cell_seconds(cell) == 3.0


def test_a_folder_without_a_plan_is_refused_by_name(tmp_path):
    with pytest.raises(PlanMissing, match=r"no plan\.json"):
        status_table(tmp_path)


def test_a_plan_of_another_schema_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text('{"schema": 2, "cells": []}')
    with pytest.raises(PlanMissing, match="schema 1"):
        read_plan(tmp_path)
