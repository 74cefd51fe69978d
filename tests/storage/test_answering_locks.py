"""Locks of file systems that do not answer: a call that sleeps stands in for a hanging server."""

import fcntl
import threading
import time

import pytest

from lipbench.storage import answering_locks
from lipbench.storage.answering_locks import LocksSilent, answer
from lipbench.storage.cell_folder import CellFolder, Status, lock_cells


@pytest.fixture
def silent(monkeypatch):
    """Let every call for a lock hang until the test is over."""
    over = threading.Event()
    monkeypatch.setattr(answering_locks, "PATIENCE", 0.2)
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: over.wait())
    yield
    over.set()
    time.sleep(0.05)  # the threads that hung go on


def test_a_lock_that_does_not_answer_is_named(silent, tmp_path):
    folder = CellFolder(tmp_path / "cell")
    with pytest.raises(LocksSilent, match=r"locks on .*cell.* do not answer.* -o"):
        lock_cells([folder])


def test_so_is_one_that_only_is_asked_about(silent, tmp_path):
    folder = CellFolder(tmp_path / "cell")
    folder.path.mkdir()
    folder.lock_file.touch()
    folder.write_status(Status(state="running"))
    with pytest.raises(LocksSilent, match="do not answer"):
        folder.read_status()


def test_what_answers_too_late_is_undone(monkeypatch, tmp_path):
    monkeypatch.setattr(answering_locks, "PATIENCE", 0.05)
    late, undone = threading.Event(), threading.Event()
    with pytest.raises(LocksSilent):
        answer(late.wait, tmp_path, undone.set)
    late.set()
    assert undone.wait(5)


def test_answers_and_errors_are_those_of_the_call(tmp_path):
    assert answer(lambda: 7, tmp_path, lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 // 0, tmp_path, lambda: None)
