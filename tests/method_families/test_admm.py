"""ADMM under LipSDP: what the penalty and the enforced constant share."""

import math
import re

import numpy as np
import pytest
import torch
from support.admm import QUICK, TANH, curve, saved, value
from support.training import a_method, a_model, an_entry, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.lipschitz.semidefinite import conic
from lipbench.lipschitz.semidefinite.dense_layers import Layers
from lipbench.method import Summary
from lipbench.networks.network import as_network

METHODS = ("sdp_penalty", "sdp_enforced")


def by_the_paper(weights, duals, own, r, *, mu=None, constant=None):
    # Its round, in its own letters, by a general solver.
    cvxpy = pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    (w0, w1), (y0, y1), t = weights, duals, np.diag(own)
    one, other = cvxpy.Variable(w0.shape), cvxpy.Variable(w1.shape)
    rho = cvxpy.Variable() if constant is None else constant**2
    inputs, outputs = w0.shape[1], len(w1)
    matrix = cvxpy.bmat(
        [
            [-rho * np.eye(inputs), one.T @ t, np.zeros((inputs, outputs))],
            [t @ one, -2 * t, other.T],
            [np.zeros((outputs, inputs)), other, -np.eye(outputs)],
        ]
    )
    far = r / 2 * (cvxpy.sum_squares(w0 - one) + cvxpy.sum_squares(w1 - other))
    far = far + cvxpy.trace(y0.T @ (w0 - one)) + cvxpy.trace(y1.T @ (w1 - other))
    cost = far if mu is None else far + mu * rho
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [matrix << 0])
    problem.solve(solver=cvxpy.CLARABEL)
    return one.value, other.value


@pytest.mark.parametrize("name", METHODS)
def test_training_is_the_algorithm_of_the_paper(name):
    """A plain loop: full-batch steps on the augmented Lagrangian, its program, the dual step."""
    data, r = curve(dtype=torch.float64), 1.5
    module = initial(data, model=TANH)
    first, last = module[1], module[3]
    layers = Layers.of(as_network(module, (1,)))
    (own,), square = layers.best()
    # Enforced: the constant of the network that they begin with, so that T stays what it is.
    fields = {"mu": 0.05} if name == "sdp_penalty" else {"constant": math.sqrt(square)}
    bars = [layer.weight.detach().clone() for layer in (first, last)]
    duals = [torch.zeros_like(bar) for bar in bars]
    theirs = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        out = module(data.train.inputs)
        loss = F.mse_loss(out, data.train.targets)
        for layer, bar, dual in zip((first, last), bars, duals, strict=True):
            gap = layer.weight - bar
            loss = loss + r / 2 * gap.square().sum() + torch.trace(dual.T @ gap)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        weights = [layer.weight.detach() for layer in (first, last)]
        arrays = [[part.numpy() for part in parts] for parts in (weights, duals)]
        found = by_the_paper(*arrays, own.numpy(), r, **fields)
        bars = [torch.as_tensor(part) for part in found]
        steps = zip(duals, weights, bars, strict=True)
        duals = [dual + r * (weight - bar) for dual, weight, bar in steps]
    entry = an_entry(
        name, epochs=4, lr=0.1, batch_size=20, dtype="float64", r=r, warm_start=0.0,
        tolerance=1e-9, **fields,
    )  # fmt: skip
    (outcome,) = train(entry, data, model=TANH)
    params = outcome.checkpoints["last"].params
    for key, bar in zip(("1.weight", "3.weight"), bars, strict=True):
        torch.testing.assert_close(params[key], bar, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(params["1.bias"], first.bias.detach(), rtol=1e-3, atol=1e-3)
    assert outcome.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)


def test_the_warm_start_decays_weights():
    data, model = digits(train=64), a_model(widths=(8,))
    sizes = []
    for decay in (0.0, 0.1):
        entry = an_entry("sdp_penalty", mu=0.0, warm_start=1.0, weight_decay=decay, lr=0.1)
        (outcome,) = train(entry, data, model=model)
        params = outcome.checkpoints["last"].params.values()
        sizes.append(sum(float(part.square().sum()) for part in params))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("rounds", "epochs", "warm", "expected"),
    [
        (2, 10, 0.0, [1, 5, 10]),
        (100, 4, 0.0, [1, 2, 3, 4]),
        (1, 10, 0.3, [1, 3, 10]),
        (3, 7, 1.0, [1, 3, 5, 7]),
    ],
)
def test_rounds_are_spread_over_the_epochs(rounds, epochs, warm, expected):
    """Besides after the first epoch and where the warm start ends; the last one is after all."""
    method = a_method("sdp_penalty", rounds=rounds, warm_start=warm)
    numbers = {"epochs": epochs, "loss": 0.0, "train_accuracy": 0.0}
    due = [e for e in range(1, epochs + 1) if method._is_due(Summary(epoch=e, **numbers))]
    assert due == expected


def test_fresh_multipliers_never_lose_what_is_proved():
    """The copy of a round obeys the inequality of its new multipliers as well."""
    data, model = digits(train=64, classes=(3, 8)), a_model(widths=(4,))
    ends = []
    for refresh in (False, True):
        entry = an_entry(
            "sdp_enforced", constant=0.1, epochs=6, rounds=6, warm_start=0.0, refresh=refresh,
            **QUICK,
        )  # fmt: skip
        (outcome,) = train(entry, data, model=model)
        assert value("lipsdp_neuron", saved(outcome.checkpoints["last"].params, data, model)) <= 0.1
        ends.append(outcome.history[-1]["loss"])
    assert ends[1] < ends[0]


@pytest.mark.parametrize("fields", [{"name": "sdp_penalty", "mu": 0.05}, {"name": "sdp_enforced"}])
def test_the_general_solver_trains_the_same_network(fields):
    pytest.importorskip("cvxpy", reason="the extra sdp is not installed")
    data = curve()
    options = {"epochs": 3, "rounds": 3, "optimizer": QUICK["optimizer"], "tolerance": 1e-7}
    found = []
    for solver in ("barrier", "clarabel"):
        entry = an_entry(**fields, solver=solver, warm_start=0.0, **options)
        (outcome,) = train(entry, data, model=TANH)
        found.append(outcome.checkpoints["last"].params)
    for key, own in found[0].items():
        torch.testing.assert_close(own, found[1][key], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (a_model("madry_cnn"), "is trained, too, and is no dense layer|two dense layers"),
        (a_model(widths=()), "two dense layers or more"),
        (a_model(widths=(200,)), "a round has 14800 weights between layers, more than the 10000"),
    ],
)
def test_networks_beyond_its_reach_are_refused(name, model, reason):
    method = a_method(name)
    data = digits()
    module = model.build((1, 8, 8), 10, torch.Generator())

    assert re.search(reason, method.refuses(module, data))
    assert method.refuses(initial(data), data) is None


def test_a_layer_in_two_places_is_refused():
    twice = nn.Linear(4, 4)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), twice, nn.ReLU(), twice)
    assert "stands in two places" in a_method("sdp_penalty").refuses(module, digits())


def test_batch_normalisation_is_refused():
    module = nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(64, affine=False),
        nn.Linear(64, 4),
        nn.ReLU(),
        nn.Linear(4, 10),
    )
    assert "batch normalisation" in a_method("sdp_penalty").refuses(module, digits())


def test_a_solver_that_is_not_installed_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(conic, "find_spec", lambda name: None)
    reason = a_method("sdp_penalty", solver="clarabel").refuses(initial(digits()), digits())
    assert 'pip install "lipbench[sdp]"' in reason


@pytest.mark.parametrize(
    ("name", "field", "bad", "reason"),
    [
        ("sdp_penalty", "r", 0.0, "positive and finite"),
        ("sdp_penalty", "tolerance", math.nan, "positive and finite"),
        ("sdp_penalty", "rounds", 0, "at least 1"),
        ("sdp_penalty", "most_weights", 0, "at least 1"),
        ("sdp_enforced", "warm_start", 1.5, r"in \[0, 1\]"),
        ("sdp_enforced", "weight_decay", -0.1, "at least 0"),
    ],
)
def test_fields_that_are_out_of_range_are_refused(name, field, bad, reason):
    with pytest.raises(ValueError, match=f"{field} must .*{reason}"):
        a_method(name, **{field: bad})


def test_a_run_that_diverges_ends_without_a_network():
    entry = an_entry("sdp_enforced", lr=1e20, epochs=2, tolerance=1e-2, rounds=1)
    (outcome,) = train(entry, curve(), model=TANH)
    assert outcome.state == "nan"
