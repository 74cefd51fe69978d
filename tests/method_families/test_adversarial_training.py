"""What all methods of adversarial training have in common."""

import math

import pytest
import torch
from support.adversaries import regression
from support.training import a_method, a_model, a_net, an_entry, digits, initial, same, train

from lipbench.adversarial.judge import judge
from lipbench.adversary import Attack
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.threat import Threat
from lipbench.training.optimiser import Optimizer

# With fields for an epsilon of 0.1, and passes over a sample per step: forwards and gradients.
METHODS = {
    "pgd_at": ({"epsilon": 0.1, "steps": 3, "rel_step": 0.5}, 4, 4),
    "trades": ({"epsilon": 0.1, "steps": 3, "rel_step": 0.5, "beta": 2.0}, 6, 5),
    "fgsm_at": ({"epsilon": 0.1}, 3, 3),
    "fast_at": ({"epsilon": 0.1, "probe": 64}, 2, 2),
    "free_at": ({"epsilon": 0.1, "replays": 3}, 3, 3),
}
# What makes each of them standard training.
WITHOUT_EFFECT = {
    "pgd_at": {"epsilon": 0.0},
    "trades": {"beta": 0.0},
    "fgsm_at": {"epsilon": 0.0},
    "fast_at": {"epsilon": 0.0, "probe": 16},
    "free_at": {"epsilon": 0.0, "replays": 1},
}
INF = Norm(math.inf)
# So few steps that none is recorded, which takes longer than all of them.
FEW = digits(train=64)
WIDER = a_model(widths=(48,), activation="relu")
each_method = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_without_its_effect_it_is_standard_training_bit_for_bit(name):
    fields = {**METHODS[name][0], **WITHOUT_EFFECT[name]}
    (ours,) = train(an_entry(name, epochs=2, **fields), FEW)
    (standard,) = train(an_entry("standard", epochs=2), FEW)
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def trained(name, **fields):
    optimizer = Optimizer(name="adam", lr=0.01)
    entry = an_entry(name, epochs=12, batch_size=100, optimizer=optimizer, **fields)
    (outcome,) = train(entry, digits(train=500), model=WIDER)
    net = a_net(initial(digits(), model=WIDER), (1, 8, 8))
    return net.with_params(outcome.checkpoints["last"].params)


def robust_accuracy(net, epsilon):
    part = digits().test
    threat = Threat(norm=INF, epsilon=torch.full((len(part),), epsilon, dtype=torch.float64))
    attack = load("lipbench.attacks", "pgd", Attack)(steps=5, starts=1)
    rng = torch.Generator().manual_seed(0)
    return judge(attack, net.module(), part.inputs, part.targets, threat, rng).accuracy


@pytest.fixture(scope="module")
def standard():
    return robust_accuracy(trained("standard"), 0.1)


@each_method
def test_it_raises_robust_accuracy(name, standard):
    assert robust_accuracy(trained(name, **METHODS[name][0]), 0.1) > standard + 0.1


@each_method
def test_every_pass_is_counted(name):
    fields, forwards, gradients = METHODS[name]
    (outcome,) = train(an_entry(name, epochs=1, **fields), FEW)
    assert (outcome.forwards, outcome.gradients) == (64 * forwards, 64 * gradients)


@each_method
def test_epsilon_grows_over_the_ramp(name):
    """One epoch of a ramp is an epoch with half of epsilon."""
    fields = METHODS[name][0]
    (ramped,) = train(an_entry(name, epochs=1, ramp=1, **fields), FEW)
    (halved,) = train(an_entry(name, epochs=1, **{**fields, "epsilon": 0.05}), FEW)
    (whole,) = train(an_entry(name, epochs=1, **fields), FEW)
    assert same(ramped.checkpoints["last"].params, halved.checkpoints["last"].params)
    assert not same(ramped.checkpoints["last"].params, whole.checkpoints["last"].params)


@each_method
def test_a_regression_is_trained_or_refused_with_the_way_out(name):
    data, fields = regression(), METHODS[name][0]
    fields = {**fields, "probe": 0} if name == "fast_at" else fields
    reason = a_method(name, **fields).refuses(initial(data), data)
    if name == "trades":
        assert "a regression has none: take pgd_at" in reason
        return
    assert reason is None
    (outcome,) = train(an_entry(name, epochs=2, lr=0.02, **fields), data)
    assert outcome.state == "done"


@each_method
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("norm", Norm(1), "norm must be 2 or inf, got 1"),
        ("epsilon", -1.0, "epsilon must be finite and at least 0, got -1"),
        ("ramp", -1, "ramp must be at least 0, got -1"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("replays", 0, "replays must be at least 1, got 0"),
        ("rel_step", 0.0, "rel_step must be positive, got 0"),
        ("noise", 0.0, "noise must be positive, got 0"),
        ("drop", 0.0, "drop must be positive, got 0"),
        ("beta", -1.0, "beta must be at least 0, got -1"),
        ("probe", -1, "probe must be at least 0, got -1"),
        ("clean", 1.5, r"clean must be in \[0, 1\], got 1.5"),
    ],
)
def test_a_number_out_of_range_is_refused(name, field, value, message):
    if field not in type(a_method(name)).__dataclass_fields__:
        return
    with pytest.raises(ValueError, match=message):
        a_method(name, **{field: value})
