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
    # Of twenty samples, with converged vectors and the whole of epsilon.
    data, method = digits(dtype=torch.float64), a_method("gloro", ramp=0.0, **fields)
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    state = method.start(net, data, torch.Generator().manual_seed(0))
    h = {name: torch.tensor(getattr(method, name)).double() for name in ("epsilon", "lambda_")}
    value, state = method.loss(net, batch, {**state, "buffers": {}}, {}, h)
    return value, state, batch


def literal(net, batch, epsilon):
    # Logits with that of ⊥ beside them, sample by sample.
    first, second, last = (layer.weight.detach() for layer in net.layers)
    norms = [torch.linalg.matrix_norm(weight, ord=2) for weight in (first, second)]
    constant = norms[0] * norms[1] / 16  # the slopes of two sigmoids
    rows = []
    for logits in net(batch.inputs):
        j = int(logits.argmax())
        rises = [
            logits[i] + epsilon * constant * (last[j] - last[i]).norm() for i in range(10) if i != j
        ]
        rows.append(torch.stack([*logits, torch.stack(rises).max()]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def net():
    made = a_net(initial(digits(dtype=torch.float64)), (1, 8, 8))
    return made.with_params({name: 3 * value for name, value in made.params.items()})


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_the_first_loss_is_cross_entropy_over_classes_and_bottom(net, epsilon):
    value, _, batch = objective(net, epsilon=epsilon)
    expected = F.cross_entropy(literal(net, batch, epsilon), batch.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 1.5])
def test_the_trades_form_is_a_divergence_from_the_distribution_without_bottom(net, lambda_):
    value, _, batch = objective(net, epsilon=0.2, lambda_=lambda_)
    extended = literal(net, batch, 0.2)
    logits = extended[:, :10]
    divergence = F.kl_div(
        extended.log_softmax(dim=1)[:, :10], logits.softmax(dim=1), reduction="batchmean"
    )
    expected = F.cross_entropy(logits, batch.targets) + lambda_ * divergence
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_at_epsilon_0_the_class_bottom_is_the_runner_up(net):
    """So the loss exceeds cross entropy, to which lambda = 0 leads."""
    value, _, batch = objective(net, epsilon=0.0)
    logits = net(batch.inputs)
    runner_up = logits.topk(2).values[:, 1:]
    expected = F.cross_entropy(torch.cat([logits, runner_up], dim=1), batch.targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)


def test_with_lambda_0_it_is_standard_training_bit_for_bit():
    (ours,) = train(an_entry("gloro", lambda_=0.0, epochs=1))
    (standard,) = train(an_entry("standard", epochs=1))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_margins_are_certified_by_the_core_and_attacks_agree():
    net, outcome = trained("gloro", epsilon=0.3)
    standard, _ = trained("standard")
    assert certified(net, 0.3) > certified(standard, 0.3) + 0.15
    assert certified(net, 0.3) <= attacked(net, 0.3)
    assert accuracy(net, digits().test) > 0.75
    shares = [row["batch_certified"] for row in outcome.history]
    assert shares[0] < shares[-1] <= 1


def test_epsilon_grows_as_its_fields_say():
    state = objective(a_net(initial(digits(dtype=torch.float64)), (1, 8, 8)))[1]
    assert float(state["share"]) == 1.0
    method = a_method("gloro", first=0.1)
    begun = method.start(a_net(initial(digits()), (1, 8, 8)), digits(), torch.Generator())
    assert float(begun["share"]) == pytest.approx(0.1)


@pytest.mark.parametrize("model", [a_model("madry_cnn"), Tiny()], ids=["madry", "tiny"])
def test_convolutions_are_trained(model):
    assert one_step("gloro", model).state == "done"


def test_what_has_no_margins_is_refused():
    assert "regression" in refusal("gloro", nn.Linear(1, 1), regression())
    headless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    assert "must end with a dense layer" in refusal("gloro", headless)
    assert refusal("gloro", initial(digits())) is None


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epsilon", -0.1, "epsilon must be at least 0 and finite, got -0.1"),
        ("epsilon", math.nan, "epsilon must be at least 0 and finite, got nan"),
        ("lambda_", math.inf, "lambda must be at least 0 and finite, got inf"),
        ("ramp", 1.5, r"ramp must be in \[0, 1\], got 1.5"),
        ("first", -1.0, r"first must be in \[0, 1\], got -1.0"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method("gloro", **{field: value})
