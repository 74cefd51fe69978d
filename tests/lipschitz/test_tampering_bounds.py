"""Bounds that change what the others compute with give no value, and the others all of theirs."""

import pytest
import torch
from support.liars import liars
from torch import nn

import lipbench
from lipbench.audit.audit import audit

SHRINK = "[layer.weight.mul_(0.01) for layer in network.layers]"
CHANGES = {
    "refuses": ({"refuses": f"{SHRINK} and 'no rule'"}, "network: steps"),
    "cost": ({"cost": f"len({SHRINK}) * 0.0"}, "network: steps"),
    "within": ({"within": f"{SHRINK} and self"}, "network: steps"),
    "compute": ({"answer": f"{SHRINK} and None"}, "network: steps"),
    "numpy": (
        {"answer": "[l.weight.detach().numpy().fill(0) for l in network.layers] and None"},
        "network: steps",
    ),
    "steps": ({"answer": "object.__setattr__(network, 'steps', ())"}, "network: steps"),
    "inputs": ({"answer": "inputs.zero_() and None"}, "inputs"),
    "torch": ({"answer": "setattr(torch, 'matmul', None)"}, "torch.matmul"),
}


def a_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    rng = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=rng)
    return model


def bracket(model, inputs=None):
    inputs = torch.ones(2, 3) if inputs is None else inputs
    return lipbench.bracket(model, (3,), inputs=inputs)


def known(found):
    return sorted((bound.name, bound.value, bound.side) for bound in found.bounds)


@pytest.fixture(scope="module")
def untouched():
    return known(bracket(a_model()))


QUICK = ("refuses", "inputs", "torch")


@pytest.mark.parametrize(
    ("bound", "what"),
    [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in CHANGES.items()
    ],
)
def test_a_bound_that_changes_what_it_is_given_gives_no_value(publish, untouched, bound, what):
    publish(*liars({"a_liar": bound}))
    model, inputs = a_model(), torch.ones(2, 3)
    found = bracket(model, inputs)
    assert "bound 'a_liar' changed" in found.refused["a_liar"]
    assert what in found.refused["a_liar"]
    assert known(found) == untouched
    assert torch.equal(inputs, torch.ones(2, 3))


def test_settings_of_the_process_reach_no_other_bound(publish, untouched):
    code = "(torch.set_default_dtype(torch.float64), torch.set_grad_enabled(False)) and None"
    publish(*liars({"a_liar": {"answer": code}}))
    found = bracket(a_model())
    assert known(found) == untouched
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_a_claim_is_not_proved_by_shrunk_weights(publish):
    publish(*liars({"a_liar": {"refuses": f"{SHRINK} and 'no rule'"}}))
    assert audit(a_model(), (3,), claims=0.2).verdict == "refuted"
