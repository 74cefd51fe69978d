"""The built-in bounds on networks whose constants are known by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds import bound
from support.nets import ABSOLUTE, HAT, IDENTITY, SHIFTED, STEP, by_hand, dense, random_network
from torch import nn

from lipbench.layers.normalise import Normalise
from lipbench.lipschitz.lower_bounds.witness import proved_quotients
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm

NORMS = [Norm(1.0), Norm(2.0), Norm(math.inf)]
L2 = Norm(2.0)
LOWER = ["jacobian", "pair_ascent"]


def value(name, model, shape, norm=L2, domain=None, inputs=None):
    return bound(name).compute(as_network(model, shape), norm, domain, (), inputs).value


HAND = by_hand(
    {
        "absolute value": (1, 2),
        "identity": (1, 2),
        "step": (1, 2),
        "zero": (0, 2),
        "hat": (1, 4.242641),
        "maximum": (1, 3.200413),
        "shifted": (2, 2),
        "sigmoid": (1, 1),
        "gelu": (1.128904145, 1.128904145),
        "linear": (5, 5),
    }
)


@pytest.mark.parametrize(("model", "features", "constant", "product"), HAND)
def test_product_of_a_hand_computed_network(model, features, constant, product):
    assert value("product", model, (features,)) == pytest.approx(product, rel=1e-6)


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize(("model", "features", "constant", "product"), HAND)
def test_no_lower_bound_exceeds_a_hand_computed_constant(name, model, features, constant, product):
    """Data include the kinks, where autograd's slope may be that of no side."""
    inputs = torch.cat(
        [torch.zeros(1, features), torch.linspace(-3, 3, 64 * features).view(64, -1)]
    )
    lower = value(name, model, (features,), inputs=inputs)
    assert lower <= constant + 1e-12


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("model", [ABSOLUTE, IDENTITY, STEP, HAT])
def test_lower_bounds_find_a_hand_computed_constant(name, model):
    inputs = torch.linspace(-3, 3, 100).view(-1, 1)
    assert value(name, model, (1,), inputs=inputs) == pytest.approx(1, abs=1e-6)


def test_pair_ascent_finds_a_narrow_slope():
    """The slope is 2 only on an interval of length 0.1."""
    inputs = torch.linspace(-3, 3, 101).view(-1, 1)
    lower = value("pair_ascent", SHIFTED, (1,), domain=(-5.0, 5.0), inputs=inputs)
    assert lower == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("name", ["product", *LOWER])
def test_every_bound_of_a_linear_network_is_its_norm(name):
    torch.manual_seed(0)
    model = nn.Linear(20, 12).double().requires_grad_(False)
    expected = float(torch.linalg.matrix_norm(model.weight, ord=2))
    assert value(name, model, (20,), inputs=torch.rand(50, 20)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_jacobian_of_a_linear_network_is_exact_in_every_norm(norm):
    torch.manual_seed(0)
    model = nn.Linear(7, 5).double().requires_grad_(False)
    expected = float(torch.linalg.matrix_norm(model.weight, ord=float(norm)))
    assert value("jacobian", model, (7,), norm) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", LOWER)
def test_a_slope_that_exists_only_at_a_kink_is_not_reported(name):
    """(leaky(x) - leaky(-x)) / 3 with slope 2 is x; autograd at 0 gives 4/3."""
    model = dense(
        ([[1], [-1]], [0, 0]), ([[1 / 3, -1 / 3]], [0]), activation=lambda: nn.LeakyReLU(2.0)
    )
    at_kink = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(model(at_kink).sum(), at_kink)[0]
    assert slope[0].item() == pytest.approx(4 / 3)
    lower = value(name, model, (1,), inputs=torch.zeros(5, 1))
    assert lower == pytest.approx(1, abs=1e-6)
    assert lower <= 1 + 1e-12


def test_product_multiplies_by_the_inverse_of_the_smallest_deviation():
    """In pixel units a network behind normalisation has constant L / min(std)."""
    model = nn.Sequential(Normalise([0.1, 0.2], [0.5, 0.25]), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.ones(1, 2, 1, 1))
    upper = value("product", model, (2, 3, 3))
    assert upper == pytest.approx(math.sqrt(2) / 0.25)
    lower = value("jacobian", model, (2, 3, 3))
    assert lower == pytest.approx(math.sqrt(2**2 + 4**2))


def test_product_counts_convolutions():
    """A convolution of constant 9 between dense layers of constant 1 is not skipped."""
    convolution = nn.Conv1d(1, 1, 1)
    with torch.no_grad():
        convolution.weight.fill_(9)
    assert value("product", nn.Sequential(convolution, nn.ReLU()), (1, 4)) == pytest.approx(9)


def test_product_takes_the_slopes_of_its_activation():
    """PReLU of slope -3 has constant 3, SELU 1.7581."""
    model = nn.PReLU(1, init=-3.0)
    assert value("product", model, (2,)) == pytest.approx(3)
    assert value("product", nn.SELU(), (2,)) == pytest.approx(1.75809934)


@pytest.mark.parametrize("threshold", [1.0, 15.0])
def test_a_softplus_that_jumps_has_no_constant(threshold):
    """By log(1 + exp(-t)) at t, where torch goes on with the identity."""
    assert value("product", nn.Softplus(threshold=threshold), (2,)) == math.inf
    assert value("product", nn.Softplus(), (2,)) == 1


def test_pools_have_their_own_constants():
    """Windows that overlap may repeat an entry; the mean of k² entries divides by k."""
    assert value("product", nn.MaxPool2d(2), (1, 4, 4)) == 1
    assert value("product", nn.MaxPool1d(2, stride=1), (1, 5)) == pytest.approx(math.sqrt(2))
    dilated = nn.MaxPool1d(2, stride=2, dilation=2)
    assert value("product", dilated, (1, 8)) == pytest.approx(math.sqrt(2))
    assert value("product", nn.AvgPool2d(2), (1, 4, 4)) == pytest.approx(1 / 2)
    assert value("product", nn.AdaptiveAvgPool2d(1), (1, 4, 6)) == pytest.approx(1 / math.sqrt(24))
    uncounted = nn.AvgPool2d(2, 2, padding=1, count_include_pad=False)
    assert value("product", uncounted, (1, 4, 4)) == pytest.approx(1)


def test_overlapping_maxima_do_expand():
    """(1, 2, 1, 2, 1) becomes (2, 2, 2, 2): against 0 a quotient of 4/√11, more than 1."""
    network = as_network(nn.MaxPool1d(2, stride=1), (1, 5))
    u = torch.tensor([[[1.0, 2.0, 1.0, 2.0, 1.0]]], dtype=torch.float64)
    quotient = float(proved_quotients(network, u, torch.zeros_like(u), L2)[0])
    assert quotient == pytest.approx(4 / math.sqrt(11))
    assert quotient <= value("product", nn.MaxPool1d(2, stride=1), (1, 5))


def test_batch_norm_is_a_diagonal():
    model = nn.BatchNorm1d(2).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, -3.0]))
        model.running_var.copy_(torch.tensor([1.0, 4.0]))
    assert value("product", model, (2,)) == pytest.approx(1.5, rel=1e-5)


@settings(max_examples=10)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU]),
    st.sampled_from(NORMS),
    st.sampled_from([None, (0.0, 1.0)]),
)
def test_lower_bounds_stay_below_upper_bounds(seed, widths, activation, norm, domain):
    network = as_network(random_network(seed, widths, activation), (widths[0],))
    options = {"jacobian": {"points": 8}, "pair_ascent": {"points": 8, "steps": 5}}
    known = ()
    for name in ["product", *LOWER]:
        known += (bound(name, **options.get(name, {})).compute(network, norm, domain, known),)
    assert crossings(known) == []
    assert [violation for result in known for violation in recheck(network, result)] == []


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(NORMS))
def test_product_is_exact_for_non_negative_weights_in_every_norm_but_two(seed, norm):
    """A ReLU network of non-negative weights is linear where all inputs are large."""
    model = random_network(seed, (3, 4, 2), nn.ReLU).double().requires_grad_(False)
    for layer in (model[0], model[2]):
        layer.weight.abs_()
    whole = torch.linalg.matrix_norm(model[2].weight @ model[0].weight, ord=float(norm))
    inputs = torch.full((1, 3), 50.0)
    assert value("jacobian", model, (3,), norm, None, inputs) == pytest.approx(float(whole))


@pytest.mark.parametrize("name", LOWER)
def test_witnesses_stay_inside_the_domain(name):
    torch.manual_seed(0)
    network = as_network(random_network(0, (5, 8, 3), nn.ReLU), (5,))
    inputs = torch.randint(2, (30, 5)).double()
    lower = bound(name).compute(network, L2, (0.0, 1.0), (), inputs)
    points = torch.stack([lower.proof["u"], lower.proof["v"]])
    assert points.min() >= 0
    assert points.max() <= 1
    assert lower.domain == (0.0, 1.0)


@pytest.mark.parametrize("name", LOWER)
def test_the_same_seed_gives_the_same_value(name):
    network = as_network(random_network(0, (5, 8, 3), nn.Sigmoid), (5,))
    first, second = (bound(name).compute(network, L2, None) for _ in range(2))
    assert first.value == second.value


def test_pair_ascent_is_no_worse_than_the_witness_it_starts_from():
    torch.manual_seed(0)
    network = as_network(random_network(0, (6, 9, 4), nn.Sigmoid), (6,))
    known = (bound("jacobian").compute(network, L2, None),)
    lower = bound("pair_ascent", points=4, steps=3).compute(network, L2, None, known)
    assert lower.value >= known[0].value * (1 - 1e-9)


@pytest.mark.parametrize("name", LOWER)
def test_lower_bounds_read_images(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    lower = value(name, model, (1, 5, 5), inputs=torch.rand(20, 1, 5, 5))
    assert 0 < lower <= value("product", model, (1, 5, 5))


def test_bounds_work_where_gradients_are_switched_off():
    with torch.no_grad():
        for name in ["product", *LOWER]:
            assert value(name, ABSOLUTE, (1,)) > 0.99


def test_data_on_the_boundary_of_the_domain_lose_no_direction():
    """At corners of the box the pair moves inwards and keeps the steepest direction."""
    torch.manual_seed(0)
    model = nn.Linear(10, 6).double().requires_grad_(False)
    expected = float(torch.linalg.matrix_norm(model.weight, ord=2))
    corners = torch.randint(2, (20, 10)).double()
    lower = value("jacobian", model, (10,), domain=(0.0, 1.0), inputs=corners)
    assert lower == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("seed", range(4))
def test_a_nearly_constant_network_keeps_its_witness(name, seed):
    """
    Where the function varies by little more than its rounding, the pair still proves the value.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 200), nn.Sigmoid(), nn.Linear(200, 1), nn.Sigmoid())
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
        model[2].bias.fill_(-1.0)
    network = as_network(model, (1,))
    lower = bound(name).compute(network, L2, (-4.0, 4.0))

    assert lower.value > 0
    assert recheck(network, lower) == []
