import math
from itertools import pairwise

import pytest
import torch
from support.training import a_method, a_model, a_net, an_entry, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.data.splits import Batch
from lipbench.layers.splines import variation_norms
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.training.optimiser import Optimizer

RELU = a_model(widths=(12,), activation="relu")
SHAPE = (1, 8, 8)


def built(model=RELU, **fields):
    module = a_method("lipschitz_activation", **fields).build(
        initial(digits(), model=model), SHAPE, torch.Generator()
    )
    return a_net(module, SHAPE)


def test_the_network_starts_as_the_one_it_was():
    inputs = digits().test.inputs[:50]
    torch.testing.assert_close(
        built()(inputs), initial(digits(), model=RELU)(inputs), rtol=1e-4, atol=1e-5
    )


def test_the_objective_is_that_of_the_paper():
    net, data = built(knots=5, reach=2.0), digits()
    rng = torch.Generator().manual_seed(0)
    net = net.with_params({n: torch.randn(v.shape, generator=rng) for n, v in net.params.items()})
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    h = {"lambda_": torch.tensor(0.3), "mu": torch.tensor(0.2)}
    found, _ = a_method("lipschitz_activation").loss(net, batch, {}, {}, h)
    expected = float(F.cross_entropy(net(batch.inputs), batch.targets))
    for heights in net.params["2.heights"].tolist():
        # Knots -2, -1, 0, 1, 2: slopes are differences, and φ(0) and φ(1) are heights.
        slopes = [b - a for a, b in pairwise(heights)]
        bends = sum(abs(b - a) for a, b in pairwise(slopes))
        expected += 0.3 * (bends + abs(heights[2]) + abs(heights[3]))
    for name in ("1.weight", "3.weight"):
        expected += 0.2 / 2 * float(net.params[name].square().sum())
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def trained():
    outcomes = {}
    for weight in (0.0, 0.01, 0.1):
        fields = {"lambda_": weight, "knots": 9, "epochs": 5, "batch_size": 64}
        entry = an_entry(
            "lipschitz_activation", optimizer=Optimizer(name="adam", lr=0.03), **fields
        )
        (outcomes[weight],) = train(entry, model=RELU)
    return outcomes


def test_more_lambda_leaves_smaller_norms_and_slopes(trained):
    knots, norms = torch.linspace(-4, 4, 9), []
    for outcome in trained.values():
        heights = outcome.checkpoints["last"].params["2.heights"]
        norms.append(float(variation_norms(heights, knots).sum()))
    assert norms[0] > norms[1] > norms[2]
    steepest = [outcome.history[-1]["steepest"] for outcome in trained.values()]
    assert steepest[0] > steepest[1] > steepest[2]


def test_a_larger_mu_leaves_smaller_weights():
    """And with them a smaller constant: it is what a target accuracy drives."""
    squares = []
    for mu in (0.0, 0.1):
        fields = {"mu": mu, "knots": 5, "epochs": 5, "batch_size": 64, "lr": 0.1}
        (outcome,) = train(an_entry("lipschitz_activation", **fields), model=RELU)
        params = outcome.checkpoints["last"].params
        squares.append([float(params[f"{n}.weight"].square().sum()) for n in (1, 3)])
    assert squares[0] > squares[1]
    assert squares[0][1] > squares[1][1]


def test_activations_learn_and_their_slopes_are_in_the_bound(trained):
    net = built(knots=9)
    before, last = net.params["2.heights"], trained[0.0].checkpoints["last"]
    assert (last.params["2.heights"] != before).any(dim=1).all()
    net = net.with_params(last.params)
    network = as_network(net.module(), SHAPE)
    product = load("lipbench.bounds", "product", Bound)().compute(network, Norm(2), None)
    norms = [torch.linalg.matrix_norm(layer.weight, ord=2) for layer in network.layers]
    steepest = trained[0.0].history[-1]["steepest"]
    assert product.value == pytest.approx(float(norms[0] * norms[1]) * steepest, rel=1e-5)


def test_networks_without_an_activation_are_refused():
    method = a_method("lipschitz_activation")
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert "no activation layer" in method.refuses(bare, digits())
    assert method.refuses(initial(digits()), digits()) is None


def test_a_layer_in_two_places_of_other_widths_is_refused_with_the_way_out():
    one = nn.ReLU()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 5), one, nn.Linear(5, 4), one, nn.Linear(4, 10)
    )
    reason = a_method("lipschitz_activation").refuses(model, digits())
    assert "where there are 5 and where there are 4 channels: set shared" in reason
    assert a_method("lipschitz_activation", shared=True).refuses(model, digits()) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lambda_", -0.1, r"lambda must be at least 0, got -0\.1"),
        ("mu", math.nan, "mu must be at least 0, got nan"),
        ("knots", 4, "knots must be odd and at least 3, got 4"),
        ("knots", 1, "knots must be odd and at least 3, got 1"),
        ("reach", 0.0, r"reach must be positive and finite, got 0\.0"),
        ("reach", math.inf, "reach must be positive and finite, got inf"),
    ],
)
def test_a_number_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        a_method("lipschitz_activation", **{field: value})
