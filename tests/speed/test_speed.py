"""The works measure what they say, and tell when it cannot be believed."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.synthetic import write_rows
from support.training import digits
from torch.utils.data import TensorDataset

from lipbench.cli.main import call
from lipbench.dataset import DataMissing
from lipbench.planning.plan import plan
from lipbench.runs.exits import ExitCode
from lipbench.speed import report, works
from lipbench.speed.bench import Bench, Scale
from lipbench.speed.figure import Figure, Ratio
from lipbench.speed.limits import ON_CPU, ON_GPU, Limit
from lipbench.speed.samples import Samples
from lipbench.speed.stopwatch import Times, alternate
from lipbench.speed.tables import digits as published
from lipbench.speed.tables import many_cells
from lipbench.speed.whole_runs import inside
from lipbench.storage.rows import Row

KEYS = {"ratio", "ours_s", "plain_s", "eager_s", "spread"}
METRICS = ("loss", "test_accuracy", "training_seconds")
TINY = {
    "stack": 2,
    "pairs": 8,
    "few_pairs": 4,
    "epochs": 1,
    "seeds": 1,
    "tolerance": 1.0,
    "attack_steps": 3,
    "attack_batches": (50, 100),
    "run": many_cells(2),
    "cells": 3,
}


def small(device):
    data = digits(train=200, pairs=32)
    return Samples(
        data=data,
        train=TensorDataset(data.train.inputs, data.train.targets),
        pairs=TensorDataset(data.pairs.inputs, data.pairs.targets),
    )


def missing(device):
    raise DataMissing("MNIST is not there")


def bench(repeats=1, read=small, say=lambda text: None, **changes):
    scale = Scale(**{**TINY, **changes})
    return Bench(device=torch.device("cpu"), repeats=repeats, scale=scale, read=read, say=say)


@pytest.fixture
def lip(capsys, monkeypatch):
    """Return what `lipbench speed` gives at the smallest scale: exit code, output, errors."""

    def run(*arguments, **changes):
        monkeypatch.setattr(
            works, "bench", lambda device, repeats, say: bench(repeats, say=say, **changes)
        )
        code = call(["speed", "--device", "cpu", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_json_has_an_object_for_each_work_and_nothing_else(lip):
    pytest.importorskip("torchattacks")
    code, out, err = lip("--repeats", "1", "--json")
    assert code == ExitCode.DONE, err
    figures = json.loads(out)
    assert list(figures) == list(ON_CPU) == list(works.WORKS)
    for name, figure in figures.items():
        assert figure.keys() >= KEYS, name
        low, high = figure["spread"]
        assert low <= figure["ratio"] <= high
        assert figure["ours_s"] > 0
    assert all(figures[name]["eager_s"] is None for name in list(ON_CPU)[2:])
    assert figures["pgd_linf"]["plain_s"] == pytest.approx(
        min(figures["pgd_linf"]["batches_s"].values()), rel=0.5
    )
    overhead = figures["run_overhead"]
    assert overhead["spread"][0] > 1
    assert overhead["inside_s"] < overhead["ours_s"]
    assert overhead["ratio_alone"] != 1
    assert overhead["spread_alone"][0] <= overhead["ratio_alone"] <= overhead["spread_alone"][1]
    assert figures["noop_rerun"]["ratio"] == figures["noop_rerun"]["ours_s"]
    assert "standard_stacked: repeat 1 of 1" in err


def test_sides_that_do_not_learn_the_same_are_an_error(lip):
    code, out, err = lip("--only", "standard_stacked", "--repeats", "1", tolerance=-1.0)

    assert code == ExitCode.INTERNAL
    assert "the sides do not learn the same" in err
    assert out.startswith("work ")


def test_the_table_says_limits_meanings_and_the_machine(lip):
    code, out, _ = lip("--only", "clip500_stacked", "--repeats", "1")
    lines = out.splitlines()

    assert code == ExitCode.DONE
    assert [line.split()[:2] for line in lines[2:4]] == [
        ["clip500_stacked", "plain"],
        ["clip500_stacked", "eager"],
    ]
    assert "at least 5" in lines[2]
    assert any("test accuracy after 1 epochs" in line for line in lines)
    assert f"torch {torch.__version__.split('+')[0]}" in lines[-1]
    assert f"with {torch.get_num_threads()} threads" in lines[-1]


def test_an_unknown_work_is_bad_usage(lip):
    code, out, err = lip("--only", "pgd_lin")

    assert (code, out) == (ExitCode.USAGE, "")
    assert "did you mean 'pgd_linf'?" in err


def test_without_torchattacks_its_work_is_refused_and_the_others_run(lip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    code, out, err = lip("--only", "pgd_linf")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "pip install 'lipbench[torchattacks]'" in err

    monkeypatch.setattr(works, "WORKS", {"clip64_cost": works.WORKS["clip64_cost"]})
    code, out, err = lip("--repeats", "1", "--json")
    assert code == ExitCode.DONE
    assert list(json.loads(out)) == ["clip64_cost"]
    assert "pgd_linf cannot be measured" in err


def test_missing_data_are_told_before_anything_is_measured(lip):
    code, out, err = lip("--only", "noop_rerun", "--only", "clip64_cost", read=missing)
    assert (code, out) == (ExitCode.FAILED, "")
    assert "MNIST is not there" in err
    assert "noop_rerun" not in err


def test_no_data_are_read_for_works_that_need_none():
    assert works.measure(bench(read=missing), ["noop_rerun"]).keys() == {"noop_rerun"}


def test_an_attack_that_is_weaker_than_the_yardstick_is_a_problem(monkeypatch):
    pytest.importorskip("torchattacks")
    monkeypatch.setattr("lipbench.speed.ours.robust_accuracy", lambda *a, **b: 1.01)
    figure = works.measure(bench(), ["pgd_linf"])["pgd_linf"]

    assert "our attack is weaker" in figure.problems[0]


def test_the_ratio_is_the_median_of_the_ratios_of_each_repeat():
    times = Times(
        seconds={"plain": [10.0, 30.0, 20.0], "ours": [1.0, 2.0, 5.0]},
        peak_bytes={"plain": None, "ours": 7},
    )
    ratio = Ratio.of(times.ratios("plain", "ours", 2))

    assert ratio == Ratio(value=20.0, spread=(8.0, 30.0))
    assert (times.median("plain"), times.median("ours")) == (20.0, 2.0)


def test_the_fastest_side_is_that_of_each_repeat():
    times = Times(seconds={"a": [1.0, 4.0], "b": [2.0, 3.0]}, peak_bytes={"a": 5, "b": None})
    best = times.fastest("best", ["a", "b"])

    assert best.seconds["best"] == [1.0, 3.0]
    assert best.peak_bytes["best"] == 5


def test_sides_take_turns_and_only_their_work_is_timed():
    calls = []

    def side(name):
        def prepare():
            calls.append(f"prepare {name}")
            return lambda: calls.append(name)

        return prepare

    times = alternate({"a": side("a"), "b": side("b")}, 2, torch.device("cpu"), lambda text: None)
    assert calls == ["prepare a", "a", "prepare b", "b", "prepare b", "b", "prepare a", "a"]
    assert [len(seconds) for seconds in times.seconds.values()] == [2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_is_that_of_the_side_and_not_of_one_before():
    def hold(mebibytes):
        return lambda: lambda: torch.zeros(mebibytes * 2**18).sum()

    times = alternate(
        {"large": hold(200), "small": hold(1)}, 2, torch.device("cpu"), lambda text: None
    )
    large, small = times.peak_bytes["large"], times.peak_bytes["small"]
    if large is None:
        pytest.skip("the system does not tell")
    assert large - small > 150 * 2**20


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [(Limit(value=12.0), 12.0, 11.9), (Limit(value=3.5, largest=True), 3.5, 3.6)],
)
def test_a_limit_is_reached_on_its_side_only(limit, good, bad):
    assert limit.reached(good)
    assert not limit.reached(bad)
    assert not limit.reached(float("nan"))


def test_each_run_is_compared_with_its_own_rows(monkeypatch):
    """The first run only warms up."""
    folders = []
    monkeypatch.setattr(
        "lipbench.speed.whole_runs.inside", lambda folder: folders.append(folder.name) or 0.5
    )
    figure = works.measure(bench(), ["run_overhead"])["run_overhead"]
    assert folders == ["1", "2", "3"]
    assert figure.ratio.value == pytest.approx(figure.ours_s / 0.5)


def test_the_calls_inside_a_run_are_counted_once(tmp_path):
    """One call may give several rows; what training took is a value, and its row's call another."""
    blank = Row(
        benchmark="b", dataset="{}", model="{}", method="m", params="{}", seed=0, metric="loss"
    )

    def rows(key, checkpoint, call, seconds, *metrics):
        row = replace(blank, train_key=key, checkpoint=checkpoint, eval_key=call, seconds=seconds)
        return [replace(row, metric=metric, value=100.0) for metric in metrics]

    write_rows(
        tmp_path / "results.csv",
        [
            *rows("one", "last", "plain", 1.0, *METRICS),
            *rows("one", "chosen", "plain", 2.0, "loss", "test_accuracy"),
            *rows("one", "chosen", "pgd", 4.0, "robust_accuracy"),
            *rows("two", "chosen", "pgd", 8.0, "robust_accuracy"),
            *rows("two", "chosen", "", None, "n_trials"),
            # Another benchmark that shares a cell.
            *(replace(r, benchmark="c") for r in rows("one", "last", "plain", 1.0, *METRICS)),
        ],
    )
    assert inside(tmp_path) == 100 + 1 + 2 + 4 + 8


def test_the_run_that_is_compared_is_a_valid_configuration():
    cells = plan(published(), device="cpu").cells

    assert len(cells) == 6
    assert {len(cell.evaluations) for cell in cells} == {11}


def test_every_limit_belongs_to_a_work():
    assert list(ON_CPU) == list(works.WORKS)
    assert ON_GPU.keys() <= ON_CPU.keys()


def test_a_missed_limit_is_said_and_not_an_error():
    figure = Figure(what="seconds", ratio=Ratio(value=6.0, spread=(5.5, 7.0)), ours_s=6.0)
    text = report.text({"noop_rerun": figure}, ON_CPU, "a machine")

    assert "at most 5" in text
    assert " no " in text.splitlines()[2]
    assert text.endswith("a machine")


def test_a_number_that_is_not_finite_is_null_in_json():
    figure = Figure(
        what="", ratio=Ratio(value=float("inf"), spread=(1.0, float("inf"))), ours_s=0.0
    )

    assert json.loads(json.dumps(figure.as_json(), allow_nan=False))["ratio"] is None


def test_help_imports_no_torch():
    text = (
        "import sys; from lipbench.cli.main import call\n"
        "code = call(['speed', '--help']) or call(['speed', '--only', 'x']) != 2\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
