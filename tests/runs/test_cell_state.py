"""What a run finds of a cell decides whether it works on it."""

import pytest
from support import runs
from support.synthetic import write_sealed

import lipbench
from lipbench.runs.cell_state import cell_state
from lipbench.storage.cell_folder import Status, lock_cells

SETTINGS = runs.config(evaluation={"bound": ["product"]})


@pytest.fixture(scope="module")
def cell():
    return lipbench.plan(SETTINGS).cells[0]


@pytest.fixture
def folder(cell, tmp_path):
    return cell.folder(tmp_path)


def finish(cell, folder, state="done"):
    folder.write_status(Status(state=state))
    for evaluation in cell.evaluations:
        write_sealed(folder, evaluation.key, [])


def brief(found):
    return found.state, found.needs_work, found.interruption


def test_a_cell_that_was_never_begun_is_missing(cell, tmp_path):
    assert brief(cell_state(cell, tmp_path)) == ("missing", True, "")


def test_a_cell_that_is_done_and_measured_needs_nothing(cell, folder, tmp_path):
    finish(cell, folder)
    assert brief(cell_state(cell, tmp_path)) == ("done", False, "")


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text("<html>")])
@pytest.mark.parametrize("number", [0, 1])
def test_a_done_cell_that_lacks_a_measurement_needs_work(cell, folder, tmp_path, damage, number):
    finish(cell, folder)
    path = folder.rows(cell.evaluations[number].key)
    damage(path)
    current = cell_state(cell, tmp_path)
    assert (current.state, current.needs_work) == ("done", True)
    assert path.name in current.interruption


def test_a_done_cell_that_was_never_measured_so_needs_work(cell, folder, tmp_path):
    finish(cell, folder)
    for path in (folder.rows(cell.evaluations[0].key), folder.seal(cell.evaluations[0].key)):
        path.unlink()
    assert brief(cell_state(cell, tmp_path)) == ("done", True, "")


@pytest.mark.parametrize("state", ["failed", "oom", "timeout"])
@pytest.mark.parametrize("retry", [True, False])
def test_a_cell_that_failed_needs_work_if_it_is_to_be_tried_again(
    cell, folder, tmp_path, state, retry
):
    finish(cell, folder, state)
    assert brief(cell_state(cell, tmp_path, retry)) == (state, retry, "")


@pytest.mark.parametrize("retry", [True, False])
def test_a_cell_that_diverged_would_diverge_again(cell, folder, tmp_path, retry):
    finish(cell, folder, "nan")
    assert brief(cell_state(cell, tmp_path, retry)) == ("nan", False, "")


def test_a_cell_whose_process_died_is_taken_up_again(cell, folder, tmp_path):
    finish(cell, folder, "running")
    assert brief(cell_state(cell, tmp_path, False)) == ("killed", True, "its process died")


def test_a_cell_that_a_live_process_holds_is_running(cell, folder, tmp_path):
    with lock_cells([folder]):
        assert brief(cell_state(cell, tmp_path)) == ("running", True, "")
        finish(cell, folder, "running")
        assert brief(cell_state(cell, tmp_path)) == ("running", True, "")


def test_a_damaged_status_is_an_interruption(cell, folder, tmp_path):
    finish(cell, folder)
    folder.status_file.write_text('{"state": "do')
    for reason in ("status.json is damaged", "its status.json is damaged and kept as status.json"):
        current = cell_state(cell, tmp_path)
        assert current.needs_work
        assert reason in current.interruption
