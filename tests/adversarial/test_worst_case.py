import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adversaries import climbed
from support.training import a_net
from torch import nn
from torch.nn import functional as F

from lipbench.adversarial.worst_case import (
    around,
    check_threat,
    climb,
    error,
    placed,
    ramped,
    train_on_both,
    unit_offsets,
)
from lipbench.data.splits import Batch
from lipbench.norm import Norm

SHAPE = (1, 2, 3)
NORMS = [Norm(2), Norm(torch.inf)]


def a_case(seed=0, count=5, box=(0.0, 1.0)):
    # A network with batch normalisation that has seen data, and samples, some in corners.
    rng = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)
    ).double()
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=rng))
        module[2].running_var.copy_(torch.rand(7, generator=rng) + 0.5)
    inputs = (1.4 * torch.rand(count, *SHAPE, generator=rng) - 0.2).clamp(0, 1).double()
    targets = torch.randint(3, (count,), generator=rng)
    return a_net(module, SHAPE), Batch(inputs, targets, box=box), rng


def ascent_of(net, batch, norm, epsilon, rng, steps=4, rel_step=0.4):
    threat = around(batch, norm, torch.tensor(epsilon, dtype=torch.float64))
    first = placed(batch, unit_offsets(batch.inputs, norm, rng), threat)
    inputs = batch.inputs
    return first, climb(net, error(batch), first, inputs, threat, steps=steps, rel_step=rel_step)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_it_is_the_ascent_on_cross_entropy_sample_by_sample_in_evaluation_mode(norm):
    net, batch, rng = a_case()
    first, points = ascent_of(net, batch, norm, 0.3, rng)
    module = net.module()

    def height(point, row):
        return F.cross_entropy(module(point), batch.targets[row : row + 1])

    expected = climbed(height, first, batch.inputs, 0.3, norm, steps=4, length=0.4 * 0.3)
    torch.testing.assert_close(points, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 2), norm=st.sampled_from(NORMS))
def test_points_stay_in_ball_and_box(seed, epsilon, norm):
    net, batch, rng = a_case(seed)
    first, points = ascent_of(net, batch, norm, epsilon, rng)
    for moved in (first, points):
        assert float(norm.length(moved - batch.inputs).max()) <= epsilon * (1 + 1e-6) + 1e-12
        assert float(moved.min()) >= 0
        assert float(moved.max()) <= 1
    if epsilon == 0:
        assert torch.equal(points, batch.inputs)


def test_the_loss_grows():
    net, batch, rng = a_case(count=40)
    first, points = ascent_of(net, batch, Norm(2), 0.2, rng)
    assert float(batch.loss(net(points))) > float(batch.loss(net(first))) + 0.1


def test_without_a_box_points_may_leave_it():
    net, batch, rng = a_case(box=None)
    _, points = ascent_of(net, batch, Norm(torch.inf), 0.5, rng)
    assert float(points.min()) < 0
    assert float(points.max()) > 1


def test_a_network_that_is_sure_does_not_stop_the_ascent():
    """In float32 the slope of cross entropy would be 0: the log-odds have one."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([torch.full((6,), 40.0), torch.full((6,), -40.0)]))
    net = a_net(module, SHAPE)
    batch = Batch(torch.ones(1, *SHAPE), torch.zeros(1, dtype=torch.int64))
    threat = around(batch, Norm(torch.inf), torch.tensor(0.2))
    x = batch.inputs
    points = climb(net, error(batch), x, x, threat, steps=1, rel_step=1.0)
    torch.testing.assert_close(points, x - 0.2)


def test_squared_errors_are_climbed_where_the_task_is_regression():
    net, batch, rng = a_case()
    batch = Batch(batch.inputs, torch.zeros(5, 3, dtype=torch.float64), "regression")
    first, points = ascent_of(net, batch, Norm(2), 0.3, rng)
    assert float(batch.loss(net(points))) > float(batch.loss(net(first)))


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_offsets_fill_the_unit_ball(norm):
    like = torch.zeros(4000, 1, 1, 2)
    offsets = unit_offsets(like, norm, torch.Generator().manual_seed(0))
    lengths = norm.length(offsets)
    assert float(lengths.max()) <= 1 + 1e-6
    # The share of the ball's area within half of its radius.
    assert float((lengths < 0.5).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(offsets.mean()) == pytest.approx(0, abs=0.03)


def test_two_passes_have_their_own_batch_statistics():
    net, batch, _ = a_case()
    moved = 1 - batch.inputs
    clean, worst, buffers = train_on_both(net, batch.inputs, moved)
    module = net.module().train()
    torch.testing.assert_close(clean, module(batch.inputs))
    torch.testing.assert_close(worst, module(moved))
    for name, value in module.named_buffers():
        torch.testing.assert_close(buffers[name], value)


def test_the_share_of_epsilon_grows_in_equal_parts():
    share = torch.ones((), dtype=torch.float64)
    assert [float(ramped(share, epoch, 3)) for epoch in range(1, 6)] == [0.25, 0.5, 0.75, 1, 1]
    assert float(ramped(share, 1, 0)) == 1


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [
        (1, 0.1, "norm must be 2 or inf, got 1"),
        (2, -0.1, r"epsilon must be finite and at least 0, got -0\.1"),
        (2, torch.inf, "epsilon must be finite and at least 0, got inf"),
        (2, torch.nan, "epsilon must be finite and at least 0, got nan"),
    ],
)
def test_balls_without_an_ascent_are_refused(norm, epsilon, message):
    with pytest.raises(ValueError, match=message):
        check_threat(Norm(norm), epsilon)
