"""Derivatives on half lines, and the bisection of all numbers that rests on them."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.written import Written
from torch import nn

import lipbench
from lipbench.bound import Bound
from lipbench.layers.explanations import Slopes
from lipbench.lipschitz.exact.incumbent import incumbent
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.bisection import Subbox
from lipbench.lipschitz.relaxations.half_lines import HalfLines, derivatives_on
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load

L2 = Norm(2)
SMOOTH = [
    *(nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.GELU, nn.ELU, nn.Mish, nn.Softsign),
    *(nn.Tanhshrink, nn.LogSigmoid, nn.CELU, lambda: nn.GELU(approximate="tanh")),
]
BENT = [nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Hardtanh, nn.SELU, nn.ReLU6, nn.PReLU]


def mlp(activation, *widths, seed=0, spread=1.0):
    torch.manual_seed(seed)
    layers = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    net = nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)
    for value in net.parameters():
        value.mul_(spread)
    return net


def one_neuron(weight, bias, activation=nn.Sigmoid):
    net = nn.Sequential(nn.Linear(1, 1), activation()).double().eval().requires_grad_(False)
    net[0].weight.fill_(weight)
    net[0].bias.fill_(bias)
    return net


def derivative(net, points):
    points = points.detach().reshape(-1, 1).double().requires_grad_()
    outputs = net(points)
    columns = [
        torch.autograd.grad(outputs[:, i].sum(), points, retain_graph=True)[0][:, 0]
        for i in range(outputs.shape[1])
    ]
    return torch.stack(columns, dim=1)


def steepest(net, around=(0.0,), widths=(60.0, 4.0)):
    """Return the largest derivative on a dense grid, the oracle."""
    grids = [
        torch.linspace(centre - width, centre + width, 10_001, dtype=torch.float64)
        for centre in around
        for width in widths
    ]
    far = torch.logspace(0, 8, 2_000, dtype=torch.float64)
    return float(derivative(net, torch.cat([*grids, far, -far])).norm(dim=1).max())


def on_all_of_space(net, tolerance=5e-4, parts=4000):
    network = as_network(net, (1,))
    value = load("lipbench.bounds", "bisection", Bound)(tolerance=tolerance).compute(
        network, L2, None
    )
    assert recheck(network, value) == []
    return value


@given(
    st.integers(0, 10_000), st.sampled_from(SMOOTH + BENT), st.sampled_from([0.0, 0.3, 2.0, 50.0])
)
def test_derivatives_lie_in_their_intervals(seed, activation, start):
    net = mlp(activation, 1, 6, 5, 2, seed=seed, spread=2.0)
    points = torch.tensor([start, -start, 0.0], dtype=torch.float64)
    falls, rises = torch.tensor([False, True, True]), torch.tensor([True, False, True])
    blocks = as_neuron_blocks(as_network(net, (1,)))
    entries, _ = derivatives_on(blocks, HalfLines(points, falls, rises))
    beyond = torch.cat([torch.rand(50), 10 ** (6 * torch.rand(50))]).double()
    for number, sign in ((0, 1), (1, -1), (2, 1), (2, -1)):
        there = derivative(net, points[number] + sign * beyond)
        lo, hi = entries.lo[number, :, 0], entries.hi[number, :, 0]
        slack = 1e-12 * (1 + there.abs())
        assert bool(((there >= lo - slack) & (there <= hi + slack)).all())


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_what_saturates_is_flat_far_away(activation):
    blocks = as_neuron_blocks(as_network(mlp(activation, 1, 20, 20, 1), (1,)))
    ends = torch.tensor([False]), torch.tensor([True])
    widths = [
        float(derivatives_on(blocks, HalfLines(torch.tensor([far]).double(), *ends))[0].hi)
        for far in (1.0, 1e2, 1e4)
    ]
    assert widths[0] > 1e-3
    assert widths[2] < 1e-12


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Softplus, nn.GELU, nn.ReLU, nn.Tanhshrink])
def test_what_becomes_linear_has_one_slope_far_away(activation):
    net = mlp(activation, 1, 8, 8, 2)
    blocks = as_neuron_blocks(as_network(net, (1,)))
    lines = HalfLines(torch.tensor([1e5]).double(), torch.tensor([False]), torch.tensor([True]))
    entries, _ = derivatives_on(blocks, lines)
    slope = derivative(net, torch.tensor([1e6]))[0]
    assert entries.lo[0, :, 0].tolist() == pytest.approx(slope.tolist(), abs=1e-6)
    assert entries.hi[0, :, 0].tolist() == pytest.approx(slope.tolist(), abs=1e-6)


def test_halvings_of_the_line_lie_side_by_side():
    parts = [Subbox(0, 0)]
    for _ in range(9):
        parts = [half for part in parts for half in part.halves]
    ends = [part.on_the_line for part in parts]
    assert ends[0][0] is None
    assert ends[-1][1] is None
    assert [most for _, most in ends[:-1]] == [least for least, _ in ends[1:]]
    numbers = [least for least, _ in ends[1:]]
    assert numbers == sorted(set(numbers))
    assert Subbox(1, 1).on_the_line == (0, None)
    assert Subbox(3, 0b111).on_the_line == (2, None)
    assert Subbox(3, 0b110).on_the_line == (1, 2)
    assert Subbox(4, 0b1000).on_the_line == (0, Fraction(1, 4))
    assert Subbox(2, 0b01).on_the_line == (-1, 0)
    assert Subbox(2, 0b00).on_the_line == (None, -1)


@pytest.mark.parametrize("activation", SMOOTH)
def test_one_smooth_input_is_known_to_a_thousandth_on_all_of_space(activation):
    net = mlp(activation, 1, 8, 8, 1)
    value = on_all_of_space(net)
    oracle = steepest(net)
    assert oracle <= value.value <= oracle * (1 + 1e-3)
    beside = incumbent(as_network(net, (1,)), value)
    assert value.value / (1 + 1e-3) <= beside.value <= value.value


NEURONS = {
    "shifted": (one_neuron(1, 50), 0.25),
    "steep": (one_neuron(1e4, 3e3), 2500.0),
    "steeper": (one_neuron(1e8, -3e5), 2.5e7),
    "wide": (one_neuron(1e-4, -3), 2.5e-5),
    "wide and far": (one_neuron(-1e-6, 300), 2.5e-7),
    "far": (one_neuron(1, -1e9), 0.25),
    "steepest far away": (one_neuron(1, 3, nn.Softplus), 1.0),
    "steepest on the left": (one_neuron(-2, 1e3, nn.LogSigmoid), 2.0),
    "steepest in between": (one_neuron(-3, 3, nn.SiLU), 3 * 1.09983932012886692),
    "straight": (one_neuron(3, 1, nn.Identity), 3.0),
    "flat": (one_neuron(0, 1), 0.0),
}


@pytest.mark.parametrize("name", NEURONS)
def test_one_neuron_is_known_wherever_it_is(name):
    net, constant = NEURONS[name]
    value = on_all_of_space(net)
    assert constant <= value.value <= constant * (1 + 1e-3) + 1e-15
    beside = incumbent(as_network(net, (1,)), value)
    assert (beside.value if beside else 0.0) >= constant * (1 - 1e-3)


def test_two_bumps_far_apart_are_both_found():
    net = (
        nn.Sequential(nn.Linear(1, 4), nn.Sigmoid(), nn.Linear(4, 1)).double().requires_grad_(False)
    )
    net[0].weight.copy_(torch.tensor([[1.0], [1.0], [2.0], [2.0]]))
    net[0].bias.copy_(torch.tensor([1e5, 1e5 - 3, -2e5, -2e5 - 5]))
    net[2].weight.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    oracle = steepest(net, (-1e5, 1e5), (20.0,))
    assert oracle * (1 - 1e-9) <= on_all_of_space(net).value <= oracle * (1 + 1e-3)


def test_a_large_bias_hides_nothing():
    net = mlp(nn.Tanh, 1, 6, 6, 1)
    net[0].bias.add_(1e6)
    kinks = (-net[0].bias / net[0].weight[:, 0]).tolist()
    oracle = steepest(net, kinks, (50.0,))
    assert oracle * (1 - 1e-9) <= on_all_of_space(net).value <= oracle * (1 + 1e-3)


def test_all_of_space_is_no_less_than_a_box():
    net = mlp(nn.Tanh, 1, 6, 6, 1)
    whole = on_all_of_space(net)
    box = load("lipbench.bounds", "bisection", Bound)().compute(
        as_network(net, (1,)), L2, (-50.0, 50.0)
    )
    assert whole.value == pytest.approx(box.value, rel=6e-4)


def test_the_default_call_knows_one_smooth_input():
    net = mlp(nn.Tanh, 1, 4, 3, 1)
    bracket = lipbench.bracket(net, (1,))
    assert 0 < bracket.upper <= bracket.lower * (1 + 1e-3)


def test_functions_that_never_settle_have_the_bound_of_their_slopes():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

        def explain(self):
            return Slopes(torch.sin, -1.0, 1.0)

    net = nn.Sequential(nn.Linear(1, 1), Sine()).double().eval().requires_grad_(False)
    net[0].weight.fill_(2.0)
    assert on_all_of_space(net, parts=50).value == pytest.approx(2.0, rel=1e-9)


def test_parts_make_up_the_line_or_prove_nothing():
    network = as_network(mlp(nn.Tanh, 1, 6, 1), (1,))
    value = load("lipbench.bounds", "bisection", Bound)(parts=60).compute(network, L2, None)
    rows = value.proof["halvings"]
    assert len(rows) > 10
    assert recheck(network, value) == []
    endless = [None in Subbox(*row).on_the_line for row in rows.tolist()]
    assert sum(endless) == 2
    without = rows[~torch.tensor(endless)]
    for forged in (rows[1:], rows[:-1], without, rows[:0], torch.cat([rows, rows[:1]])):
        assert recheck(network, replace(value, proof={"halvings": forged}))
    assert recheck(network, replace(value, value=0.99 * value.value))
    # The parts of a box are no parts of the line: there its ends are left out.
    box = load("lipbench.bounds", "bisection", Bound)().compute(network, L2, (5.0, 6.0))
    assert recheck(network, box) == []
    assert recheck(network, replace(box, domain=None))


def test_slopes_without_bounds_are_refused():
    net = nn.Sequential(nn.Linear(1, 2), nn.CELU(-1.0), nn.Linear(2, 1)).double()
    with pytest.raises(Refused, match="not bounded"):
        on_all_of_space(net)


def test_branches_are_read_too():
    torch.manual_seed(3)
    first, last = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x):
        z = self.first(x)
        return self.last(torch.tanh(z) + torch.sigmoid(2 * z)) + 0.1 * x

    model = Written(forward, first=first, last=last).double().eval().requires_grad_(False)
    oracle = steepest(model)
    assert oracle * (1 - 1e-9) <= on_all_of_space(model).value <= oracle * (1 + 1e-3)


def test_two_inputs_are_refused_on_all_of_space():
    network = as_network(mlp(nn.Tanh, 2, 3, 1), (2,))
    bound = load("lipbench.bounds", "bisection", Bound)()
    assert "one input" in bound.refuses(network, L2, None)
    assert bound.refuses(as_network(mlp(nn.Tanh, 1, 3, 1), (1,)), L2, None) is None
    assert math.isfinite(bound.cost(network, L2, None))
