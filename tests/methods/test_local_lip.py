import math

import pytest
import torch
from support.certifying import (
    SHALLOW,
    accuracy,
    attacked,
    certified,
    one_step,
    refusal,
    regression,
    trained,
)
from support.training import a_method, a_model, a_net, digits, initial
from torch import nn
from torch.nn import functional as F

from lipbench.data.splits import Batch
from lipbench.method_families import differentiable_constant, differentiable_local_constant


def objective(net, **fields):
    # Of twenty samples at places of their own, with the whole of epsilon.
    data, method = digits(dtype=torch.float64), a_method("local_lip", ramp=0.0, **fields)
    index = torch.arange(40, 60)
    batch = Batch(data.train.inputs[index], data.train.targets[index], index=index)
    state = method.start(net, data, torch.Generator().manual_seed(0))
    wide = {"dtype": torch.float64}
    h = {name: torch.tensor(getattr(method, name), **wide) for name in ("epsilon", "kappa")}
    trunk, last = differentiable_constant.split(net.steps)
    own = {name: state[name][index] for name in state if name.startswith("local")}
    near, _ = differentiable_local_constant.local_constant(
        trunk, batch.inputs, method.epsilon, own, method.iterations
    )
    value, state = method.loss(net, batch, {**state, "buffers": {}}, {}, h)
    return value, state, batch, near, last


@pytest.fixture(scope="module")
def net():
    # Trained, so that some samples are certified.
    found, _ = trained("standard")
    return a_net(found.module().double(), (1, 8, 8))


def test_the_first_form_is_cross_entropy_over_classes_and_bottom(net):
    value, state, batch, near, last = objective(net, epsilon=0.1, iterations=20)
    logits = net(batch.inputs)
    predicted = logits.argmax(dim=1)
    risen = logits + near.rises(last, predicted)
    losses, safe = [], []
    for z, others, j, y in zip(logits, risen, predicted, batch.targets, strict=True):
        bottom = max(float(others[i]) for i in range(10) if i != j)
        extended = torch.cat([z, z.new_tensor([bottom])])
        losses.append(F.cross_entropy(extended.unsqueeze(0), y.unsqueeze(0)))
        safe.append(bool(j == y) and bottom < float(z[y]))
    assert float(value) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)
    assert 0 < sum(safe) < 20
    assert (float(state["passed"]), float(state["seen"])) == (sum(safe), 20)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_the_second_form_mixes_cross_entropies(net, kappa):
    value, state, batch, near, last = objective(
        net, epsilon=0.1, kappa=kappa, form="worst", iterations=20
    )
    logits = net(batch.inputs)
    risen = logits + near.rises(last, batch.targets)
    plain, worst = (F.cross_entropy(z, batch.targets) for z in (logits, risen))
    assert float(value) == pytest.approx(float(kappa * plain + (1 - kappa) * worst), rel=1e-9)
    certified = risen.argmax(dim=1) == batch.targets
    assert float(state["passed"]) == pytest.approx(float(certified.sum()), abs=1)


def test_at_epsilon_0_no_logit_rises(net):
    value, *_, batch, near, last = objective(net, epsilon=0.0, form="worst")
    assert float(near.rises(last, batch.targets).abs().max()) == 0
    expected = F.cross_entropy(net(batch.inputs), batch.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)


def test_only_the_vectors_of_the_batch_move(net):
    state = objective(net)[1]
    before = a_method("local_lip").start(net, digits(), torch.Generator().manual_seed(0))
    for name in before:
        if name.startswith("local"):
            same = (state[name] == before[name].double()).flatten(1).all(dim=1)
            assert not bool(same[40:60].any())
            assert bool(same[:40].all())
            assert bool(same[60:].all())


def test_logits_rise_less_than_by_the_global_constant(net):
    _, _, batch, near, last = objective(net, epsilon=0.1, iterations=50)
    vectors = differentiable_constant.start(net.steps, torch.Generator().manual_seed(0))
    gaps, _ = differentiable_constant.gaps(net.steps, vectors, 100)
    everywhere = 0.1 * gaps[batch.targets]
    ours = near.rises(last, batch.targets)
    assert bool((ours <= everywhere * (1 + 1e-3)).all())
    assert float(ours.sum()) < 0.95 * float(everywhere.sum())


def test_training_makes_networks_more_robust():
    net, outcome = trained("local_lip", epsilon=0.3)
    standard, _ = trained("standard")
    assert certified(net, 0.2) > certified(standard, 0.2)
    assert certified(net, 0.3) <= attacked(net, 0.3)
    assert attacked(net, 0.3) > attacked(standard, 0.3)
    assert accuracy(net, digits().test) > 0.75
    assert outcome.history[-1]["batch_certified"] > 0.6


@pytest.mark.parametrize("form", ["bottom", "worst"])
def test_convolutions_are_trained(form):
    assert one_step("local_lip", a_model("madry_cnn"), form=form).state == "done"


def test_what_has_no_local_margins_is_refused():
    assert "regression" in refusal("local_lip", nn.Linear(1, 1), regression())
    headless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    assert "must end with a dense layer" in refusal("local_lip", headless)
    normed = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)
    )
    assert "step '2' (Scale) has a rule only" in refusal("local_lip", normed)
    module = initial(digits(), model=SHALLOW)
    assert refusal("local_lip", module) is None
    found = refusal("local_lip", module, largest=2000)
    assert "128 samples are 2048 numbers, more than largest = 2000" in found


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epsilon", -0.1, "epsilon must be at least 0 and finite, got -0.1"),
        ("epsilon", math.inf, "epsilon must be at least 0 and finite, got inf"),
        ("kappa", 1.5, r"kappa must be in \[0, 1\], got 1.5"),
        ("ramp", math.nan, r"ramp must be in \[0, 1\], got nan"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
        ("largest", 0, "largest must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method("local_lip", **{field: value})
