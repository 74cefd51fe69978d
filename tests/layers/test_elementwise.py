"""Slopes of activations on an interval, against derivatives at points of it and by hand."""

import math

import pytest
import torch
from support.activations import LAYERS
from support.nets import random_network
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import derivatives, slopes
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

CURVES = [*LAYERS, nn.ELU(-0.5), nn.CELU(0.1), nn.Softplus(-2.0)]
TURNS = torch.tensor([0, 1.414, -1.414, 1.4185, -1.4185, 1.4906, -2.2564, 2.3994, -2.3994] * 40)
JUMPS = torch.tensor([0.0, -3.0, 3.0, 6.0, -2.0, 0.5], dtype=torch.float64)


def local(layer, lo, hi):
    """Return the least and the largest slopes of a layer on intervals."""
    lo, hi = (torch.as_tensor(end, dtype=torch.float64).reshape(-1) for end in (lo, hi))
    spread = nn.Linear(1, len(lo)).double().requires_grad_(False)
    spread.weight.copy_((hi - lo).unsqueeze(1))
    spread.bias.copy_(lo)
    model = nn.Sequential(spread, layer.double())
    blocks = as_neuron_blocks(as_network(model, (1,)))
    return slopes(blocks, (0.0, 1.0))[0] if blocks.blocks else (torch.ones(1), torch.ones(1))


def slope_at(layer, points):
    points = points.clone().requires_grad_()
    (step,) = as_network(layer, (1,)).steps
    return torch.autograd.grad(step.function(points).sum(), points)[0]


@pytest.mark.parametrize("layer", CURVES, ids=repr)
def test_slopes_on_an_interval_are_those_at_its_points(layer):
    """None is left out, and none is added: a grid finds them but for its own mesh."""
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, 1, generator=rng, dtype=torch.float64)
    lo, width = 24 * first - 12, 10 ** (10.3 * second - 9)
    near, small = torch.rand(2, len(TURNS), 1, generator=rng, dtype=torch.float64)
    lo = torch.cat([lo, TURNS.double().unsqueeze(1) - near * 10 ** (-3 * small)])
    width = torch.cat([width, 10 ** (-3 * small)])
    points = lo + width * torch.linspace(0, 1, 401, dtype=torch.float64)
    found = slope_at(layer, points)
    least, most = local(layer, lo, lo + width)
    smallest, largest = found.amin(dim=1), found.amax(dim=1)
    # torch's own derivatives of two functions are made of numbers in float32.
    rounding = 1e-7 if isinstance(layer, nn.Hardsigmoid | nn.CELU) else 1e-13
    assert (least - rounding <= smallest).all()
    assert (largest <= most + rounding).all()
    # A jump near an end may be seen from one side only.
    far = ((torch.stack([lo, lo + width]) - JUMPS).abs() > 1e-3).flatten(2).all(dim=2).all(dim=0)
    assert far.sum() > 500
    mesh = found.diff(dim=1).abs().amax(dim=1) + 2e-9 + rounding
    assert (smallest - least <= mesh)[far].all()
    assert (most - largest <= mesh)[far].all()


BY_HAND = [
    (nn.Tanh(), 0.5, 1.0, 1 / math.cosh(1) ** 2, 1 / math.cosh(0.5) ** 2),
    (nn.Tanh(), -0.5, 1.0, 1 / math.cosh(1) ** 2, 1),
    (nn.Softplus(), -1.0, 2.0, 1 / (1 + math.e), 1 / (1 + math.exp(-2))),
    (nn.GELU(), 1.0, 2.0, 1.0833154705876862, 1.12890414518515),
    (nn.ELU(2.0), -1.0, 0.0, 2 / math.e, 2),
    (nn.ELU(2.0), -1.0, -0.5, 2 / math.e, 2 * math.exp(-0.5)),
    (nn.ELU(2.0), -9.0, 1.0, 2 * math.exp(-9), 2),
    (nn.Tanhshrink(), 1.0, 2.0, math.tanh(1) ** 2, math.tanh(2) ** 2),
    (nn.Hardswish(), -2.0, 1.0, -1 / 6, 5 / 6),
    (nn.Hardswish(), -4.0, -2.0, -0.5, 0),
]


@pytest.mark.parametrize(("layer", "lo", "hi", "least", "most"), BY_HAND)
def test_slopes_by_hand(layer, lo, hi, least, most):
    found = [float(end) for end in local(layer, lo, hi)]
    assert found == pytest.approx([least, most], abs=1e-12)


@pytest.mark.parametrize(
    ("layer", "lo", "hi", "slope"),
    [
        (nn.Hardtanh(), 2.0, 3.0, 0),
        (nn.Hardtanh(), -0.5, 0.5, 1),
        (nn.ReLU6(), 1.0, 5.0, 1),
        (nn.ReLU6(), 6.5, 7.0, 0),
        (nn.Hardsigmoid(), 4.0, 5.0, 0),
        (nn.Hardsigmoid(), -1.0, 2.0, 1 / 6),
    ],
)
def test_straight_parts_have_one_slope(layer, lo, hi, slope):
    assert local(layer, lo, hi) == (slope, slope)


def test_jumps_at_both_ends_of_an_interval_belong_to_it():
    """Between them a clipped identity has slope 1, and at them 0 or 1."""
    derivative = as_network(nn.Hardtanh(), (1,)).steps[0].derivative
    ends = torch.tensor([-1.0]), torch.tensor([1.0])
    assert derivative.between(*ends) == (0, 1)


@pytest.mark.parametrize("layer", CURVES, ids=repr)
def test_where_nothing_can_be_computed_slopes_are_those_of_all_space(layer):
    """The second layer reads numbers whose squares overflow."""
    model = nn.Sequential(nn.Linear(1, 1).double(), layer.double()).requires_grad_(False)
    model[0].weight.fill_(1e130)
    (block,) = as_neuron_blocks(as_network(model, (1,))).blocks
    ((lo, hi),) = slopes(as_neuron_blocks(as_network(model, (1,))), (-1e60, 1e60))
    torch.testing.assert_close(lo, block.lo, rtol=0, atol=2e-9)
    torch.testing.assert_close(hi, block.hi, rtol=0, atol=2e-9)


@pytest.mark.parametrize(
    ("layer", "minimum"),
    [
        (nn.GELU(), -0.16997120747990366),
        (nn.GELU(approximate="tanh"), -0.17004075057125405),
        (nn.SiLU(), -0.27846454276107380),
        (nn.Mish(), -0.30884341301725039),
        (nn.Hardswish(), -0.375),
        (nn.ELU(-0.5), 0.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("gap", [1e-9, -1e-9])
def test_the_least_value_of_a_curve_that_dips_is_known(layer, minimum, gap):
    """A ReLU behind it is always on where a little more than the minimum is added."""
    shift = nn.Linear(1, 1).double()
    with torch.no_grad():
        shift.weight.fill_(1)
        shift.bias.fill_(gap - minimum)
    blocks = as_neuron_blocks(as_network(nn.Sequential(layer, shift, nn.ReLU()), (1,)))
    lo, hi = slopes(blocks, (-4.0, 0.5))[1]
    assert (lo, hi) == ((1, 1) if gap > 0 else (0, 1))


@pytest.mark.parametrize("name", ["liplt", "lipsdp_neuron"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Hardtanh, nn.Hardswish])
def test_bounds_of_bent_networks_are_nearly_exact_on_a_small_box(activation, name):
    network = as_network(random_network(3, (4, 9, 9, 3), activation), (4,))
    box = (0.5, 0.500001)
    (jacobian,) = torch.func.vmap(torch.func.jacrev(lambda x: network(x.unsqueeze(0))[0]))(
        torch.full((1, 4), 0.5, dtype=torch.float64)
    )
    found = load("lipbench.bounds", name, Bound)().compute(network, Norm(2), box)
    exact = float(torch.linalg.matrix_norm(jacobian, 2))
    assert exact * (1 - 1e-9) <= found.value <= exact * (1 + 1e-4)
    assert recheck(network, found) == []
    entries = derivatives(as_neuron_blocks(network), box)
    assert (entries.hi - entries.lo).max() < 1e-4
