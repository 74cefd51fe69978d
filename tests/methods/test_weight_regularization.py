import math

import pytest
import torch
from support.training import a_method, a_net, an_entry, batches, digits, initial, same, train
from torch.nn import functional as F

from lipbench.data.splits import Batch


def slopes(**fields):
    # The gradient of the objective less that of the loss, at the initial network.
    data = digits(dtype=torch.float64)
    net, method = a_net(initial(data), (1, 8, 8)), a_method("weight_regularization", **fields)
    batch = Batch(data.train.inputs[:20], data.train.targets[:20])
    h = {"mu": torch.tensor(method.mu, dtype=torch.float64)}

    def penalty(params):
        now = net.with_params(params)
        value, _ = method.loss(now, batch, {"buffers": {}}, {}, h)
        return value - batch.loss(now(batch.inputs))

    return net.params, torch.func.grad(penalty)(net.params)


def test_the_slope_of_the_square_is_mu_times_the_weights_without_biases():
    params, found = slopes(mu=0.3, power=2, biases=False)
    for name, value in params.items():
        expected = 0.3 * value if name.endswith("weight") else torch.zeros_like(value)
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def test_the_slope_of_the_norm_has_length_mu_and_points_along_all_parameters():
    """Eq. (6) of the paper: one norm of everything, not squared."""
    params, found = slopes(mu=0.3)
    whole = torch.cat([value.flatten() for value in params.values()])
    slope = torch.cat([found[name].flatten() for name in params])
    torch.testing.assert_close(slope, 0.3 * whole / whole.norm(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_a_larger_mu_leaves_smaller_weights(power):
    lengths = []
    for mu in (0.0, 0.01, 0.1):
        entry = an_entry("weight_regularization", mu=mu, power=power, epochs=10)
        params = train(entry)[0].checkpoints["last"].params
        lengths.append(math.sqrt(sum(float(v.square().sum()) for v in params.values())))
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.parametrize("power", [1, 2])
def test_with_mu_0_it_is_standard_training_bit_for_bit(power):
    (ours,) = train(an_entry("weight_regularization", mu=0.0, power=power))
    (standard,) = train(an_entry("standard"))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_half_the_square_is_the_weight_decay_of_torch():
    data = digits(dtype=torch.float64)
    net = initial(data)
    theirs = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    for inputs, targets in batches(data, 32, epochs=2):
        theirs.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        theirs.step()
    entry = an_entry("weight_regularization", mu=0.01, power=2, epochs=2, dtype="float64")
    (outcome,) = train(entry, data)
    for name, value in net.named_parameters():
        found = outcome.checkpoints["last"].params[name]
        torch.testing.assert_close(found, value.detach(), rtol=1e-8, atol=1e-10)


def test_a_negative_mu_is_refused():
    with pytest.raises(ValueError, match=r"mu must be at least 0, got -1\.0"):
        a_method("weight_regularization", mu=-1.0)
