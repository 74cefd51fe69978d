import math

import pytest
import torch
from support.certifying import QUICK, Tiny, accuracy, one_step, refusal, regression, trained
from support.matrices import matrix_norm, matrix_of
from support.training import a_method, a_model, a_net, an_entry, digits, initial, same
from torch import nn
from torch.nn.utils import parametrizations

from lipbench.bound import Bound
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.networks.net import Net
from lipbench.networks.network import as_network
from lipbench.networks.steps import Linear, Scale
from lipbench.networks.trees import take
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Trial

NORMS = (Norm(1), Norm(2), Norm(math.inf))
MADRY = a_model("madry_cnn")
TINY = Tiny()
each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)


def scalars(method):
    return {name: torch.tensor(getattr(method, name)).double() for name in ("lambda_", "lambda_bn")}


def projected(net, **fields):
    method = a_method("lcc", **fields)
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    return method.project(net, state, scalars(method))[0]


def product(net, norm):
    network = as_network(net.module(), net.skeleton.input_shape)
    return load("lipbench.bounds", "product", Bound)().compute(network, norm, None).value


@pytest.fixture(scope="module")
def normed():
    # A strided convolution and a batch normalisation whose statistics are not 0 and 1.
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(48, 10)),
    ).double()
    module[1].running_var.uniform_(0.1, 0.5)
    module[1].weight.data.uniform_(-2, 2)
    return a_net(module, (1, 8, 8))


@each_norm
@pytest.mark.parametrize("lambda_", [0.5, 100.0])
def test_a_projection_is_that_of_the_paper(normed, norm, lambda_):
    """W / max(1, ‖W‖ / lambda), of the whole operator as a matrix; gamma by its own rule."""
    found = projected(normed, norm=norm, lambda_=lambda_, lambda_bn=lambda_, iterations=100)
    for layer in normed.layers:
        size = matrix_norm(matrix_of(layer.apply, layer.input_shape), norm)
        expected = layer.weight / max(1, size / lambda_)
        slack = 5e-3 if norm == 2 else 1e-9
        torch.testing.assert_close(found[layer.weight_name], expected, rtol=slack, atol=1e-9)
    gamma, variance = normed.params["1.weight"], normed.buffers["1.running_var"]
    excess = float((gamma.abs() / (variance + 1e-5).sqrt()).max()) / lambda_
    torch.testing.assert_close(found["1.weight"], gamma / max(1, excess), rtol=1e-9, atol=0)
    assert same({"b": found["1.bias"]}, {"b": normed.params["1.bias"]})


@each_norm
def test_all_layers_keep_their_norms_after_every_epoch_and_when_saved(norm):
    """In l2 two steps of power iteration lag behind; saved is what the core has certified.

    The lag is that of the steps: at ten times this learning rate norms exceed the limit by 10 %.
    """
    lag = 1e-3 if norm == 2 else 1e-6
    options = {**QUICK, "epochs": 3, "optimizer": Optimizer(name="adam", lr=0.002)}
    entry = an_entry("lcc", norm=norm, lambda_=1.0, lambda_bn=0.8, dtype="float64", **options)
    trainer = Trainer([Trial(entry=entry, seed=0)], TINY, digits(dtype=torch.float64))
    largest = []

    def check(net, slack):
        for step in net.steps.steps:
            if isinstance(step, Linear):
                size = matrix_norm(matrix_of(step.apply, step.input_shape), norm)
                assert size <= 1 + slack
                largest.append(size)
            elif isinstance(step, Scale):
                assert float(step.factor.abs().max()) <= 0.8 * (1 + 1e-9)

    def after_epoch(progress):
        (net,) = trainer.ensemble.nets(progress)
        check(net, lag)
        measured = entry.method.effective(net, take(progress.state, 0), scalars(entry.method))
        check(net.with_params(measured), lag)

    (outcome,) = trainer.run(trainer.begin(), after_epoch)
    assert max(largest) > 0.95
    last = outcome.checkpoints["last"]
    check(Net(trainer.ensemble.skeleton, last.params, last.buffers), 1e-9)


@each_norm
@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (TINY, [("lambda_", 2), ("lambda_bn", 1)]),
        (a_model(widths=(8, 8), normalisation=(0.5, 0.25)), [("lambda_", 3)]),
    ],
    ids=["tiny", "dense"],
)
def test_the_claim_is_proved_by_the_product_bound(model, steps, norm):
    fields = {"lambda_": 0.7, "lambda_bn": 0.6, "norm": norm}
    net, _ = trained("lcc", model, epochs=1, **fields)
    method = a_method("lcc", **fields)
    claim = method.claims(net)
    expected = math.prod(fields[field] ** count for field, count in steps)
    free = [s for s in net.steps.steps if not isinstance(s, Linear) and _is_free(s)]
    expected *= math.prod(constant(step, norm) for step in free)
    assert claim.constant == pytest.approx(expected)
    assert (claim.norm, claim.domain) == (norm, None)
    assert product(net, norm) <= claim.constant * (1 + claim.tolerance)
    assert product(net, norm) >= 0.2 * claim.constant


def _is_free(step):
    return not (isinstance(step, Scale) and step.weight_name)


@each_norm
def test_without_limits_it_is_standard_training_bit_for_bit(norm):
    fields = {"lambda_": math.inf, "lambda_bn": math.inf, "norm": norm}
    ours, _ = trained("lcc", TINY, epochs=1, **fields)
    standard, _ = trained("standard", TINY, epochs=1)
    assert same(ours.params, standard.params)
    assert same(ours.buffers, standard.buffers)
    assert a_method("lcc", **fields).claims(ours) is None


def test_a_limit_makes_the_constant_small_and_lets_the_network_learn():
    net, _ = trained("lcc", lambda_=3.0)
    standard, _ = trained("standard")
    assert product(net, Norm(2)) < 0.7 * product(standard, Norm(2))
    assert accuracy(net, digits().train) > 0.8


def test_a_layer_that_is_used_twice_is_scaled_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.last(torch.relu(self.inner(torch.relu(self.inner(x)))))

    net = a_net(Twice(), (4,))
    found = projected(net, lambda_=0.1, iterations=50)
    assert matrix_norm(found["inner.weight"], 2) == pytest.approx(0.1, rel=1e-3)


def test_convolutions_of_a_known_network_are_trained_and_proved():
    outcome = one_step("lcc", MADRY, lambda_=2.0)
    net = a_net(initial(digits(), model=MADRY), (1, 8, 8))
    net = net.with_params(outcome.checkpoints["last"].params)
    claim = a_method("lcc", lambda_=2.0).claims(net)
    assert claim.constant == pytest.approx(16)
    assert product(net, Norm(2)) <= 16 * (1 + claim.tolerance)


def test_regression_is_trained_and_weights_that_are_made_of_others_are_refused():
    data = regression()
    assert refusal("lcc", nn.Linear(1, 1), data) is None
    module = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10)))
    assert "weight of layer '1' is made of others" in refusal("lcc", module)
    assert "Softmin" in refusal("lcc", nn.Sequential(nn.Flatten(), nn.Softmin(1)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("lambda_", 0.0, "lambda must be positive, got 0.0"),
        ("lambda_bn", math.nan, "lambda_bn must be positive, got nan"),
        ("iterations", 0, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        a_method("lcc", **{field: value})
