"""Periodic convolutions in place of a model's own, and which of these have one."""

import pytest
import torch
from torch import nn

from lipbench.method_families.periodic import misfit, periodic
from lipbench.networks.sequential import layer_sites


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
