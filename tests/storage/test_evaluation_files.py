"""The files of an evaluation: written together, whole or measured anew."""

import pytest
import torch
from support.synthetic import a_row

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.evaluation_files import (
    drop_damaged,
    is_measured,
    read_samples,
    write_evaluation,
)
from lipbench.storage.rows import read_rows
from lipbench.storage.tensors import read_tensors
from lipbench.storage.writer import Writer

KEY = "e0"
BLANK = a_row()
TENSORS = {"x": torch.zeros(3)}


@pytest.fixture
def folder(tmp_path):
    return CellFolder(tmp_path / "cell")


def write(folder, samples=TENSORS, proofs=TENSORS):
    with Writer() as writer:
        write_evaluation(writer, folder, KEY, [a_row(value=0.5)], samples, proofs, "t0")


def paths(folder):
    return {"rows": folder.rows(KEY), "samples": folder.samples(KEY), "proof": folder.proof(KEY)}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_what_is_written_is_read_again(folder):
    write(folder)
    assert [row.value for row in read_rows(folder.rows(KEY))] == [0.5]
    assert torch.equal(read_samples(folder, KEY)["x"], TENSORS["x"])
    assert torch.equal(read_tensors(folder.proof(KEY))[0]["x"], TENSORS["x"])


def test_without_tensors_there_is_no_file_of_them(folder):
    write(folder, {}, {})
    names = {path.name for path in folder.path.iterdir()}
    assert names == {folder.rows(KEY).name, folder.seal(KEY).name}
    assert read_samples(folder, KEY) == {}
    assert is_measured(folder, KEY, BLANK)
    assert drop_damaged(folder, KEY, BLANK)


@pytest.mark.parametrize("kind", ["rows", "samples", "proof"])
def test_an_evaluation_is_measured_if_its_files_are_whole(folder, kind):
    write(folder)
    assert is_measured(folder, KEY, BLANK)
    cut(paths(folder)[kind])
    assert not is_measured(folder, KEY, BLANK)


def test_without_rows_nothing_is_measured(folder):
    write(folder)
    folder.rows(KEY).unlink()
    assert not is_measured(folder, KEY, BLANK)
    assert not drop_damaged(folder, KEY, BLANK)


@pytest.mark.parametrize(
    ("kind", "damage"), [("rows", cut), ("samples", cut), ("samples", flip), ("proof", flip)]
)
def test_a_damaged_file_is_kept_aside_and_the_rows_go_with_it(folder, kind, damage):
    write(folder)
    assert drop_damaged(folder, KEY, BLANK)
    path = paths(folder)[kind]
    damage(path)
    content = path.read_bytes()

    assert not drop_damaged(folder, KEY, BLANK)
    assert path.with_name(f"{path.name}.corrupt-1").read_bytes() == content
    assert not path.exists()
    assert not folder.rows(KEY).exists()
    others = {name for name, other in paths(folder).items() if other.exists()}
    assert others == {"samples", "proof"} - {kind}
