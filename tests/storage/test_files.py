import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lipbench.storage.files import (
    Damaged,
    StorageError,
    clean,
    probe,
    read_json,
    update_json,
    update_text,
    write_bytes,
    write_json,
    write_text,
)


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_value_is_read_back_as_it_was_written(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü λ"}
    write_json(tmp_path / "new" / "x.json", value)
    assert read_json(tmp_path / "new" / "x.json") == value


def test_writing_leaves_no_other_file_behind(tmp_path):
    write_text(tmp_path / "x", "one")
    write_text(tmp_path / "x", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "two"


@pytest.mark.parametrize("content", [None, "one", "two\n", "one\r\n", "\ufeffone\n"])
def test_an_update_leaves_what_it_is_given(tmp_path, content):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content.encode())
    update_text(path, "one\n")
    assert path.read_bytes() == b"one\n"


def test_an_update_does_not_touch_a_file_that_holds_the_same(tmp_path):
    path = tmp_path / "x"
    value = {"b": [1, 2.5, None], "a": "ü λ"}
    write_json(path, value)
    before = path.stat()
    update_json(path, value)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    update_json(path, value | {"a": "b"})
    assert read_json(path) == value | {"a": "b"}


def test_an_update_of_what_cannot_be_replaced_is_a_storage_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        update_text(tmp_path / "x", "one")


def test_an_absent_file_reads_as_none(tmp_path):
    assert read_json(tmp_path / "nothing.json") is None
    assert read_json(tmp_path / "no" / "folder.json") is None


@pytest.mark.parametrize("content", [b'{"a": 1', b"", b"\x00\x00", b"\xff\xfe{}"])
def test_a_damaged_file_is_set_aside_and_then_absent(tmp_path, content):
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"status\.json is damaged") as caught:
        read_json(path)
    assert caught.value.kept == tmp_path / "status.json.corrupt-1"
    assert caught.value.kept.read_bytes() == content
    assert read_json(path) is None


def test_files_set_aside_never_replace_each_other(tmp_path):
    for content in ("{", "["):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(Damaged):
            read_json(tmp_path / "x.json")
    assert (tmp_path / "x.json.corrupt-1").read_text() == "{"
    assert (tmp_path / "x.json.corrupt-2").read_text() == "["


def test_a_process_killed_before_the_rename_leaves_the_old_file_and_a_removable_rest(tmp_path):
    write_text(tmp_path / "x", "old")
    done = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from lipbench.storage import files
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        files.write_text(Path(sys.argv[1]), "new")
        """,
        tmp_path / "x",
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "x").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert len(clean(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_live_process_is_writing_is_not_cleaned(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def look_then_replace(source, destination):
        seen.append(clean(tmp_path))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", look_then_replace)
    write_bytes(tmp_path / "x", b"content")
    assert seen == [[]]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_foreign_files_are_not_cleaned(tmp_path):
    (tmp_path / ".tmp-mine").write_text("")
    assert clean(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="limits of file size are POSIX")
def test_a_full_disk_is_named_with_the_free_space_and_keeps_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails half way."""
    write_json(tmp_path / "x.json", {"old": True})
    done = run_python(
        """
        import resource, signal, sys
        from pathlib import Path
        from lipbench.storage.files import StorageError, write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path(sys.argv[1]), bytes(5000))
        except StorageError as error:
            print(error)
        """,
        tmp_path / "x.json",
    )
    assert "x.json" in done.stdout
    assert "MiB free" in done.stdout
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_cannot_be_written_is_found_by_a_probe(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        probe(tmp_path / "file" / "results")


def test_a_probe_leaves_nothing_behind(tmp_path):
    probe(tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []
