"""Files that are written meanwhile are as safe as those that are waited for."""

import os
import threading
import time

import pytest

import lipbench.storage.files
from lipbench.storage.files import StorageError
from lipbench.storage.writer import Writer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_files_are_there_when_the_block_ends(tmp_path):
    with Writer() as writer:
        for number in range(20):
            writer.write(tmp_path / f"{number:02}", b"%d" % number)
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == [
        b"%d" % number for number in range(20)
    ]


def test_files_are_written_in_the_order_they_are_given(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def note(source, target):
        seen.append(target.name)
        replace(source, target)

    monkeypatch.setattr(lipbench.storage.files.os, "replace", note)
    with Writer() as writer:
        for name in "badecbf":
            writer.write(tmp_path / name, b"")
    assert seen == list("badecbf")


def test_the_caller_does_not_wait(tmp_path, monkeypatch):
    replace, free = os.replace, threading.Event()

    def wait(source, target):
        assert free.wait(10)
        replace(source, target)

    monkeypatch.setattr(lipbench.storage.files.os, "replace", wait)
    with Writer() as writer:
        writer.write(tmp_path / "x", b"")
        assert not (tmp_path / "x").exists()
        free.set()
    assert (tmp_path / "x").exists()


def write(folder, *names, after=lambda writer: None):
    (folder / "in the way").write_text("")
    with Writer() as writer:
        for name in names:
            writer.write(folder / name, b"")
        after(writer)


def test_nothing_is_written_after_a_file_that_cannot_be(tmp_path):
    with pytest.raises(StorageError, match="in the way"):
        write(tmp_path, "before", "in the way/x", "after")
    assert names(tmp_path) == ["before", "in the way"]


def test_what_failed_is_said_at_a_later_file(tmp_path):
    def go_on(writer):
        while True:
            writer.write(tmp_path / "after", b"")
            time.sleep(1e-3)  # or it asks for thousands of files before the first has failed

    with pytest.raises(StorageError, match="in the way"):
        write(tmp_path, "in the way/x", after=go_on)
    assert names(tmp_path) == ["in the way"]


def test_an_error_of_the_block_is_not_hidden_and_its_files_are_written(tmp_path):
    def stop(writer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "before", "in the way/x", after=stop)
    assert (tmp_path / "before").exists()


def test_no_thread_is_left(tmp_path):
    before = threading.active_count()
    with Writer() as writer:
        writer.write(tmp_path / "x", b"")
    assert threading.active_count() == before
