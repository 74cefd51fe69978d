"""GloRo and LMT: what both do that train margins against a global constant."""

import math

import pytest
import torch
from support.certifying import (
    Tiny,
    accuracy,
    attacked,
    certified,
    one_step,
    refusal,
    regression,
    trained,
)
from support.training import a_method, a_model, a_net, an_entry, digits, initial, same, train
from torch import nn

RADIUS = {"gloro": "epsilon", "lmt": "c"}


@pytest.fixture(params=RADIUS)
def name(request):
    return request.param


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gloro", {"lambda_": 0.0}),
        ("lmt", {"c": 0.0, "form": "rows"}),
        ("lmt", {"c": 0.0, "form": "network"}),
    ],
)
def test_without_weight_it_is_standard_training_bit_for_bit(name, fields):
    (ours,) = train(an_entry(name, **fields, epochs=1))
    (standard,) = train(an_entry("standard", epochs=1))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_margins_are_certified_by_the_core_and_attacks_agree(name):
    net, outcome = trained(name, **{RADIUS[name]: 0.3})
    standard, _ = trained("standard")
    assert certified(net, 0.3) > certified(standard, 0.3) + 0.15
    assert certified(net, 0.3) <= attacked(net, 0.3)
    assert accuracy(net, digits().test) > 0.75
    shares = [row["batch_certified"] for row in outcome.history]
    assert shares[-1] > 0.5
    assert shares[0] < shares[-1] <= 1


@pytest.mark.parametrize(
    ("fields", "share"), [({"ramp": 0.5, "first": 0.1}, 0.1), ({"ramp": 0.0}, 1)]
)
def test_the_radius_grows_as_its_fields_say(name, fields, share):
    net = a_net(initial(digits()), (1, 8, 8))
    state = a_method(name, **fields).start(net, digits(), torch.Generator())
    assert float(state["share"]) == pytest.approx(share)


@pytest.mark.parametrize("model", [a_model("madry_cnn"), Tiny()], ids=["madry", "tiny"])
def test_convolutions_are_trained(name, model):
    assert one_step(name, model).state == "done"


def test_what_has_no_margins_is_refused(name):
    assert "regression" in refusal(name, nn.Linear(1, 1), regression())
    headless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    assert "must end with a dense layer" in refusal(name, headless)
    assert refusal(name, initial(digits())) is None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("ramp", 1.5, r"ramp must be in \[0, 1\], got 1.5"),
        ("first", -1.0, r"first must be in \[0, 1\], got -1.0"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(name, field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method(name, **{field: value})


@pytest.mark.parametrize(
    ("name", "field", "value", "expected"),
    [
        ("gloro", "epsilon", -0.1, "epsilon must be at least 0 and finite, got -0.1"),
        ("gloro", "epsilon", math.nan, "epsilon must be at least 0 and finite, got nan"),
        ("gloro", "lambda_", math.inf, "lambda must be at least 0 and finite, got inf"),
        ("lmt", "c", -0.1, "c must be at least 0 and finite, got -0.1"),
        ("lmt", "c", math.nan, "c must be at least 0 and finite, got nan"),
    ],
)
def test_bad_radii_and_weights_are_refused(name, field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method(name, **{field: value})
