"""Validation accuracy under the selection attack, by which a checkpoint is chosen."""

from dataclasses import replace

import pytest
import torch
from support import runs
from support.training import a_model, digits

from lipbench.adversarial.judge import judge_epsilons
from lipbench.config.file import parse
from lipbench.config.problems import ConfigError
from lipbench.evaluation.selection import selection_score
from lipbench.networks.network_stack import Networks
from lipbench.seeds import stream


def the_benchmark(**changes):
    table = {"attack": "pgd_l2_sign", "epsilon": 0.25, "alpha": 0.05, "steps": 4} | changes
    return parse(runs.config("standard", selection=table)).benchmarks[0]


def modules(count=3):
    rng = torch.Generator().manual_seed(0)
    return [a_model(activation="relu").build((1, 8, 8), 10, rng).eval() for _ in range(count)]


@pytest.mark.parametrize("size", [None, 9])
def test_each_network_is_scored_on_the_first_validation_samples(size):
    """On labels of its own, so that there is something to break."""
    data, nets, benchmark = digits(), modules(), the_benchmark(**({"size": size} if size else {}))
    chosen_by = benchmark.selection
    validation = data.validation
    labels = nets[0](validation.inputs).argmax(dim=1)
    data = replace(data, validation=replace(validation, targets=labels))
    scores = selection_score(benchmark, data)(Networks.of(nets), [0, 1, 2])
    for net, seed, score in zip(nets, range(3), scores, strict=True):
        rng = stream(seed, "attack", "selection")
        inputs, targets = validation.inputs[:size], labels[:size]
        settings = chosen_by.norm, [chosen_by.epsilon], (0.0, 1.0), rng
        (alone,) = judge_epsilons(chosen_by.attack, net, inputs, targets, *settings)
        assert score == alone.accuracy
    assert 0 < scores[0] < 1


def test_a_size_of_its_own_is_another_training():
    def key(**changes):
        table = {"attack": "pgd_l2_sign", "epsilon": 0.3} | changes
        (cell,) = runs.lipbench.plan(runs.config("standard", selection=table)).cells
        return cell.key

    assert key() != key(size=10)


def test_a_size_below_one_is_refused():
    with pytest.raises(ConfigError, match="size of selection must be at least 1, got 0"):
        the_benchmark(size=0)


def test_the_last_network_needs_no_score():
    benchmark = parse(runs.config("standard", selection="last")).benchmarks[0]
    assert selection_score(benchmark, digits()) is None
