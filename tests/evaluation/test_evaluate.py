"""Only what is missing is measured, and numbers that cannot be true at once are found."""

import math
from dataclasses import replace

import pytest
import torch
from support import runs
from support.synthetic import a_row, write_rows

import lipbench
from lipbench.evaluation.contradictions import contradictions
from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.rows import read_rows
from lipbench.storage.tensors import read_tensors, write_tensors

# In this order: accuracy, an attack, two bounds.
SETTINGS = runs.config(evaluation={"attack": [runs.PGD], "bound": ["product", "jacobian"]})


@pytest.fixture(scope="module")
def cell():
    return lipbench.plan(SETTINGS).cells[0]


@pytest.fixture
def folder(cell, tmp_path):
    # Each evaluation has an empty file of rows.
    folder = CellFolder(tmp_path / "cell")
    for evaluation in cell.evaluations:
        write_rows(folder.rows(evaluation.key), [])
    return folder


def bound(value, side, domain="all", norm=2.0, **changes):
    return a_row(
        metric="lipschitz",
        estimator=f"some {side}",
        value=value,
        side=side,
        norm=norm,
        domain=domain,
        **changes,
    )


def contradictions_among(cell, folder, *rows):
    write_rows(folder.rows(cell.evaluations[2].key), rows)
    return contradictions(cell, folder)


def test_bounds_that_do_not_cross_are_no_contradiction(cell, folder):
    assert contradictions_among(cell, folder, bound(2.0, "lower"), bound(2.0, "upper")) == []
    assert contradictions_among(cell, folder, bound(1.5, "lower"), bound(math.inf, "upper")) == []


def test_a_lower_bound_above_an_upper_one_is_found_with_both_values(cell, folder):
    (message,) = contradictions_among(cell, folder, bound(2.5, "lower"), bound(2.25, "upper"))
    assert message.startswith("chosen: lower 2.5 ")
    assert "exceeds upper 2.25 " in message


def test_a_crossing_in_different_files_is_found(cell, folder):
    write_rows(folder.rows(cell.evaluations[2].key), [bound(1.0, "upper")])
    write_rows(folder.rows(cell.evaluations[3].key), [bound(1.1, "lower")])
    assert len(contradictions(cell, folder)) == 1


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ({"checkpoint": "last"}, {}),
        ({"norm": math.inf}, {}),
        ({"domain": "all"}, {"domain": "[0, 1]"}),
        ({"domain": "[0, 1]"}, {"domain": "[0.25, 1]"}),
        ({"status": "failed", "value": None}, {}),
    ],
)
def test_values_of_different_things_are_not_compared(cell, folder, lower, upper):
    """Another checkpoint, norm, or a lower bound that reaches outside the upper one's box."""
    rows = (
        bound(**{"value": 2.0, "side": "lower"} | lower),
        bound(**{"value": 1.0, "side": "upper"} | upper),
    )
    assert contradictions_among(cell, folder, *rows) == []


def test_a_lower_bound_in_a_box_must_not_exceed_an_upper_one_of_all_space(cell, folder):
    rows = bound(2.0, "lower", domain="[0, 1]"), bound(1.0, "upper")
    assert len(contradictions_among(cell, folder, *rows)) == 1


def test_an_estimate_may_be_anywhere(cell, folder):
    assert contradictions_among(cell, folder, bound(9.0, "estimate"), bound(1.0, "upper")) == []


def test_a_bound_whose_proof_does_not_hold_is_a_contradiction(cell, folder):
    row = bound(2.0, "upper", status="invalid", flags=("target_missed", "its proof is wrong"))
    assert contradictions_among(cell, folder, row) == ["chosen: some upper: its proof is wrong"]


def attacked(cell, folder, distance, radius, norm=2.0, checkpoint="chosen"):
    attack, product = cell.evaluations[1].key, cell.evaluations[2].key
    row = a_row(
        metric="robust_accuracy",
        estimator="pgd",
        norm=norm,
        epsilon=0.5,
        side="upper",
        eval_key=attack,
    )
    write_rows(folder.rows(attack), [row])
    name = f"chosen/robust_accuracy/pgd/{norm:g}/0.5/distance"
    write_tensors(folder.samples(attack), {name: torch.tensor(distance).double()}, {})
    name = f"{checkpoint}/certified/product/2/radius"
    write_tensors(folder.samples(product), {name: torch.tensor(radius).double()}, {})
    return contradictions(cell, folder)


def test_a_sample_that_is_certified_and_broken_is_a_contradiction(cell, folder):
    """The distance at which it was broken counts, not the epsilon of the attack."""
    (message,) = attacked(cell, folder, [0.3, math.inf, 0.1], [0.2, 9.0, 0.15, 9.0])
    assert message.startswith("chosen: sample 2 is certified within 0.15")
    assert "pgd broke it at distance 0.1" in message


@pytest.mark.parametrize("changes", [{"norm": math.inf}, {"checkpoint": "last"}])
def test_certificates_of_other_norms_or_networks_are_not_broken(cell, folder, changes):
    assert attacked(cell, folder, [0.1], [0.2], **changes) == []


def test_each_evaluation_has_its_own_file_and_key(tmp_path):
    assert runs.run(SETTINGS, tmp_path) == 0
    (cell,) = lipbench.plan(SETTINGS).cells
    cell_folder = cell.folder(tmp_path)
    assert len({evaluation.key for evaluation in cell.evaluations}) == 4
    for evaluation in cell.evaluations:
        rows = read_rows(cell_folder.rows(evaluation.key))
        assert rows
        assert {row.eval_key for row in rows} == {evaluation.key}
        assert {row.train_key for row in rows} == {cell.key}


def test_a_real_certificate_that_is_made_larger_is_refuted_by_the_attack(tmp_path):
    """Break it once: the radii of a finished cell times 1e6, and it is no longer sound."""
    assert runs.run(SETTINGS, tmp_path) == 0
    (cell,) = lipbench.plan(SETTINGS).cells
    cell_folder = cell.folder(tmp_path)
    assert contradictions(cell, cell_folder) == []
    path = cell_folder.samples(cell.evaluations[2].key)
    samples, note = read_tensors(path)
    larger = {n: v.abs() * 1e6 if n.endswith("/radius") else v for n, v in samples.items()}
    write_tensors(path, larger, note)
    assert contradictions(cell, cell_folder)


def test_numbers_that_contradict_each_other_are_found_whenever_a_cell_is_looked_at(tmp_path):
    """A lower bound of a finished cell is forged: it is set aside, and measured anew."""
    assert runs.run(SETTINGS, tmp_path) == 0
    (cell,) = lipbench.plan(SETTINGS).cells
    path = cell.folder(tmp_path).rows(cell.evaluations[3].key)
    before = [row.value for row in read_rows(path)]
    write_rows(path, [replace(row, value=1e9) for row in read_rows(path)])
    noise = [{"sigma": 0.1, "clamp": True, "draws": 2}]
    more = runs.config(evaluation=SETTINGS["benchmark"][0]["evaluation"] | {"noise": noise})

    assert runs.run(more, tmp_path) == 0
    assert [row.value for row in read_rows(path)] == before


def test_a_bound_taken_away_comes_back_the_same(tmp_path):
    """
    A later search starts from what earlier bounds found, also when only it is missing.
    """
    settings = runs.config(evaluation={"bound": ["product", "jacobian", "pair_ascent"]})
    lipbench.run(settings, tmp_path)
    (cell,) = lipbench.plan(settings).cells
    folder = cell.folder(tmp_path)
    last = folder.rows(cell.evaluations[-1].key)
    before = [row.value for row in read_rows(last)]
    last.unlink()
    lipbench.run(settings, tmp_path)

    assert before == [row.value for row in read_rows(last)]
