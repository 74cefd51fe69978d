"""Residual layers: convolutional ones as steps, and where they stand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.matrices import matrix_norm, matrix_of
from support.training import a_method, digits
from torch import nn
from torch.nn import functional as F

from lipbench.layers.explanations import ConvResidual, Residual
from lipbench.lipschitz.lower_bounds.slope_ascent import _bent
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, widths
from lipbench.lipschitz.relaxations.rounding import enclose
from lipbench.networks.network import as_network
from lipbench.norm import Norm


def a_layer(mode="zeros", kernel=(3, 3), seed=0, size=1.0):
    rng = torch.Generator().manual_seed(seed)
    weight = size * torch.randn(2, 3, *kernel, generator=rng, dtype=torch.float64)
    bias = torch.randn(3, generator=rng, dtype=torch.float64)
    return ConvResidual(nn.Parameter(weight), nn.Parameter(bias), mode)


def matrix(layer, shape):
    # That of Wᵀ, from torch's own convolution.
    padding = layer.padding
    conv = nn.Conv2d(
        *(2, 3, layer.weight.shape[2:]),
        padding=padding,
        padding_mode=layer.padding_mode,
        bias=False,
    )
    conv.weight = nn.Parameter(layer.weight.transpose(0, 1))
    return matrix_of(conv, shape)


KINDS = [("zeros", (3, 3)), ("circular", (3, 3)), ("zeros", (1, 5)), ("circular", (5, 3))]


@pytest.mark.parametrize(("mode", "kernel"), KINDS)
def test_the_layer_is_the_formula_with_matrices(mode, kernel):
    """x - 2·W·relu(Wᵀx + b), for an image of 4x5 pixels."""
    layer, shape = a_layer(mode, kernel), (2, 4, 5)
    x = torch.randn(7, *shape, dtype=torch.float64)
    turned = matrix(layer, shape)
    bias = layer.bias.detach().repeat_interleave(20)
    hidden = torch.relu(x.flatten(1) @ turned.T + bias)
    expected = x.flatten(1) - 2 * hidden @ turned
    torch.testing.assert_close(layer(x).flatten(1).detach(), expected)
    network = as_network(nn.Sequential(layer), shape)
    assert [type(step).__name__ for step in network.steps] == ["ConvContraction"]
    assert network.flags == ()
    torch.testing.assert_close(network(x).flatten(1), expected)


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([0.05, 0.15, 0.3, 1.0]),
    norm=st.sampled_from([1.0, 2.0, math.inf]),
)
def test_no_slopes_expand_more_than_the_constant(seed, kind, size, norm):
    layer, shape = a_layer(*kind, seed=seed, size=size), (2, 4, 5)
    (step,) = as_network(layer, shape).steps
    found = constant(step, Norm(norm))
    turned = matrix(layer, shape)
    rng = torch.Generator().manual_seed(seed)
    for share in (0.1, 0.5, 1.0):
        slopes = (torch.rand(len(turned), generator=rng) < share).double()
        jacobian = torch.eye(40).double() - 2 * turned.T @ (slopes.unsqueeze(1) * turned)
        assert matrix_norm(jacobian, norm) <= found
    if norm != 2.0 and kind[0] == "zeros":
        there, back = matrix_norm(turned, norm), matrix_norm(turned.T, norm)
        assert found == pytest.approx(1 + 2 * there * back)
    if norm == 2.0 and kind[0] == "circular":
        square = float(torch.linalg.matrix_norm(turned, ord=2)) ** 2
        assert found == pytest.approx(max(1.0, 2 * square - 1), rel=1e-6)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_step_is_read_neuron_by_neuron(mode):
    module = nn.Sequential(a_layer(mode), nn.Flatten(), nn.Linear(40, 3).double())
    network = as_network(module, (2, 4, 5))
    assert widths(network) == (40, 60, 3)
    x = torch.randn(5, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(as_neuron_blocks(network)(x.flatten(1)), module(x).detach())


def test_the_rounding_of_the_step_is_enclosed():
    """Sums in another order differ by rounding alone."""
    layer = a_layer()
    x = torch.rand(4, 2, 4, 5, dtype=torch.float64)
    found = enclose(as_network(layer, (2, 4, 5)), x)
    turned = matrix(layer, (2, 4, 5))
    bias = layer.bias.detach().repeat_interleave(20)
    other = x.flatten(1) - 2 * F.relu(x.flatten(1) @ turned.T + bias) @ turned
    gap = (found.values.flatten(1) - other).abs()
    assert bool((gap <= 2 * found.radius.flatten(1)).all())
    assert 0 < float(found.radius.max()) < 1e-11


def test_slopes_of_the_step_have_a_gradient_where_asked():
    network = as_network(a_layer(), (2, 4, 5))
    bent = _bent(network, 0.1)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(bent(x), network(x))
    assert bent.steps[0].function is not network.steps[0].function


def test_an_even_kernel_has_no_middle():
    with pytest.raises(ValueError, match=r"needs odd kernels, got \(2, 3\)"):
        a_layer(kernel=(2, 3))


CHAIN = [
    (nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d),
    (nn.Conv2d(2, 2, 3, padding=1), ConvResidual),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", bias=False), ConvResidual),
    (nn.Conv2d(2, 2, 3, padding=2, dilation=2), nn.Conv2d),
    (nn.Conv2d(2, 2, 2, stride=2), nn.Conv2d),
    (nn.Linear(32, 32), Residual),
    (nn.Linear(32, 10), nn.Linear),
]


def test_layers_that_keep_the_shape_become_residual_and_lose_their_activation():
    model = nn.Sequential()
    for layer, _ in CHAIN[:5]:
        model.extend([layer, nn.ReLU()])
    model.extend([nn.Flatten(), CHAIN[5][0], nn.ReLU(), CHAIN[6][0]])
    module = a_method("sll", activation="relu").build(model, (1, 8, 8), torch.Generator())
    kinds = [type(layer) for layer in module]
    plain, residual, relu = nn.Conv2d, ConvResidual, nn.ReLU
    convolutions = [plain, relu, residual, residual, plain, relu, plain, relu]
    assert kinds == [*convolutions, nn.Flatten, Residual, nn.Linear]
    assert module[3].padding_mode == "circular"
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_an_odd_width_needs_no_pairs_where_no_activation_is_left():
    layers = [nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10)]
    assert a_method("sll").refuses(nn.Sequential(*layers), digits()) is None
    assert "5 channels are no pairs" in a_method("aol").refuses(nn.Sequential(*layers), digits())
