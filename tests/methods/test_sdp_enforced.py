"""Training under LipSDP with an enforced constant; the rest is in `test_admm`."""

import math

import pytest
from support.admm import QUICK, curve, saved, value
from support.training import a_method, a_model, a_trainer, an_entry, digits, train

from lipbench.norm import Norm
from lipbench.training.discrepancy import Discrepancy


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("sine", {"widths": (4,), "activation": "tanh"}),
        ("step", {"widths": (4,), "activation": "relu"}),
        ("digits", {"widths": (4,), "activation": "relu", "normalisation": (0.5, 0.25)}),
        ("digits", {"widths": (4, 3), "activation": "sigmoid", "output_activation": "tanh"}),
    ],
)
def test_the_enforced_constant_is_proved_of_the_network_that_is_returned(kind, fields):
    """By lipbench's own bound, strictly; and of a steep function it is nearly used up."""
    data = curve(kind) if kind != "digits" else digits(train=64, classes=(3, 8))
    model = a_model(**fields)
    entry = an_entry(
        "sdp_enforced", constant=0.5, epochs=12, warm_start=0.5, rounds=1, refresh=True, **QUICK
    )
    (outcome,) = train(entry, data, model=model)
    net = saved(outcome.checkpoints["last"].params, data, model)
    claim = entry.method.claims(net)
    assert (claim.constant, claim.norm, claim.domain) == (0.5, Norm(2), None)
    proved = value("lipsdp_neuron", net)
    assert proved <= 0.5
    assert proved > 0.1
    assert value("jacobian", net) <= proved


def test_a_checkpoint_of_the_warm_start_keeps_the_enforced_constant():
    data, model, left = (
        digits(train=64, classes=(3, 8)),
        a_model(widths=(4,)),
        iter(range(9, 0, -1)),
    )
    entry = an_entry("sdp_enforced", constant=0.1, epochs=4, rounds=1, warm_start=0.75, **QUICK)
    (outcome,) = train(entry, data, model=model, score=lambda model, seed: next(left) / 10)
    chosen = outcome.checkpoints["chosen"]
    assert chosen.epoch == 1
    assert value("lipsdp_neuron", saved(chosen.params, data, model)) <= 0.1


def test_a_constant_that_is_driven_is_kept_at_every_epoch():
    data, model = digits(train=64, classes=(3, 8)), a_model(widths=(4,))
    entry = an_entry(
        "sdp_enforced", constant=0.2, epochs=5, rounds=1, target=0.2, warmup=1, **QUICK,
        discrepancy=Discrepancy(rule="additive", step=0.04, scale=1.0),
    )  # fmt: skip
    trainer = a_trainer(entry, data, model=model)
    state, seen = trainer.begin(), []

    def after(now):
        state, row = now.state, now.histories[0][-1]
        params = {name: part[0] for name, part in now.params.items()}
        params |= {name: part[0] for name, part in state["bar"].items()}
        seen.append((row["strength"], value("lipsdp_neuron", saved(params, data, model))))

    trainer.run(state, after)
    strengths = [strength for strength, _ in seen]
    assert strengths[-1] < strengths[2] < strengths[0]
    assert all(proved <= strength for strength, proved in seen)


@pytest.mark.parametrize("bad", [0.0, math.inf])
def test_a_constant_that_is_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"constant must .*positive and finite"):
        a_method("sdp_enforced", constant=bad)
