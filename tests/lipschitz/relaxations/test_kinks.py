"""Derivatives on boxes by cases: a side for each neuron that bends."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.written import Written
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import Interval
from lipbench.lipschitz.relaxations.kinks import by_sides
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2)
BENT = [nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Hardtanh, nn.SELU, nn.ReLU6, nn.PReLU]


def mlp(activation, *widths, seed=0):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)


def bisected(net, inputs=1, domain=None):
    network = as_network(net, (inputs,))
    value = load("lipbench.bounds", "bisection", Bound)(tolerance=5e-4).compute(network, L2, domain)
    assert recheck(network, value) == []
    return value.value


def steepest(net, inputs=1, reach=40.0, count=30_001):
    rng = torch.Generator().manual_seed(0)
    points = reach * (2 * torch.rand(count, inputs, generator=rng, dtype=torch.float64) - 1)
    if inputs == 1:
        points = torch.cat([points, points / 20, torch.tensor([[1e6], [-1e6]])])
    points = points.requires_grad_()
    outputs = net(points)
    rows = [
        torch.autograd.grad(outputs[:, i].sum(), points, retain_graph=True)[0]
        for i in range(outputs.shape[1])
    ]
    return float(torch.linalg.matrix_norm(torch.stack(rows, dim=1), 2).max())


@pytest.mark.parametrize("activation", BENT)
def test_one_input_is_known_to_a_thousandth_where_neurons_bend(activation):
    net = mlp(activation, 1, 8, 8, 2)
    oracle = steepest(net)
    assert oracle * (1 - 1e-9) <= bisected(net) <= oracle * (1 + 1e-3)


def test_layers_that_bend_and_layers_that_curve_may_be_mixed():
    torch.manual_seed(3)
    layers = {
        "a": nn.Linear(1, 9),
        "b": nn.Linear(9, 9),
        "c": nn.Linear(9, 9),
        "d": nn.Linear(9, 2),
    }

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(self.b(torch.tanh(x) + torch.relu(x)))
        return self.d(torch.tanh(self.c(x)))

    net = Written(forward, **layers).double().eval().requires_grad_(False)
    oracle = steepest(net)
    assert oracle * (1 - 1e-9) <= bisected(net) <= oracle * (1 + 1e-3)


def test_two_inputs_are_known_closer_than_by_both_slopes_at_once():
    net = mlp(nn.ReLU, 2, 5, 5, 2)
    oracle = steepest(net, 2, 1.0)
    assert oracle * (1 - 1e-9) <= bisected(net, 2, (-1.0, 1.0)) <= oracle * 1.1


def test_two_neurons_at_one_point_are_on_either_side_of_it():
    """|x - 1/3| = relu(x - 1/3) + relu(1/3 - x), which no halving takes apart."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double().requires_grad_(False)
    net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    net[0].bias.copy_(torch.tensor([-1 / 3, 1 / 3]))
    net[2].weight.copy_(torch.tensor([[2.0, 2.0]]))
    assert bisected(net) == pytest.approx(2.0, rel=1e-9)


@given(
    st.integers(0, 10_000), st.sampled_from(BENT), st.integers(1, 3), st.sampled_from([1e-3, 0.3])
)
def test_derivatives_on_a_box_are_those_of_some_case(seed, activation, inputs, size):
    net = mlp(activation, inputs, 4, 3, 2, seed=seed)
    blocks = as_neuron_blocks(as_network(net, (inputs,)))
    rng = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, inputs, generator=rng, dtype=torch.float64)
    points = centre + size * (2 * torch.rand(200, inputs, generator=rng, dtype=torch.float64) - 1)
    values, reads = [points], []
    for block in blocks.blocks:
        at = block.reads(values)
        # Wider than what was met, and so around it.
        reads.append(
            Interval(*(end.unsqueeze(1) for end in (at.amin(0) - size, at.amax(0) + size)))
        )
        values.append(block.function(at))
    cases = by_sides(blocks, reads)
    if cases is None:
        return
    there = points.clone().requires_grad_()
    outputs = net(there)
    jacobians = torch.stack(
        [torch.autograd.grad(outputs[:, i].sum(), there, retain_graph=True)[0] for i in range(2)],
        dim=1,
    ).unsqueeze(1)
    lo, hi = (end.unsqueeze(0) for end in cases.derivatives)
    is_inside = ((jacobians >= lo - 1e-9) & (jacobians <= hi + 1e-9)).flatten(2).all(dim=2)
    assert bool(is_inside.any(dim=1).all())


def test_where_nothing_or_too_much_bends_there_are_no_cases():
    blocks = as_neuron_blocks(as_network(mlp(nn.ReLU, 1, 8, 1), (1,)))
    ends = torch.ones(8, 1, dtype=torch.float64)
    assert by_sides(blocks, [Interval(ends, 2 * ends)]) is None
    assert by_sides(blocks, [Interval(-ends, ends)]) is None
    some = torch.where(torch.arange(8).unsqueeze(1) < 3, -ends, ends)
    cases = by_sides(blocks, [Interval(some, 2 * ends)])
    assert cases.boxes.tolist() == [0] * 8
    assert math.prod(cases.derivatives.lo.shape) == 8
    smooth = as_neuron_blocks(as_network(mlp(nn.Tanh, 1, 8, 1), (1,)))
    assert by_sides(smooth, [Interval(-ends, ends)]) is None
