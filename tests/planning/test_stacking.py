import json

import pytest
import torch
from support import runs

from lipbench.config.file import parse
from lipbench.planning import stacking
from lipbench.planning.stacking import LARGEST_ON_CPU, largest_stack, seconds_per_trial

CPU = torch.device("cpu")
PAIRED = {"name": "digits", "train_size": 200, "pair_size": 900, "validation_size": 50}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def the_benchmark(**changes):
    (found,) = parse(runs.config("standard", **changes)).benchmarks
    return found


def remembered(tmp_path):
    return json.loads((tmp_path / "lipbench" / "stacking.json").read_text())


def test_small_dense_networks_are_stacked_without_a_measurement(tmp_path):
    assert largest_stack(the_benchmark(), CPU) == LARGEST_ON_CPU
    assert not (tmp_path / "lipbench").exists()


def test_whether_a_large_dense_network_is_stacked_is_measured(tmp_path):
    large = {"name": "mlp", "widths": [800, 800]}
    found = largest_stack(the_benchmark(model=large), CPU)
    (times,) = remembered(tmp_path).values()
    assert found == (LARGEST_ON_CPU if times["stacked"] < times["alone"] else 1)


def test_a_network_that_needs_much_memory_gets_a_smaller_stack(monkeypatch):
    """A 64-1000-10 network has 74,000 weights, of which twelve copies are counted."""
    benchmark = the_benchmark(model={"name": "mlp", "widths": [1000]})
    monkeypatch.setattr(stacking, "memory", lambda: 10 * 12 * 4 * 74_000)
    assert 1 < largest_stack(benchmark, CPU) <= 4
    monkeypatch.setattr(stacking, "memory", lambda: 1000)
    assert largest_stack(benchmark, CPU) == 1


def test_pairs_count_as_much_as_a_batch(monkeypatch):
    """A step of CLIP sends both ends of its pairs through the network."""
    few, many = (
        parse(runs.config({"name": "clip", "pairs": pairs}, dataset=PAIRED)).benchmarks[0]
        for pairs in (8, 800)
    )
    monkeypatch.setattr(stacking, "memory", lambda: 2**21)
    assert largest_stack(few, CPU) > largest_stack(many, CPU)


def test_convolutions_are_measured_once_and_remembered(tmp_path):
    benchmark = the_benchmark(model="madry_cnn")
    first = largest_stack(benchmark, CPU)
    known = remembered(tmp_path)
    ((key, times),) = known.items()
    assert "madry_cnn" in key
    assert (first > 1) == (times["stacked"] < times["alone"])
    for stacked, expected in [(0.5, LARGEST_ON_CPU), (2.0, 1)]:
        path = tmp_path / "lipbench" / "stacking.json"
        path.write_text(json.dumps({key: {"alone": 1.0, "stacked": stacked}}))
        assert largest_stack(benchmark, CPU) == expected


def test_what_was_decided_for_a_run_is_kept_in_its_folder(tmp_path):
    """Another cache, or none, does not change the stacks of a run that was begun."""
    benchmark, run = the_benchmark(model="madry_cnn"), tmp_path / "run"
    run.mkdir()
    first = largest_stack(benchmark, CPU, run)
    (tmp_path / "lipbench" / "stacking.json").unlink()
    assert largest_stack(benchmark, CPU, run, measure=False) == first
    ((key, _),) = json.loads((run / "stacking.json").read_text()).items()
    for stacked, expected in [(0.5, LARGEST_ON_CPU), (2.0, 1)]:
        decided = {key: {"alone": 1.0, "stacked": stacked}}
        (run / "stacking.json").write_text(json.dumps(decided))
        assert largest_stack(benchmark, CPU, run) == expected


def test_what_is_not_to_be_measured_counts_as_slower(tmp_path):
    assert largest_stack(the_benchmark(model="madry_cnn"), CPU, tmp_path, measure=False) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_a_plan_measures_nothing_and_a_run_that_has_work_does(tmp_path):
    settings = runs.config(
        "standard", model="madry_cnn", training={"epochs": 1, "warmup": 0}, evaluation={}
    )
    runs.lipbench.plan(settings, tmp_path / "run")
    assert not list(tmp_path.rglob("stacking.json"))
    runs.run(settings, tmp_path / "run")
    assert len(list(tmp_path.rglob("stacking.json"))) == 2


def test_another_model_is_another_measurement(tmp_path):
    for std in (0.1, 0.2):
        largest_stack(the_benchmark(model={"name": "madry_cnn", "init_std": std}), CPU)
    assert len(remembered(tmp_path)) == 2


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"a": 1}', '{"a": {"alone": "x"}}'])
def test_a_damaged_memory_is_measured_again(tmp_path, text):
    path = tmp_path / "lipbench" / "stacking.json"
    path.parent.mkdir()
    path.write_text(text)
    assert largest_stack(the_benchmark(model="madry_cnn"), CPU) in (1, LARGEST_ON_CPU)
    assert remembered(tmp_path)


def test_a_model_that_cannot_be_stacked_is_not_measured(tmp_path, monkeypatch):
    benchmark = the_benchmark(model="madry_cnn")
    monkeypatch.setattr(type(benchmark.model), "stackable", False)
    assert largest_stack(benchmark, CPU) == 1
    assert not (tmp_path / "lipbench").exists()


def test_both_times_of_a_step_are_positive():
    alone, stacked = seconds_per_trial(the_benchmark(model="madry_cnn"), CPU)
    assert min(alone, stacked) > 0
