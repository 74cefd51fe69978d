"""A regression is run along a path of strengths, and the functions it learnt are kept."""

import csv

import pytest
from support import runs
from support.runs import cell_folders, results

import lipbench
from lipbench.runs.curves import write_curves
from lipbench.storage.results import PlannedCell, write_plan

PATH = [0.0, 10.0, 1e-10]
SETTINGS = runs.several(
    {
        "name": "curve",
        "dataset": {"name": "half_max_abs", "samples": 60},
        "model": {"name": "mlp", "widths": [12], "activation": "sigmoid"},
        "training": {
            "epochs": 30,
            "batch_size": 60,
            "warmup": 0,
            "optimizer": {"name": "adam", "lr": 0.05},
        },
        "selection": "last",
        "evaluation": {"bound": ["product", {"name": "jacobian", "domain": [-4.0, 4.0]}]},
        "method": [
            {"name": "clip", "path": PATH, "refresh": 1, "pairs": 16},
            {"name": "standard"},
        ],
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves") / "run"
    assert runs.run(SETTINGS, folder) == 0
    return folder


def metric(folder, name, **wanted):
    return {
        row.checkpoint: row.value
        for row in results(folder)
        if row.metric == name and all(getattr(row, key) == v for key, v in wanted.items())
    }


def test_each_point_of_the_path_has_its_rows(folder):
    errors = metric(folder, "mse", method="clip", split="test")
    assert set(errors) == {"path:0", "path:1", "path:2", "last", "chosen"}
    assert errors["last"] == errors["chosen"] == errors["path:2"]
    assert len(set(errors.values())) == 3
    strengths = metric(folder, "strength[lambda]", method="clip")
    assert [strengths[f"path:{number}"] for number in range(3)] == pytest.approx(PATH, rel=1e-6)
    assert set(metric(folder, "mse", method="standard", split="train")) == {"last", "chosen"}


def test_a_large_strength_makes_the_function_flat_and_the_error_large(folder):
    slopes = metric(folder, "lipschitz", method="clip", side="lower")
    errors = metric(folder, "mse", method="clip", split="train")
    assert slopes["path:1"] < 0.5 * slopes["path:0"]
    assert errors["path:1"] > errors["path:0"]


def test_the_error_is_that_of_the_stored_curve(folder):
    """The grid of the curve is the test set."""
    errors = metric(folder, "mse", method="clip", split="test")
    with (folder / "curves.csv").open(newline="") as file:
        points = [row for row in csv.DictReader(file) if row["method"] == "clip"]
    assert {p["checkpoint"] for p in points} == {"path:0", "path:1", "path:2"}
    for checkpoint in sorted({p["checkpoint"] for p in points}):
        curve = [(float(p["x"]), float(p["y"])) for p in points if p["checkpoint"] == checkpoint]
        assert len(curve) == 801
        assert (curve[0][0], curve[-1][0]) == (-4.0, 4.0)
        squares = [(y - max(abs(x) - 3, 0) / 2) ** 2 for x, y in curve]
        assert sum(squares) / len(squares) == pytest.approx(errors[checkpoint], rel=1e-5)


def test_curves_are_rebuilt_from_the_cells_alone(folder):
    path = folder / "curves.csv"
    content = path.read_bytes()
    path.unlink()
    assert write_curves(folder) == path
    assert path.read_bytes() == content


def test_a_damaged_curve_is_left_out(folder, tmp_path):
    """The others stay; the file itself is the run's to repair."""
    cell_folder = cell_folders(folder)["standard", 0]
    key = lipbench.plan(SETTINGS).cells[1].evaluations[0].key
    samples = cell_folder.samples(key)
    content = samples.read_bytes()
    try:
        samples.write_bytes(content[:-9])
        assert write_curves(folder) is not None
        with (folder / "curves.csv").open(newline="") as file:
            assert {row["method"] for row in csv.DictReader(file)} == {"clip"}
    finally:
        samples.write_bytes(content)


def test_classifiers_have_no_curves(tmp_path):
    planned = PlannedCell(
        key="k", benchmark="b", method="m", label="m", params="{}", seed=0, folder="cells/b/m/k"
    )
    assert write_curves(tmp_path) is None
    write_plan(tmp_path, [planned])
    (tmp_path / "cells").mkdir()
    assert write_curves(tmp_path) is None
    assert not (tmp_path / "curves.csv").exists()
