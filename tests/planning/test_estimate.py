import math
from dataclasses import replace

import pytest
from support import runs

from lipbench.planning.estimate import Estimate, duration, estimate
from lipbench.planning.plan import plan
from lipbench.storage.cell_folder import Status


def cells(*methods, seeds=(0, 1), **changes):
    return plan(runs.config(*methods, seeds=seeds, **changes)).cells


def finish(cell, run, seconds):
    folder = cell.folder(run)
    folder.path.mkdir(parents=True)
    folder.write_status(Status(state="done", pid=1, started=0.0, finished=seconds, seconds=seconds))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (89.4, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")],
)
def test_a_duration_is_spoken_in_a_fitting_unit(seconds, text):
    assert duration(seconds) == text


def test_what_cannot_be_told_is_unknown():
    assert duration(math.nan) == "unknown"


def test_products_of_a_dense_network_are_its_weights():
    (cell,) = cells("standard", seeds=(0,))
    assert cell.benchmark.anatomy.forward_products == 64 * 16 + 16 * 10


def test_products_of_a_convolution_count_every_place():
    """8x8, then 4x4 after pooling, then 2x2x64 = 256 units."""
    (cell,) = cells("standard", seeds=(0,), model="madry_cnn")
    expected = 25 * 32 * 64 + 25 * 32 * 64 * 16 + 256 * 1024 + 1024 * 10
    assert cell.benchmark.anatomy.forward_products == expected


def test_more_epochs_and_cells_take_longer():
    short, long = (
        estimate(cells("standard", training={"epochs": epochs}), None) for epochs in (10, 1000)
    )
    assert 0 < short.total < long.total
    alone = estimate(cells("standard", seeds=(0,), training={"epochs": 10}), None)
    assert alone.total < short.total


def test_without_a_finished_cell_it_is_a_rough_guess(tmp_path):
    found = estimate(cells("standard"), tmp_path)
    assert not found.measured
    assert found.remaining == found.total
    assert str(found).endswith("(a rough guess for 2 cores)")


def test_a_finished_cell_corrects_the_guess_for_the_others(tmp_path):
    both = cells("standard")
    finish(both[0], tmp_path, 500.0)
    found = estimate(both, tmp_path)
    assert found.measured
    assert found.remaining == pytest.approx(500)
    assert found.total == pytest.approx(1000)
    assert str(found) == "estimated time 17 min, 8 min left (from the cells already done)"


def test_with_every_cell_finished_nothing_is_left(tmp_path):
    both = cells("standard")
    for cell, seconds in zip(both, (100.0, 200.0), strict=True):
        finish(cell, tmp_path, seconds)
    found = estimate(both, tmp_path)
    assert (found.total, found.remaining) == (300, 0)


def test_an_estimate_is_a_value():
    one = Estimate(total=1.0, remaining=1.0, measured=False)
    assert replace(one, total=1.0) == one
