import math

import pytest
import torch
from support.objectives import (
    SETTINGS,
    a_batch,
    a_dense_net,
    assert_is,
    is_standard,
    setting,
    step,
    trained,
)
from support.training import a_method, a_net, digits
from torch import nn
from torch.nn import functional as F

from lipbench.data.folder import folder
from lipbench.data.splits import Batch, split
from lipbench.dataset import Dataset
from lipbench.registry import load
from lipbench.seeds import stream


def apart(one, other, distance):
    if distance == "euclidean":
        return (one - other).norm(dim=1)
    log_p, log_q = one.log_softmax(dim=1), other.log_softmax(dim=1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)


def offsets(method, net, batch):
    # The author's code, sample by sample: normalise, look xi far, differentiate, normalise.
    draw, found = method.draw(batch, stream(1, "method")), []
    for x, start, share in zip(batch.inputs, draw["start"], draw["share"], strict=True):
        d = start / start.norm()
        for _ in range(method.ip):
            d = d.clone().requires_grad_()
            looked = (x + method.xi * d).clamp(0, 1)
            rise = apart(net(x[None]), net(looked[None]), method.distance).sum()
            (d,) = torch.autograd.grad(rise, d)
            d = d / d.norm()
        found.append((method.least + (method.most - method.least) * share) * d)
    return torch.stack(found)


@pytest.mark.parametrize(("distance", "power"), [("euclidean", 1), ("divergence", 2)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_penalty_is_the_mean_excess_of_the_quotients_at_the_attacked_points(
    kind, distance, power
):
    """K lies between the quotients, so that some samples count and some do not."""
    net, batch = setting(kind)
    options = {"distance": distance, "power": power, "lambda_": 0.3, "ip": 2, "xi": 0.7}
    r = offsets(a_method("alr", **options), net, batch)

    def quotient(now):
        moved = apart(now(batch.inputs), now(batch.inputs + r), distance)
        return moved / r.flatten(1).norm(dim=1)

    bound = float(quotient(net).quantile(0.55))
    method = a_method("alr", bound=bound, **options)
    assert_is(
        step(method, net, batch),
        lambda now: 0.3 * (quotient(now) - bound).clamp(min=0).pow(power).mean(),
        net,
        rtol=1e-7,
        atol=1e-10,
    )


def test_the_direction_is_one_along_which_outputs_move_more():
    """Than a random one, at almost every sample: the quotient is what the penalty of K = 0 is."""
    net, batch = a_dense_net(), a_batch(40)
    options = {"bound": 0.0, "lambda_": 1.0, "least": 1.0, "most": 1.0}
    values = [
        float(step(a_method("alr", ip=ip, xi=1.0, **options), net, batch)[0]) for ip in (0, 1, 5)
    ]
    assert values[0] * 1.5 < values[1] <= values[2] * 1.01


def test_of_a_linear_map_power_iteration_finds_the_norm():
    net = a_net(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), (1, 8, 8))
    batch = Batch(torch.full((4, 1, 8, 8), 0.5).double(), torch.zeros(4, dtype=torch.int64))
    method = a_method("alr", ip=60, xi=0.1, bound=0.0, lambda_=1.0)
    norm = torch.linalg.matrix_norm(net.params["1.weight"], 2)
    torch.testing.assert_close(step(method, net, batch)[0], norm, rtol=1e-3, atol=0)


def test_lengths_are_uniform_and_starts_never_the_same():
    method, batch, rng = a_method("alr"), a_batch(40), stream(0, "method")
    draws = [method.draw(batch, rng) for _ in range(20)]
    shares = torch.cat([draw["share"] for draw in draws])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.03)
    assert (float(shares.min()) < 0.02, float(shares.max()) > 0.98) == (True, True)
    starts = torch.cat([draw["start"] for draw in draws])
    assert len(starts.flatten(1).unique(dim=0)) == 800
    assert float(starts.abs().max()) <= 0.5


def test_a_network_that_does_not_move_is_not_penalised():
    """The random direction is kept, and no number is lost."""
    net = a_dense_net()
    flat = net.with_params({name: torch.zeros_like(value) for name, value in net.params.items()})
    value, slope, _ = step(a_method("alr", bound=0.0), flat, a_batch())
    assert float(value) == 0
    assert all(torch.equal(each, torch.zeros_like(each)) for each in slope.values())


@pytest.mark.parametrize("distance", ["euclidean", "divergence"])
def test_beyond_all_quotients_the_penalty_is_0_and_else_never_less(distance):
    net, batch = a_dense_net(), a_batch()
    for bound in (0.0, 0.1, 1.0):
        method = a_method("alr", distance=distance, bound=bound)
        assert float(step(method, net, batch)[0]) >= 0
    assert float(step(a_method("alr", distance=distance, bound=math.inf), net, batch)[0]) == 0


@pytest.mark.parametrize("fields", [{"lambda_": 0.0}, {"bound": math.inf}])
def test_without_a_penalty_it_is_standard_training_bit_for_bit(fields):
    assert is_standard("alr", **fields)


def test_a_larger_lambda_leaves_smaller_quotients():
    nets = trained("alr", "lambda_", (0.0, 0.1, 1.0))
    watching = a_method("alr", lambda_=1.0, bound=0.0)
    sizes = [float(step(watching, net, a_batch())[0]) for net in nets]
    assert sizes[0] > 1.3 * sizes[1] > 1.3**2 * sizes[2]


def test_the_meter_counts_the_passes_of_the_attack():
    """20 samples: the loss; x, and each point looked at, with a slope; x and x + r."""
    net, batch = a_dense_net(), a_batch()
    step(a_method("alr", ip=3), net, batch)
    assert net.meter.forwards - 20 == 20 + 20 + 3 * 20 + 40
    assert net.meter.gradients - 20 == 20 + 3 * 20 + 40


def test_a_divergence_needs_classes():
    dataset = load("lipbench.datasets", "half_max_abs", Dataset)()
    data = split(dataset, dataset.read(folder()))
    module = nn.Linear(1, 1)
    assert "distance = 'euclidean'" in a_method("alr", distance="divergence").refuses(module, data)
    assert a_method("alr").refuses(module, data) is None
    assert a_method("alr", distance="divergence").refuses(module, digits()) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda_": -1.0}, r"lambda must be at least 0, got -1\.0"),
        ({"bound": math.nan}, "bound must be at least 0, got nan"),
        ({"least": 0.0}, r"least must be positive, got 0\.0"),
        ({"xi": -1.0}, r"xi must be positive, got -1\.0"),
        ({"most": 0.01}, r"most must be at least least = 0\.05, got 0\.01"),
        ({"ip": -1}, "ip must be at least 0, got -1"),
    ],
)
def test_a_number_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        a_method("alr", **fields)
