"""Training under LipSDP with a penalty on the constant; the rest is in `test_admm`."""

import pytest
from support.admm import QUICK, TANH, curve, saved, value
from support.training import a_method, a_model, an_entry, digits, same, train


def test_a_larger_penalty_gives_a_smaller_constant():
    data = curve("step")
    found = []
    for mu in (0.0, 0.01, 0.5):
        entry = an_entry("sdp_penalty", mu=mu, epochs=12, rounds=3, **QUICK)
        (outcome,) = train(entry, data, model=TANH)
        found.append(value("lipsdp_neuron", saved(outcome.checkpoints["last"].params, data, TANH)))
        assert entry.method.claims(None) is None
    assert found[0] > found[1] > found[2] > 0


def test_without_a_penalty_the_warm_start_is_standard_training_bit_for_bit():
    data = digits(train=64)
    model = a_model(widths=(8,))
    ours = an_entry("sdp_penalty", mu=0.0, warm_start=1.0, weight_decay=0.0)
    (one,), (other,) = (train(entry, data, model=model) for entry in (ours, an_entry("standard")))
    assert same(one.checkpoints["last"].params, other.checkpoints["last"].params)


def test_a_weight_that_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"mu must .*at least 0"):
        a_method("sdp_penalty", mu=-1.0)
