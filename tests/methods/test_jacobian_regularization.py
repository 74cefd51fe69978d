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
from support.training import a_method, digits
from torch.func import jacrev, vmap

from lipbench.data.splits import Batch
from lipbench.seeds import stream

NAME = "jacobian_regularization"
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def jacobian(net, inputs):
    # One row for each output, of each sample alone.
    whole = vmap(jacrev(lambda x: net(x.unsqueeze(0))[0]))(inputs)
    return whole.flatten(2)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_exact_penalty_is_half_the_mean_squared_norm_of_the_jacobian(kind):
    net, batch = setting(kind)
    found = step(a_method(NAME, lambda_=0.3, projections=-1), net, batch)

    def expected(now):
        return 0.3 / 2 * jacobian(now, batch.inputs).square().sum(dim=(1, 2)).mean()

    assert_is(found, expected, net, **CLOSE)


@pytest.mark.parametrize("projections", [1, 3])
@pytest.mark.parametrize("kind", SETTINGS)
def test_directions_are_projected_as_in_the_paper(kind, projections):
    """C·‖vᵀJ‖²/n, n directions v for each sample."""
    net, batch = setting(kind)
    method = a_method(NAME, lambda_=0.3, projections=projections)
    directions = method.draw(batch, stream(1, "method"))["directions"]

    def expected(now):
        rows = torch.einsum("nbc,bci->nbi", directions, jacobian(now, batch.inputs))
        return 0.3 / 2 * 10 * rows.square().sum() / (projections * len(batch.inputs))

    assert_is(step(method, net, batch), expected, net, **CLOSE)


def test_one_direction_is_unbiased():
    """The mean of 2,000 draws of three samples is exact to 3 %."""
    net, batch = a_dense_net(), a_batch(3)
    exact = step(a_method(NAME, lambda_=1.0, projections=-1), net, batch)[0]
    mean = step(a_method(NAME, lambda_=1.0, projections=2000), net, batch)[0]
    assert float(mean) == pytest.approx(float(exact), rel=0.03)


def test_directions_are_of_length_1_and_never_the_same():
    method, batch, rng = a_method(NAME, projections=2), a_batch(), stream(0, "method")
    once, again = (method.draw(batch, rng)["directions"].flatten(0, 1) for _ in range(2))
    assert once.shape == (40, 10)
    torch.testing.assert_close(once.norm(dim=1), torch.ones(40, dtype=torch.float64))
    assert len(torch.cat([once, again]).unique(dim=0)) == 80
    assert float(once.mean(dim=0).abs().max()) < 0.2


def test_the_meter_counts_each_pass_backwards():
    """20 samples: one pass for the loss, one for the Jacobian, and three directions through it."""
    net, batch = a_dense_net(), a_batch()
    step(a_method(NAME, projections=3), net, batch)
    net.meter.forwards -= 20  # of the loss that `step` takes off
    assert (net.meter.forwards, net.meter.gradients - 20) == (40, 40 + 60)


@pytest.mark.parametrize("projections", [1, -1])
def test_with_lambda_0_it_is_standard_training_bit_for_bit(projections):
    assert is_standard(NAME, lambda_=0.0, projections=projections)


def test_a_larger_lambda_leaves_a_smaller_jacobian():
    nets = trained(NAME, "lambda_", (0.0, 0.1, 1.0))
    sizes = [float(jacobian(net, a_batch().inputs).norm()) for net in nets]
    assert sizes[0] > 1.3 * sizes[1] > 1.3**2 * sizes[2]


def test_it_is_for_regression_too():
    method, batch = a_method(NAME), a_batch()
    targets = torch.zeros(20, 10, dtype=torch.float64)
    other = Batch(batch.inputs, targets, "regression", data=batch.data)
    found, known = (step(method, a_dense_net(), each)[0] for each in (other, batch))
    torch.testing.assert_close(found, known)
    assert method.refuses(torch.nn.Identity(), digits()) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lambda_", -0.1, r"lambda must be at least 0, got -0\.1"),
        ("lambda_", math.nan, "lambda must be at least 0, got nan"),
        ("projections", 0, "projections must be at least 1, or -1, got 0"),
        ("projections", -2, "projections must be at least 1, or -1, got -2"),
    ],
)
def test_a_number_out_of_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        a_method(NAME, **{field: value})
