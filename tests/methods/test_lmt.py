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
from torch.nn import functional as F

from lipbench.data.splits import Batch


def objective(net, **fields):
    # Of twenty samples, with converged vectors and the whole of c.
    data, method = digits(dtype=torch.float64), a_method("lmt", ramp=0.0, **fields)
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    state = method.start(net, data, torch.Generator().manual_seed(0))
    h = {"c": torch.tensor(method.c).double()}

    def value(params):
        now = net.with_params(params)
        return method.loss(now, batch, {**state, "buffers": {}}, {}, h)[0]

    slopes, found = torch.func.grad_and_value(value)(net.params)
    return found, slopes, batch


def literal(params, net, batch, c, form, limited=False):
    # Sample by sample, as the paper and, for the limit, the authors' code.
    first, second, last = (params[layer.weight_name] for layer in net.layers)
    norms = [torch.linalg.matrix_norm(weight, ord=2) for weight in (first, second, last)]
    before = norms[0] * norms[1] / 16  # the slopes of two sigmoids
    losses = []
    for logits, y in zip(net.with_params(params)(batch.inputs), batch.targets, strict=True):
        rises = []
        for j in range(10):
            if j == y:
                rises.append(logits.new_zeros(()))
            elif form == "rows":
                rises.append(c * before * (last[j] - last[y]).norm())
            else:
                rises.append(math.sqrt(2) * c * before * norms[2])
        share = 1.0
        if limited:
            for j in range(10):
                lead = (logits[y] - logits[j]).item()
                if j != y:
                    share = min(share, max(0.0, lead / rises[j].item()))
        raised = logits + share * torch.stack(rises)
        losses.append(F.cross_entropy(raised.unsqueeze(0), y.unsqueeze(0)))
    return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def net():
    # Wide enough apart that some samples have a margin and others none.
    made = a_net(initial(digits(dtype=torch.float64)), (1, 8, 8))
    return made.with_params({name: 3 * value for name, value in made.params.items()})


@pytest.mark.parametrize("form", ["rows", "network"])
@pytest.mark.parametrize("limited", [False, True])
def test_objective_and_slope_are_those_of_the_paper(net, form, limited):
    value, slopes, batch = objective(net, c=0.002, form=form, limited=limited)
    right = net(batch.inputs).argmax(dim=1) == batch.targets
    assert 0 < int(right.sum()) < len(right)
    params = {name: value.detach().requires_grad_() for name, value in net.params.items()}
    expected = literal(params, net, batch, 0.002, form, limited)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-6)
    names = list(params)
    theirs = torch.autograd.grad(expected, [params[name] for name in names])
    for name, slope in zip(names, theirs, strict=True):
        torch.testing.assert_close(slopes[name], slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["rows", "network"])
def test_with_c_0_it_is_standard_training_bit_for_bit(form):
    (ours,) = train(an_entry("lmt", c=0.0, form=form, epochs=1))
    (standard,) = train(an_entry("standard", epochs=1))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_margins_are_certified_by_the_core_and_attacks_agree():
    net, outcome = trained("lmt", c=0.3)
    standard, _ = trained("standard")
    assert certified(net, 0.3) > certified(standard, 0.3) + 0.15
    assert certified(net, 0.3) <= attacked(net, 0.3)
    assert accuracy(net, digits().test) > 0.75
    assert outcome.history[-1]["batch_certified"] > 0.5


def test_c_grows_as_its_fields_say():
    net = a_net(initial(digits()), (1, 8, 8))
    for fields, share in (({"ramp": 0.5, "first": 0.1}, 0.1), ({"ramp": 0.0}, 1.0)):
        state = a_method("lmt", **fields).start(net, digits(), torch.Generator())
        assert float(state["share"]) == pytest.approx(share)


@pytest.mark.parametrize("model", [a_model("madry_cnn"), Tiny()], ids=["madry", "tiny"])
def test_convolutions_are_trained(model):
    assert one_step("lmt", model).state == "done"


def test_what_has_no_margins_is_refused():
    assert "regression" in refusal("lmt", nn.Linear(1, 1), regression())
    headless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    assert "must end with a dense layer" in refusal("lmt", headless)
    assert refusal("lmt", initial(digits())) is None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("c", -0.1, "c must be at least 0 and finite, got -0.1"),
        ("c", math.nan, "c must be at least 0 and finite, got nan"),
        ("ramp", 1.5, r"ramp must be in \[0, 1\], got 1.5"),
        ("first", -1.0, r"first must be in \[0, 1\], got -1.0"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method("lmt", **{field: value})
