"""Convolutions around the edges, against torch's own behind circular padding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.layers.circular import Circular
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load

SIZES = [((4, 6), 1), ((4, 6), 2), ((5, 3), 1), ((6, 9), 3)]


def a_layer(size, stride, channels=(3, 2), taps=(3, 2)):
    torch.manual_seed(0)
    layer = Circular(channels, size, taps, stride=stride).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def convolved(layer, inputs, kernel, before):
    # Copies of the image beside it, and a plain convolution.
    kh, kw = kernel.shape[2:]
    pads = [before[1], kw - 1 - before[1], before[0], kh - 1 - before[0]]
    return F.conv2d(F.pad(inputs, pads, mode="circular"), kernel, layer.bias, layer.stride)


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_it_is_a_convolution_behind_circular_padding(size, stride):
    layer = a_layer(size, stride)
    inputs = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = convolved(layer, inputs, layer.weight, (0, 0))
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_a_kernel_that_is_not_changed_reads_around_its_middle(size, stride):
    layer = a_layer(size, stride)
    inputs = torch.randn(2, 2, *size, dtype=torch.float64)
    expected = convolved(layer, inputs, layer.middle(), (1, 1))
    with torch.no_grad():
        layer.weight.copy_(layer.remade(layer.weight, lambda symbol: symbol))
    torch.testing.assert_close(layer(inputs), expected)


@pytest.mark.parametrize(("size", "stride"), SIZES)
def test_the_symbol_that_is_changed_holds_the_singular_values(size, stride):
    layer, seen = a_layer(size, stride), []
    whole = layer.remade(layer.weight, lambda symbol: seen.append(symbol) or symbol)
    with torch.no_grad():
        layer.weight.copy_(whole)
        layer.bias.zero_()
    identity = torch.eye(2 * size[0] * size[1], dtype=torch.float64)
    matrix = layer(identity.reshape(-1, 2, *size)).flatten(1).detach()
    largest = float(torch.linalg.svdvals(matrix)[0])
    assert float(torch.linalg.svdvals(seen[0].detach()).max()) == pytest.approx(largest, rel=1e-12)
    # And so do the bounds that read it.
    network = as_network(nn.Sequential(layer), (2, *size))
    for name in ("product", "gram", "sedghi", "lipbound"):
        found = load("lipbench.bounds", name, Bound)().compute(network, Norm(2), None).value
        assert largest * (1 - 1e-12) <= found
        if name in ("product", "sedghi"):
            assert found == pytest.approx(largest, rel=1e-9)


@pytest.mark.parametrize(
    "settings", [((3, 3), (4, 2), 1), ((4, 4), (3, 3), 3), ((4, 4), (0, 1), 1)]
)
def test_sizes_must_fit(settings):
    size, taps, stride = settings
    with pytest.raises(ValueError, match="1 <= taps <= size, and a stride that divides size"):
        Circular((1, 1), size, taps, stride=stride)
