import copy
import math
import re

import pytest
import torch
from support.training import a_method, a_model, a_net, an_entry, batches, digits, initial, train
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.data.splits import Batch
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

DENSE = a_model(widths=(16, 16), activation="sigmoid")
MAXIMUM = Norm(math.inf)


def built(model=DENSE, **fields):
    return a_method("lipmlp", **fields).build(
        initial(digits(), model=model), (1, 8, 8), torch.Generator()
    )


def finished(model=DENSE, **options):
    # The last network as it is saved.
    (outcome,) = train(an_entry("lipmlp", **{"epochs": 2, **options}), model=model)
    return a_net(built(model), (1, 8, 8)).with_params(outcome.checkpoints["last"].params)


def product(net):
    network = as_network(net.module(), (1, 8, 8))
    return load("lipbench.bounds", "product", Bound)().compute(network, MAXIMUM, None).value


def test_c_starts_as_the_largest_absolute_row_sum():
    for layer in built():
        if isinstance(layer, nn.Linear):
            largest = max(float(row.detach().abs().sum()) for row in layer.weight)
            assert float(layer.c.detach()) == pytest.approx(largest, rel=1e-6)


def test_training_is_a_plain_loop_of_the_papers_formulas():
    """The naive twin, with c so small at first that some rows are cut and others not."""
    data = digits(dtype=torch.float64)
    net = built().double()
    with torch.no_grad():
        net[1].c.sub_(0.5)
    start = copy.deepcopy(net)
    theirs = torch.optim.SGD(net.parameters(), lr=0.5)
    for inputs, targets in batches(data, 32, epochs=1):
        x, penalty = inputs.flatten(1), 1.0
        for number, layer in enumerate((net[1], net[3], net[5])):
            limit = F.softplus(layer.c)
            sums = layer.weight.abs().sum(dim=1)
            assert number or int((sums > limit).sum()) > 0
            used = layer.weight * torch.clamp(limit / sums, max=1).unsqueeze(1)
            x = F.linear(x if not number else x.sigmoid(), used, layer.bias)
            penalty = penalty * limit
        theirs.zero_grad()
        (F.cross_entropy(x, targets) + 0.01 * penalty).backward()
        theirs.step()
    method, moved = a_method("lipmlp", alpha=0.01), a_net(start, (1, 8, 8))
    h = {"alpha": torch.tensor(0.01, dtype=torch.float64)}
    for inputs, targets in batches(data, 32, epochs=1):
        batch = Batch(inputs, targets)

        def loss(params, net=moved, batch=batch):
            return method.loss(net.with_params(params), batch, {}, {}, h)[0]

        slopes = torch.func.grad(loss)(moved.params)
        moved = moved.with_params({k: v - 0.5 * slopes[k] for k, v in moved.params.items()})
    for name, value in net.named_parameters():
        torch.testing.assert_close(moved.params[name], value.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_saved_row_exceeds_the_limit_of_its_layer(dtype):
    """Not by rounding either: the sums are exact."""
    data = digits(dtype=getattr(torch, dtype))
    (outcome,) = train(an_entry("lipmlp", alpha=0.01, dtype=dtype, epochs=2), data)
    params, cut = outcome.checkpoints["last"].params, 0
    for key in ("1", "3", "5"):
        limit = float(F.softplus(params[f"{key}.c"].double()))
        sums = [math.fsum(map(abs, row)) for row in params[f"{key}.weight"].double().tolist()]
        assert max(sums) <= limit
        cut += sum(total >= limit * (1 - 1e-6) for total in sums)
    assert cut > 0


@pytest.mark.parametrize(
    ("fields", "rest"),
    [
        ({"activation": "relu"}, 1.0),
        ({"activation": "sigmoid"}, 1 / 16),
        ({"activation": "relu", "normalisation": (0.5, 0.25)}, 4.0),
        ({"activation": "tanh", "output_activation": "sigmoid"}, 1 / 4),
    ],
    ids=repr,
)
def test_the_claim_is_the_product_of_the_limits_and_holds(fields, rest):
    net = finished(a_model(widths=(8, 8), **fields), alpha=0.1, lr=0.1)
    claim = a_method("lipmlp").claims(net)
    limits = [F.softplus(v.double()) for name, v in net.params.items() if name.endswith(".c")]
    assert len(limits) == 3
    assert claim.constant == pytest.approx(rest * float(math.prod(limits)), rel=1e-11)
    assert (claim.norm, claim.domain) == (MAXIMUM, None)
    assert product(net) <= claim.constant * (1 + claim.tolerance)
    assert product(net) == pytest.approx(claim.constant, rel=1e-3)


def test_no_pair_of_inputs_exceeds_the_claim():
    net = finished(a_model(widths=(8, 8), activation="relu"), alpha=0.1, lr=0.1)
    rng = torch.Generator().manual_seed(0)
    u = torch.rand(256, 1, 8, 8, generator=rng)
    v = u + 0.1 * torch.randn(256, 1, 8, 8, generator=rng).sign()
    found = (net(u) - net(v)).abs().amax(dim=1) / (u - v).flatten(1).abs().amax(dim=1)
    assert 0 < float(found.max()) <= a_method("lipmlp").claims(net).constant


def test_a_larger_alpha_leaves_a_smaller_bound():
    claims = [
        a_method("lipmlp").claims(finished(alpha=alpha, epochs=10, batch_size=128)).constant
        for alpha in (0.0, 0.001, 0.01)
    ]
    assert claims[0] > 1.05 * claims[1] > 1.1 * claims[2]


def test_a_layer_of_zeros_has_a_gradient_that_is_finite():
    data = digits()
    model = initial(data)
    with torch.no_grad():
        model[3].weight.zero_()
    net = a_net(a_method("lipmlp").build(model, (1, 8, 8), torch.Generator()), (1, 8, 8))

    def outputs(params):
        method = a_method("lipmlp")
        used = method.effective(net.with_params(params), {}, {})
        return net.with_params(used)(data.train.inputs[:4]).square().sum()

    assert all(slope.isfinite().all() for slope in torch.func.grad(outputs)(net.params).values())


def parametrised():
    return nn.utils.parametrizations.weight_norm(nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(1, 2, 3), "layer '1' is a Convolution, for which it has no rule"),
        (parametrised(), "layer '1' is parametrised: its weight is no parameter of its own"),
        (nn.Softmin(dim=1), r"layer '1' \(Softmin\)"),
    ],
)
def test_what_it_has_no_rule_for_is_refused_by_name(layer, reason):
    first = nn.Identity() if isinstance(layer, nn.Conv2d) else nn.Flatten()
    found = a_method("lipmlp").refuses(nn.Sequential(first, layer), digits())
    assert re.search(reason, found)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bad_alpha_is_refused(value):
    with pytest.raises(ValueError, match=f"alpha must be at least 0 and finite, got {value}"):
        a_method("lipmlp", alpha=value)
