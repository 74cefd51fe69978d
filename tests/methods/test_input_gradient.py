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
from support.training import a_method, a_net

from lipbench.data.splits import Batch

NAME = "input_gradient"


def squares(net, batch):
    # Sample by sample, as torch differentiates it.
    found = []
    for number in range(len(batch.inputs)):
        one = Batch(
            batch.inputs[number : number + 1], batch.targets[number : number + 1], batch.task
        )
        slope = torch.func.grad(lambda x, one=one: one.loss(net(x)))(one.inputs)
        found.append(slope.square().sum())
    return torch.stack(found)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_the_penalty_is_the_mean_squared_slope_of_the_loss_in_the_inputs(kind, task):
    net, batch = setting(kind)
    if task == "regression":
        batch = Batch(batch.inputs, torch.eye(10)[batch.targets].double(), task)
    found = step(a_method(NAME, lambda_=0.3), net, batch)
    expected = lambda now: 0.3 * squares(now, batch).mean()  # noqa: E731
    assert_is(found, expected, net, rtol=1e-8, atol=1e-10)


def test_for_a_linear_network_the_slope_is_known():
    """Of cross entropy it is Wᵀ(p - e_y), p the softmax."""
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()
    net, batch = a_net(linear, (1, 8, 8)), a_batch()
    errors = net(batch.inputs).softmax(dim=1) - torch.eye(10)[batch.targets]
    expected = (errors @ net.params["1.weight"]).square().sum(dim=1).mean()
    torch.testing.assert_close(step(a_method(NAME, lambda_=1.0), net, batch)[0], expected)


def test_the_meter_counts_the_pass_that_gives_the_slope():
    net, batch = a_dense_net(), a_batch()
    step(a_method(NAME), net, batch)
    assert (net.meter.forwards - 20, net.meter.gradients - 20) == (40, 60)


def test_with_lambda_0_it_is_standard_training_bit_for_bit():
    assert is_standard(NAME, lambda_=0.0)


def test_a_larger_lambda_leaves_a_smaller_slope():
    nets = trained(NAME, "lambda_", (0.0, 0.3, 3.0))
    sizes = [float(squares(net, a_batch()).mean()) for net in nets]
    assert sizes[0] > 1.3 * sizes[1] > 1.3**2 * sizes[2]


def test_a_negative_lambda_is_refused():
    with pytest.raises(ValueError, match=r"lambda must be at least 0, got -1\.0"):
        a_method(NAME, lambda_=-1.0)
