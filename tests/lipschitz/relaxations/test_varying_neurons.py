"""Layer norms without neurons that are constant on a box, by hand and against the masks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import CASES
from support.nets import HAT, dense, random_network
from torch import nn

from lipbench.bound import Bound
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.relaxations.intervals import slopes
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

L2 = Norm(2)


def value(name, network, domain):
    upper = load("lipbench.bounds", name, Bound)().compute(network, L2, domain)
    assert recheck(network, upper) == []
    return upper


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix, 2))


def masked(model, network, box):
    """Return the product of the paper: masks of ones for the neurons that are not constant."""
    layers = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    masks = [(hi > 0).double() for _, hi in slopes(as_neuron_blocks(network), box)]
    total = norm(masks[0].diag() @ layers[0])
    for before, after, weight in zip(masks, masks[1:], layers[1:], strict=False):
        total *= norm(after.diag() @ weight @ before.diag())
    return total * norm(layers[-1] @ masks[-1].diag())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.ReLU6])
@pytest.mark.parametrize("widths", [(3, 8, 2), (3, 8, 7, 4)])
@pytest.mark.parametrize("box", [(0.1, 0.2), (-1.0, 1.0), (2.0, 2.5)])
def test_it_is_the_product_of_the_paper(activation, widths, box):
    model = random_network(4, widths, activation).double()
    with torch.no_grad():
        model[0].bias.mul_(4)
    network = as_network(model, (3,))
    expected = masked(model, network, box)
    assert value("local_l2", network, box).value == pytest.approx(expected, rel=1e-9)
    assert expected <= masked(model, network, (-50.0, 50.0))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((5.0, 6.0), math.sqrt(3) * math.sqrt(6)),  # all on: their sum is flat, each is not
        ((-2.0, -1.0), 0.0),
        ((0.5, 0.9), 1.0),  # only the first
        ((0.5, 1.5), math.sqrt(2) * math.sqrt(5)),
    ],
)
def test_a_hat_by_hand(box, expected):
    upper = value("local_l2", as_network(HAT, (1,)), box)
    assert upper.value == pytest.approx(expected, abs=1e-9)


def test_a_clipped_neuron_is_constant_on_either_side():
    model = dense(([[1], [2]], [0, 0]), ([[3, 4]], [0]), activation=nn.Hardtanh)
    network = as_network(model, (1,))
    assert value("local_l2", network, (0.1, 0.4)).value == pytest.approx(math.sqrt(5) * 5)
    assert value("local_l2", network, (0.6, 0.9)).value == pytest.approx(3)
    for box in ((1.1, 2.0), (-2.0, -1.1)):
        assert value("local_l2", network, box).value == 0


def test_slopes_are_shared_by_both_layers():
    """Slopes 4 and 1 between [1, 1]' and [1, 1]: their roots on both sides give 5."""
    model = nn.Sequential(nn.Linear(1, 2), nn.PReLU(2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([-4.0, 1.0 / 3]))
        model[2].weight.fill_(1)
    network = as_network(model, (1,))
    assert value("local_l2", network, (-1.0, 1.0)).value == pytest.approx(5)
    assert value("local_l2", network, (1.0, 2.0)).value == pytest.approx(2)


@settings(max_examples=8)
@given(
    st.integers(0, 999),
    st.sampled_from([(2, 5, 3), (3, 6, 4, 2)]),
    st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Hardtanh]),
    st.floats(-2, 1),
    st.floats(1e-3, 2),
)
def test_it_is_between_a_lower_bound_and_the_product(seed, widths, activation, lo, width):
    network = as_network(random_network(seed, widths, activation), (widths[0],))
    box = (lo, lo + width)
    upper = value("local_l2", network, box)
    assert crossings([value("jacobian", network, box), upper]) == []
    assert upper.value <= value("product", network, None).value * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_not_below_the_exact_constant(seed):
    network = as_network(random_network(seed, (2, 3, 2, 2), nn.ReLU), (2,))
    box = (-0.3, 0.1)
    assert crossings([value("lipbab", network, box), value("local_l2", network, box)]) == []


@pytest.mark.parametrize("case", ["branching", "groups", "residual", "sandwich", "linear"])
def test_networks_that_branch_are_bounded(case):
    network = as_network(*CASES[case]())
    box = (0.2, 0.4)
    assert crossings([value("jacobian", network, box), value("local_l2", network, box)]) == []


def test_a_lowered_value_is_caught():
    network = as_network(random_network(0, (3, 6, 2), nn.ReLU), (3,))
    upper = value("local_l2", network, (0.0, 1.0))
    (violation,) = recheck(network, replace(upper, value=upper.value * 0.999))
    assert "its neurons that vary prove" in violation.message


def test_without_a_domain_it_is_refused():
    network = as_network(random_network(0, (3, 6, 2), nn.ReLU), (3,))
    method = load("lipbench.bounds", "local_l2", Bound)()
    assert method.refuses(network, L2, None) == (
        "on all of space it is the product: it needs a domain."
    )
    assert method.refuses(network, L2, (0.0, 1.0)) is None
