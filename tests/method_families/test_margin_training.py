"""What methods share that hold margins against one constant: with rises as the objective."""

from dataclasses import dataclass

import pytest
import torch
from support.certifying import regression
from support.training import a_net, digits, initial
from torch import nn

from lipbench.data.splits import Batch
from lipbench.method import Summary
from lipbench.method_families import differentiable_constant, margins
from lipbench.method_families.margin_training import GlobalMarginTraining


@dataclass(frozen=True, kw_only=True)
class Rising(GlobalMarginTraining):
    whole: bool = False

    @property
    def by_rows(self):
        return not self.whole

    def radius(self, h):
        return h["epsilon"]

    def objective(self, outputs, batch, gaps, radius, h):
        rises = radius * margins.of_rows(gaps, batch.targets)
        return rises.sum(), rises


def a_step(epsilon, **fields):
    data = digits(dtype=torch.float64)
    net = a_net(initial(data), (1, 8, 8))
    method, batch = Rising(**fields), Batch(data.train.inputs[:20], data.train.targets[:20])
    state = method.start(net, data, torch.Generator().manual_seed(0))
    h = {"epsilon": torch.tensor(epsilon).double()}
    value, after = method.loss(net, batch, {**state, "buffers": {}}, {}, h)
    return method, net, batch, h, value, after


@pytest.mark.parametrize("whole", [False, True])
def test_rises_are_share_times_radius_times_gaps(whole):
    _, net, batch, _, value, after = a_step(0.5, first=0.1, whole=whole)
    gaps, _ = differentiable_constant.gaps(net.steps, after, by_rows=not whole)
    expected = 0.5 * 0.1 * gaps[batch.targets].sum()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_samples_count_that_keep_the_radius():
    _, net, batch, _, _, after = a_step(0.0, ramp=0.0)
    right = net(batch.inputs).argmax(dim=1) == batch.targets
    assert float(after["passed"]) == float(right.sum()) > 0
    assert float(after["seen"]) == 20
    assert float(a_step(1e6, ramp=0.0)[-1]["passed"]) == 0


def test_after_an_epoch_the_vectors_have_converged_and_the_radius_has_grown():
    method, net, _, h, _, after = a_step(0.5, first=0.1, ramp=1.0)
    moved = net.with_params({key: value.flip(0) ** 3 for key, value in net.params.items()})
    summary = Summary(epoch=1, epochs=3, loss=0.0, train_accuracy=0.0)
    ended = method.end_epoch(moved, summary, after, h)
    assert float(ended["share"]) == pytest.approx(0.4)
    trunk, _ = differentiable_constant.split(moved.steps)
    norms = [torch.linalg.matrix_norm(layer.weight, ord=2) for layer in trunk.layers]
    exact = float(torch.stack(norms).prod()) / 16  # the slopes of two sigmoids
    assert float(differentiable_constant.constant(trunk, ended)[0]) == pytest.approx(
        exact, rel=1e-4
    )
    assert float(differentiable_constant.constant(trunk, after)[0]) < 0.995 * exact


def test_what_has_no_constant_or_no_classes_is_refused():
    data = digits()
    headless = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
    assert "must end with a dense layer" in Rising().refuses(headless, data)
    assert "regression" in Rising().refuses(nn.Linear(1, 1), regression())
    assert Rising().refuses(initial(data), data) is None
