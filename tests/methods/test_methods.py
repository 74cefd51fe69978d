"""What every installed method must do, a stranger's like a built-in one."""

import dataclasses

import pytest
import torch
from support.training import (
    METHODS,
    SMALL,
    TINY,
    a_method,
    a_model,
    a_net,
    an_entry,
    digits,
    initial,
    same,
    train,
)

from lipbench.method import Method
from lipbench.registry import load
from lipbench.seeds import stream
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.optimiser import Optimizer
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

DRIVEN = [name for name in METHODS if load("lipbench.methods", name, Method).strength is not None]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_of_keywords(name):
    method = load("lipbench.methods", name, Method)
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(method))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_its_source(name):
    assert "Source:" in load("lipbench.methods", name, Method).__doc__


@pytest.mark.parametrize("name", METHODS)
def test_a_method_lowers_the_loss_it_minimises(name):
    entry = an_entry(name, epochs=8, batch_size=16, **TINY.get(name, {}))
    (outcome,) = train(entry)
    assert outcome.state == "done"
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_precision_it_is_given(name, dtype):
    data = digits(dtype=getattr(torch, dtype))
    (outcome,) = train(an_entry(name, epochs=1, dtype=dtype, **TINY.get(name, {})), data)
    params = outcome.checkpoints["last"].params.values()
    assert {value.dtype for value in params} == {getattr(torch, dtype)}


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_network_has_the_parameters_of_its_architecture(name):
    """A checkpoint is loaded into the network that `build` returns."""
    (outcome,) = train(an_entry(name, epochs=1, **TINY.get(name, {})))
    method = a_method(name, **TINY.get(name, {}))
    rng = stream(0, "method", name, "build")
    module = method.build(initial(digits()), (1, 8, 8), rng)
    last = outcome.checkpoints["last"]
    module.load_state_dict({**last.params, **last.buffers})
    net = a_net(module, (1, 8, 8)).with_params(last.params)
    correct = (module.eval()(digits().train.inputs).argmax(dim=1) == digits().train.targets).float()
    assert last.train_accuracy == pytest.approx(float(correct.mean()), abs=0.02)
    assert net(digits().train.inputs).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_finishing_twice_gives_the_same_bits(name):
    entry = an_entry(name, epochs=1, **TINY.get(name, {}))
    (outcome,) = train(entry, score=lambda model, seed: 0.5)
    assert same(outcome.checkpoints["chosen"].params, outcome.checkpoints["last"].params)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_accepts_the_digits_or_gives_a_reason(name):
    reason = a_method(name, **TINY.get(name, {})).refuses(
        SMALL.build((1, 8, 8), 10, torch.Generator()), digits()
    )
    assert reason is None or reason.strip()


@pytest.mark.parametrize("name", DRIVEN)
def test_the_strength_is_a_real_field_and_its_least_value_is_allowed(name):
    strength = load("lipbench.methods", name, Method).strength
    method = a_method(name, **{**TINY.get(name, {}), strength.field: strength.least})
    assert getattr(method, strength.field) == strength.least
    assert strength.scale > 0


# For each the fields, and the constant step by which its strength moves.
DRIVEN_BY = {
    "clip": ({"pairs": 8, "lambda_": 0.3}, 0.05),
    "weight_regularization": ({"mu": 0.2}, 0.01),
    "spectral_norm": ({"last_layer_bound": 4.0}, 0.05),
}


@pytest.mark.parametrize("name", DRIVEN_BY)
def test_a_driven_method_stays_near_its_target_and_a_lower_one_needs_a_smaller_constant(name):
    """By the paper's rule, a constant step; two targets and eight seeds in one stack.

    The misses of the last fifth of the epochs are averaged: at most seven points, 21 samples. One
    seed says little: CLIP at 0.85 misses by one to twenty points. In float64, so that another
    order of the sums does not give other networks.
    """
    fields, step = DRIVEN_BY[name]
    data = digits(train=300, dtype=torch.float64)
    options = {
        "epochs": 60,
        "batch_size": 100,
        "dtype": "float64",
        "warmup": 5,
        "optimizer": Optimizer(name="adam", lr=0.01),
        "discrepancy": Discrepancy(rule="additive", step=step, scale=1.0),
    }
    trials = [
        Trial(entry=an_entry(name, target=target, **options, **fields), seed=seed)
        for target in (0.85, 0.95)
        for seed in range(8)
    ]
    trainer = Trainer(trials, a_model(widths=(32,), activation="relu"), data)
    outcomes = trainer.run(trainer.begin())
    law, strengths = load("lipbench.methods", name, Method).strength, []
    for target, members in ((0.85, outcomes[:8]), (0.95, outcomes[8:])):
        late = [row for outcome in members for row in outcome.history[-12:]]
        misses = [abs(row["train_accuracy"] - target) for row in late]
        assert sum(misses) / len(misses) <= 0.07
        assert all(row["strength"] >= law.least for each in members for row in each.history)
        strengths.append(sum(row["strength"] for row in late))
    assert (strengths[0] > strengths[1]) == law.shrinks
