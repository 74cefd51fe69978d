"""An attack with epsilon 0 changes no prediction, or is found out."""

import pytest
import torch
from support.scripted import INF, Scripted, generator, still, up

from lipbench.adversarial.self_check import self_check
from lipbench.adversary import AttackInvalid


def test_self_check_passes_an_honest_attack(problem):
    self_check(Scripted(act=up), *problem, INF, (0.0, 1.0), generator())


def test_self_check_finds_a_random_model():
    def random_model(x):
        return torch.randn(len(x), 3)

    inputs, labels = torch.rand(64, 2), torch.zeros(64, dtype=torch.int64)
    with pytest.raises(AttackInvalid, match="with epsilon 0"):
        self_check(Scripted(act=still), random_model, inputs, labels, INF, None, generator())


def test_self_check_finds_an_attack_that_divides_by_epsilon(problem):
    def divide(model, inputs, labels, threat, rng):
        return inputs + (inputs - inputs) / threat.epsilon[:, None]

    with pytest.raises(AttackInvalid, match="NaN"):
        self_check(Scripted(act=divide), *problem, INF, None, generator())
