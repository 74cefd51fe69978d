"""Convolutions around the edges, against torch's own behind circular padding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipbench.bound import Bound
from lipbench.layers.circular import Circular
from lipbench.method_families.periodic import misfit, periodic
from lipbench.networks.network import as_network
from lipbench.networks.sequential import layer_sites
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


def a_site(layer, size=(8, 8)):
    channels = layer.in_channels
    return layer_sites(nn.Sequential(layer), (channels, *size))[0]


def test_a_convolution_is_replaced_with_its_bias():
    layer = nn.Conv2d(2, 3, (3, 5), padding=(1, 2))
    found = periodic(a_site(layer, (4, 4)), torch.Generator())
    assert found.weight.shape == (3, 2, 4, 4)
    assert found.taps == (3, 4)  # cut to the image
    assert found.bias.tolist() == layer.bias.tolist()
    assert bool((found.middle() != 0).all())
    assert int((found.weight != 0).sum()) == found.middle().numel()
    bare = periodic(a_site(nn.Conv2d(2, 3, 3, padding=1, bias=False)), torch.Generator())
    assert bare.bias is None
    assert bare(torch.zeros(1, 2, 8, 8)).abs().max() == 0


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(1, 2, 3), "of size (8, 8), has 1/1 of it behind the layer, not (6, 6)"),
        (nn.Conv2d(1, 2, 3, stride=3, padding=1), "has 1/3 of it behind the layer, not (3, 3)"),
        (nn.Conv2d(1, 2, 3, dilation=2, padding=2), "dilations have no version, got (2, 2)"),
        (nn.Conv2d(1, 2, 3, stride=(1, 2), padding=1), "the same along both axes, got (1, 2)"),
    ],
)
def test_what_has_no_periodic_version_is_refused(layer, reason):
    assert reason in misfit(a_site(layer))


def test_what_has_one_is_not_refused():
    assert misfit(a_site(nn.Conv2d(1, 2, 3, padding=1))) is None
    assert misfit(a_site(nn.Conv2d(1, 2, 4, stride=2, padding=1))) is None
    dense = nn.Sequential(nn.Linear(4, 2))
    assert misfit(layer_sites(dense, (4,))[0]) is None


@pytest.mark.parametrize(
    "settings", [((3, 3), (4, 2), 1), ((4, 4), (3, 3), 3), ((4, 4), (0, 1), 1)]
)
def test_sizes_must_fit(settings):
    size, taps, stride = settings
    with pytest.raises(ValueError, match="1 <= taps <= size, and a stride that divides size"):
        Circular((1, 1), size, taps, stride=stride)
