"""A run writes what the design says, does nothing twice, and adds only what is new."""

import json

import pytest
from support import runs
from support.runs import DRIVEN, EVALUATION, PGD, cell_folders, config, evaluation, results

import lipbench
import lipbench.runs.stack_work
from lipbench.cli.main import call
from lipbench.config.problems import ConfigError
from lipbench.planning.plan import NothingSelected
from lipbench.runs.exits import ExitCode
from lipbench.storage.cell_folder import lock_cells
from lipbench.storage.files import StorageError
from lipbench.storage.results import status_table
from lipbench.storage.rows import read_rows
from lipbench.storage.tensors import read_tensors

BOTH = config("standard", DRIVEN, seeds=(0, 1))


def rows_of(folder, **wanted):
    rows = results(folder)
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def test_a_run_leaves_the_files_of_the_design_and_no_others(finished):
    top = {path.name for path in finished.iterdir()}
    derived = {"results.csv", "table.tex"}
    assert top == {"config.resolved.json", "plan.json", "env", "cells"} | derived
    assert len(list((finished / "env").glob("*.json"))) == 1
    cells = json.loads((finished / "plan.json").read_text())["cells"]
    assert len(cells) == 4
    for planned in cells:
        folder = finished / planned["folder"]
        names = {path.name for path in folder.iterdir() if "-" not in path.name}
        assert names == {"cell.json", "status.json", "model.safetensors", "train.csv", ".lock"}
        assert (folder / "model-last.safetensors").exists()
        kinds = [
            {path.name.split("-")[0] for path in folder.glob(f"*-{key}.*")}
            for key in planned["evaluations"]
        ]
        accuracy, noise, attack, product, jacobian = kinds
        assert accuracy == attack == {"rows", "samples", "seal"}
        assert noise == {"rows", "seal"}
        assert product == {"rows", "samples", "proof", "seal"}
        assert jacobian == {"rows", "proof", "seal"}


def test_the_cell_says_what_entered_its_key(finished):
    for (method, seed), cell_folder in cell_folders(finished).items():
        cell = json.loads(cell_folder.cell.read_text())
        assert cell["train_key"] == cell_folder.path.name
        assert (cell["method"]["name"], cell["seed"]) == (method, seed)
        assert cell["train_key"] in cell["stack"]


def test_the_environment_of_each_row_is_on_record(finished):
    known = {path.stem for path in (finished / "env").glob("*.json")}
    assert {row.env_id for row in results(finished)} == known


def test_the_resolved_configuration_gives_the_same_plan(finished):
    def without_nulls(value):
        if isinstance(value, dict):
            return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
        return [without_nulls(entry) for entry in value] if isinstance(value, list) else value

    again = lipbench.plan(
        without_nulls(json.loads((finished / "config.resolved.json").read_text()))
    )
    assert [cell.key for cell in again.cells] == [cell.key for cell in lipbench.plan(BOTH).cells]


@pytest.mark.parametrize("checkpoint", ["chosen", "last"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_is_there_for_both_checkpoints(finished, checkpoint, seed):
    expected = {
        ("train_accuracy", "", "exact", None, "", 128),
        ("test_accuracy", "", "exact", None, "", 40),
        ("largest_class", "", "", None, "", 40),
        ("epoch", "", "", None, "", None),
        ("noise_accuracy[sigma=0.3,clamped]", "gaussian", "estimate", None, "", 40),
        ("noise_accuracy_std[sigma=0.3,clamped]", "gaussian", "estimate", None, "", 40),
        ("robust_accuracy", "pgd", "upper", 0.1, "[0, 1]", 40),
        ("robust_accuracy", "pgd", "upper", 0.5, "[0, 1]", 40),
        ("attack_queries", "pgd", "exact", None, "[0, 1]", 40),
        ("lipschitz", "product", "upper", None, "all", None),
        ("lipschitz", "jacobian", "lower", None, "all", None),
        ("certified_accuracy", "product", "lower", 0.1, "all", 40),
        ("certified_accuracy", "product", "lower", 0.5, "all", 40),
        *(
            (f"certified_radius_quantile[{level}]", "product", "lower", None, "all", 40)
            for level in (0.1, 0.25, 0.5, 0.75, 0.9)
        ),
    }
    for method in ("standard", "clip"):
        measured = rows_of(finished, method=method, seed=seed, checkpoint=checkpoint)
        rows = {
            (row.metric, row.estimator, row.side, row.epsilon, row.domain, row.n)
            for row in measured
        }
        metrics = {row.metric for row in measured}
        more = {"strength[lambda]"} if method == "clip" else {"validation_score"}
        if checkpoint == "last":
            more -= {"validation_score"}
            more |= {"training_seconds", "gradient_evaluations", "network_evaluations"}
        assert rows >= expected
        assert metrics >= more
        assert all(row.status == "done" and row.value is not None for row in measured)
        assert all(row.train_key and row.eval_key and row.seconds is not None for row in measured)


def test_a_norm_or_its_absence_is_said_of_every_row(finished):
    for row in results(finished):
        measured_in = {"robust_accuracy", "attack_queries", "lipschitz", "certified_accuracy"}
        is_quantile = row.metric.startswith("certified_radius")
        assert (row.norm == 2.0) == (row.metric in measured_in or is_quantile)


def test_params_hold_every_field_of_the_method(finished):
    for row in results(finished):
        params = json.loads(row.params)
        assert json.dumps(params, sort_keys=True) == row.params
        if row.method == "clip":
            assert params["target_accuracy"] == 0.4
            assert params["pairs"] == 16
            assert "refresh" in params


def test_the_strength_is_recorded_each_epoch_and_in_the_rows(finished):
    for seed in (0, 1):
        history = cell_folders(finished)["clip", seed].train.read_text().splitlines()
        header = history[0].split(",")
        strengths = [float(line.split(",")[header.index("strength")]) for line in history[1:]]
        assert len(strengths) == 2
        for checkpoint in ("chosen", "last"):
            values = {
                row.metric: row.value
                for row in rows_of(finished, method="clip", seed=seed, checkpoint=checkpoint)
            }
            assert values["strength[lambda]"] == strengths[int(values["epoch"]) - 1]


def test_a_second_run_does_nothing_and_says_so(folder, capsys):
    before = runs.files(folder)
    derived = {path: path.read_bytes() for path in folder.glob("*.*")}

    assert runs.run(BOTH, folder, progress="auto") == 0
    assert capsys.readouterr().out == "nothing left to do\nlipbench: 4 done -> exit 0\n"
    assert runs.files(folder) == before
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == derived


def test_a_second_run_writes_no_file(folder):
    def times():
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    before = times()
    assert runs.run(BOTH, folder) == 0
    assert times() == before


@pytest.mark.parametrize("name", ["results.csv", "table.tex", "plan.json", "config.resolved.json"])
@pytest.mark.parametrize("spoil", [lambda text: text.replace("1", "2"), lambda text: text[:-9]])
def test_a_derived_file_that_was_edited_or_cut_is_written_anew(folder, name, spoil):
    path = folder / name
    original = path.read_text()
    path.write_text(spoil(original))
    assert path.read_text() != original

    assert runs.run(BOTH, folder) == 0
    assert path.read_text() == original


def test_results_are_there_before_all_is_done(tmp_path, monkeypatch):
    work_on, seen = lipbench.runs.stack_work.work_on, []

    def look_and_work(*arguments):
        there = (tmp_path / "results.csv").exists()
        seen.append({row.method for row in results(tmp_path) if row.value} if there else None)
        work_on(*arguments)

    monkeypatch.setattr("lipbench.runs.stack_work.work_on", look_and_work)
    assert runs.run(config("standard", "clip"), tmp_path) == 0
    assert seen == [None, {"standard"}]


def test_published_results_are_not_touched_by_a_run_that_is_stopped_at_once(tmp_path, monkeypatch):
    (tmp_path / "results.csv").write_text("published")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lipbench.runs.stack_work.work_on", stop)
    assert runs.run(config(), tmp_path) == ExitCode.INTERRUPTED
    assert (tmp_path / "results.csv").read_text() == "published"


def test_the_same_configuration_gives_the_same_numbers_elsewhere(finished, tmp_path):
    assert runs.run(BOTH, tmp_path / "other") == 0
    assert runs.numbers(tmp_path / "other") == runs.numbers(finished)
    assert runs.networks(tmp_path / "other") == runs.networks(finished)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": [PGD | {"epsilon": [0.1, 0.2, 0.5]}]},
        {"attack": [PGD, {"name": "pgd", "norm": float("inf"), "epsilon": [0.05], "steps": 2}]},
        {"bound": [*EVALUATION["bound"], {"name": "jacobian", "points": 4, "domain": [0.0, 1.0]}]},
        {"noise": [*EVALUATION["noise"], {"sigma": 0.1, "clamp": False, "draws": 2}]},
    ],
    ids=["epsilon", "attack", "bound", "noise"],
)
def test_what_is_added_to_the_evaluation_is_all_that_is_done(folder, changes):
    """No network is trained, no file of an evaluation that stays is touched."""
    before = runs.files(folder)
    old = set(runs.numbers(folder))

    assert runs.run(config("standard", DRIVEN, seeds=(0, 1), **evaluation(**changes)), folder) == 0
    after = runs.files(folder)
    status = {cell_folder.status_file for cell_folder in cell_folders(folder).values()}
    assert {path for path in before if after.get(path) != before[path]} == status
    kinds = {path.name.split("-")[0] for path in set(after) - set(before)}
    assert kinds <= {"rows", "samples", "proof", "seal"}
    assert len(set(runs.numbers(folder)) - old) >= 8
    assert all(
        cell_folder.read_status().attempt == 1 for cell_folder in cell_folders(folder).values()
    )


def test_larger_radii_certify_no_more_once_they_are_added(folder):
    """The certified radii are those of the attacks: a new epsilon is certified, too."""
    changes = evaluation(attack=[PGD | {"epsilon": [0.1, 0.2, 0.5]}])
    assert runs.run(config("standard", DRIVEN, seeds=(0, 1), **changes), folder) == 0
    shares = {
        row.epsilon: row.value
        for row in rows_of(
            folder, method="clip", seed=0, checkpoint="chosen", metric="certified_accuracy"
        )
    }
    assert set(shares) == {0.1, 0.2, 0.5}
    assert shares[0.1] >= shares[0.2] >= shares[0.5]


def test_an_added_seed_trains_that_seed_only(folder):
    before = runs.files(folder)

    assert runs.run(config("standard", DRIVEN, seeds=(0, 1, 2)), folder) == 0
    after = runs.files(folder)
    assert {path for path in before if after.get(path) != before[path]} == set()
    assert set(runs.states(folder)) >= {("standard", 2), ("clip", 2)}
    assert {row.seed for row in results(folder)} == {0, 1, 2}


def test_an_added_seed_ends_as_if_it_had_been_there_from_the_beginning(folder, tmp_path):
    assert runs.run(config("standard", DRIVEN, seeds=(0, 1, 2)), folder) == 0
    assert runs.run(config("standard", DRIVEN, seeds=(0, 1, 2)), tmp_path / "three") == 0
    assert runs.networks(folder) == runs.networks(tmp_path / "three")
    assert runs.numbers(folder) == runs.numbers(tmp_path / "three")


def test_a_removed_seed_is_stale_and_counts_nowhere(folder, capsys):
    assert runs.run(config("standard", DRIVEN), folder) == 0
    assert {row.seed for row in results(folder)} == {0}
    capsys.readouterr()
    assert call(["status", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.count("stale, not in the plan") == 2
    assert len(status_table(folder).stale) == 2


def test_selecting_a_benchmark_keeps_the_plan_of_the_whole_file(tmp_path):
    both = runs.several(runs.benchmark(name="one"), runs.benchmark(name="two"))
    folder = tmp_path / "run"

    assert runs.run(both, folder, only=["two"]) == 0
    assert {row.benchmark: row.status for row in results(folder)} == {"two": "done"}
    before = runs.files(folder)
    assert runs.run(both, folder) == 0
    after = runs.files(folder)
    assert all(after[path] == before[path] for path in before)
    assert {row.status for row in results(folder)} == {"done"}


def test_selecting_what_is_not_there_trains_nothing(tmp_path):
    with pytest.raises(NothingSelected, match="'tinny'"):
        runs.run(config(), tmp_path / "run", only=["tinny"])
    assert not (tmp_path / "run").exists()


def test_two_benchmarks_that_share_all_training_are_both_done(tmp_path):
    twins = runs.several(runs.benchmark(name="one"), runs.benchmark(name="two"))
    cells = lipbench.plan(twins).cells
    assert cells[0].key == cells[1].key

    lipbench.run_cells(cells, tmp_path, device="cpu")
    assert [cell.folder(tmp_path).read_status().state for cell in cells] == ["done", "done"]


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")

    def train(*arguments):
        raise AssertionError("it must not come to training")

    monkeypatch.setattr("lipbench.runs.stack_work.work_on", train)
    with pytest.raises(StorageError, match=r"in the way|file.*choose another folder"):
        runs.run(config(), tmp_path / "file" / "run")


def test_a_folder_in_the_place_of_a_file_is_set_aside(folder):
    cell_folder = cell_folders(folder)["clip", 1]
    samples = next(cell_folder.path.glob("samples-*"))
    rows = cell_folder.rows(samples.stem.removeprefix("samples-"))
    rows.unlink()
    samples.unlink()
    (samples / "in the way").mkdir(parents=True)

    assert runs.run(BOTH, folder) == 0
    assert rows.exists()
    assert samples.is_file()
    assert any(path.is_dir() and samples.name in path.name for path in samples.parent.iterdir())


def test_a_device_that_is_not_there_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="choose 'cpu' or 'auto'"):
        lipbench.run(config(), tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_cells_that_all_are_held_by_others_leave_nothing_to_do(tmp_path, capsys):
    cells = lipbench.plan(config("standard", "clip")).cells
    held = lock_cells(cell.folder(tmp_path) for cell in cells)
    with held:
        assert runs.run(config("standard", "clip"), tmp_path) == ExitCode.BUSY
        assert "2 held by another process -> exit 4" in capsys.readouterr().out
    assert runs.run(config("standard", "clip"), tmp_path) == 0


def test_one_cell_is_done_from_python_and_again_for_nothing(tmp_path):
    cell = lipbench.plan(config("standard", seeds=(0, 1))).cells[1]
    assert lipbench.run_cell(cell, tmp_path, device="cpu") == "done"
    before = runs.files(tmp_path)
    assert lipbench.run_cell(cell, tmp_path, device="cpu") == "done"
    assert runs.files(tmp_path) == before


def test_cells_done_one_by_one_make_the_run(finished, tmp_path):
    """A scheduler may call one cell after the other; `run` then only collects."""
    for cell in lipbench.plan(BOTH).cells:
        assert lipbench.run_cell(cell, tmp_path, device="cpu") == "done"
    before = runs.files(tmp_path)
    assert runs.run(BOTH, tmp_path) == 0
    assert runs.files(tmp_path) == before
    assert runs.numbers(tmp_path) == runs.numbers(finished)
    assert runs.networks(tmp_path) == runs.networks(finished)


def test_the_seconds_of_the_cells_of_a_stack_add_up(finished):
    """What a stack shares counts once, so that the estimate of a later run can be right.

    All of a shared attack passes while the first cell is evaluated, and each has an equal part of
    it in its rows: only the sum over the stack can be compared.
    """
    for method in ("standard", "clip"):
        stack = [cell_folders(finished)[method, seed] for seed in (0, 1)]
        shares = [
            row.value
            for row in results(finished)
            if row.method == method and row.metric == "training_seconds"
        ]
        assert shares[0] == shares[1]
        measured = {
            (row.eval_key, row.checkpoint): row.seconds
            for cell_folder in stack
            for path in cell_folder.path.glob("rows-*.csv")
            for row in read_rows(path)
        }
        spent = sum(cell_folder.read_status().seconds for cell_folder in stack)
        assert spent >= 2 * shares[0] + sum(measured.values())


def test_a_saved_network_is_tensors_and_nothing_that_could_run(finished):
    for cell_folder in cell_folders(finished).values():
        tensors, note = read_tensors(cell_folder.model)
        assert note["name"] == "chosen"
        assert {value.dtype.is_floating_point for value in tensors.values()} == {True}
