import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from lipbench.storage.cell_folder import CellFolder, Status, folder_name, lock_cells
from lipbench.storage.files import StorageError
from lipbench.storage.host import host_id


@pytest.fixture(name="cells")
def _cells(tmp_path):
    return [CellFolder.of(tmp_path, "mnist", "clip", key) for key in ("k0", "k1", "k2")]


@pytest.fixture(name="holder")
def _holder(cells):
    """Another process that holds the second cell and says that it is running."""
    code = """
        import sys, time
        from pathlib import Path
        from lipbench.storage.cell_folder import CellFolder, Status, lock_cells
        cell = CellFolder(Path(sys.argv[1]))
        held = lock_cells([cell])
        cell.write_status(Status(state="running", epoch=7))
        print("ready", flush=True)
        time.sleep(60)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(cells[1].path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_cell_lies_under_its_benchmark_its_method_and_its_key(tmp_path):
    cell = CellFolder.of(tmp_path, "mnist", "clip", "0123456789ab")
    assert cell.path == tmp_path / "cells" / "mnist" / "clip" / "0123456789ab"
    assert cell.rows("e1") == cell.path / "rows-e1.csv"
    assert cell.samples("e1") == cell.path / "samples-e1.safetensors"
    assert cell.proof("e1") == cell.path / "proof-e1.safetensors"


def test_a_cell_never_begun_has_no_status(cells):
    assert cells[0].read_status() is None
    assert not cells[0].path.exists()


def test_a_status_is_read_back_as_it_was_written(cells):
    status = Status(
        state="nan",
        attempt=2,
        pid=os.getpid(),
        host=host_id(),
        started=1.5,
        finished=2.5,
        seconds=1.0,
        message="loss is nan in epoch 3",
        exception="FloatingPointError",
        epoch=3,
        checkpoints={"chosen": {"epoch": 2}},
        flags=("target_missed",),
    )
    cells[0].write_status(status)
    assert cells[0].read_status() == status


def test_fields_of_a_later_version_are_ignored(cells):
    cells[0].path.mkdir(parents=True)
    cells[0].status_file.write_text('{"state": "done", "mood": "good"}')
    assert cells[0].read_status() == Status(state="done")


@pytest.mark.parametrize("content", ['{"state": "done"', "[]", '{"state": "excellent"}'])
def test_a_damaged_status_is_never_done(cells, content):
    cells[0].path.mkdir(parents=True)
    cells[0].status_file.write_text(content)
    assert cells[0].read_status().state == "killed"


def test_a_cell_that_a_live_process_trains_is_running(cells, holder):
    assert cells[1].read_status() == Status(state="running", epoch=7)
    assert cells[1].is_held()


def test_a_cell_whose_process_was_killed_reads_as_killed_and_is_free_again(cells, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert cells[1].read_status().state == "killed"
    assert cells[1].read_status().epoch == 7
    with lock_cells(cells) as held:
        assert [folder.path for folder in held.folders] == [cell.path for cell in cells]


def test_a_stack_is_claimed_whole_or_not_at_all(cells, holder):
    assert lock_cells(cells) is None
    assert not cells[0].is_held()
    with lock_cells([cells[0], cells[2]]):
        assert cells[0].is_held()
        assert cells[2].is_held()


def test_a_claim_ends_with_its_block_and_the_lock_file_means_nothing(cells):
    with lock_cells(cells[:1]):
        assert lock_cells(cells[:1]) is None
    assert cells[0].lock_file.exists()
    assert not cells[0].is_held()
    with lock_cells(cells[:1]) as again:
        assert again is not None


def test_a_reader_that_looks_at_a_lock_does_not_stop_a_claim(cells):
    """Looking means to hold the lock for a moment; the pause here is a slow look."""

    def claimed_during_a_look():
        look = lock_cells(cells[:1])
        timer = threading.Timer(0.02, look.release)
        timer.start()
        held = lock_cells(cells)
        timer.join()
        if held is not None:
            held.release()
        return held is not None

    assert any(claimed_during_a_look() for _ in range(5))


def test_overlapping_claims_in_opposite_order_do_not_wait_for_each_other(cells):
    wins = []

    def grab(folders):
        for _ in range(10):
            held = lock_cells(folders)
            if held is not None:
                wins.append(1)
                held.release()

    threads = [threading.Thread(target=grab, args=(order,)) for order in (cells, cells[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert wins


def test_a_claim_removes_what_dead_processes_left(cells):
    cells[0].path.mkdir(parents=True)
    rest = cells[0].path / f".tmp-{host_id()}-{2**22 + 1}-0"  # beyond the largest process id
    rest.write_text("half")
    lock_cells(cells[:1]).release()
    assert not rest.exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "cells").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="cells"):
        lock_cells([CellFolder.of(tmp_path, "mnist", "clip", "k")])


@pytest.mark.parametrize("name", ["clip", "torchattacks-PGD", "weight_regularization", "a.b"])
def test_ordinary_names_are_folder_names(name):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    "name", ["a/b", "../up", "é", "a b", "torchattacks:PGD", "nul", "x" * 300, "", "."]
)
def test_odd_names_become_safe_short_and_stay_different(name):
    safe = folder_name(name)
    assert safe != name
    assert len(safe) < 80
    assert safe.isascii()
    assert not set(safe) & set('/\\:*?"<>| ')
    assert not safe.startswith(".")
    assert folder_name(name + "x") != safe
