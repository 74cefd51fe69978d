"""Orthonormal layers by Björck's iteration."""

import math

import pytest
import torch
from support.training import a_method, a_net, an_entry, digits, initial, train
from torch import nn

from lipbench.layers.sorting import GroupSort
from lipbench.training.optimiser import Optimizer


def built(model, **fields):
    module = a_method("bjorck", **fields).build(model, (1, 8, 8), torch.Generator().manual_seed(0))
    return a_net(module, (1, 8, 8))


def finished(net, **fields):
    return net.with_params(a_method("bjorck", **fields).finish(net, {}, digits(), {}))


def test_singular_values_of_a_trained_network_are_one():
    (outcome,) = train(an_entry("bjorck", epochs=1, optimizer=Optimizer(name="adam", lr=0.02)))
    for key, value in outcome.checkpoints["last"].params.items():
        if key.endswith("weight"):
            values = torch.linalg.svdvals(value.double())
            assert float((values - 1).abs().max()) <= 1e-6


def test_training_is_near_the_network_that_is_saved():
    net = built(initial(digits()))
    rng = torch.Generator().manual_seed(1)
    moved = net.with_params(
        {name: v + 0.1 * torch.randn(v.shape, generator=rng) for name, v in net.params.items()}
    )
    method = a_method("bjorck")
    saved = method.finish(moved, {}, digits(), {})
    for name, value in method.effective(moved, {}, {}).items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-3)


def test_the_first_network_is_its_own_polar_factor():
    net = built(initial(digits()))
    for name, value in finished(net).params.items():
        torch.testing.assert_close(value, net.params[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "overlaps"), [(3, 1, 9), (4, 2, 4), (5, 2, 9)])
def test_a_convolution_is_divided_by_its_overlaps(kernel, stride, overlaps):
    """W is orthonormal as outputs × (inputs and taps), then divided by √overlaps."""
    model = nn.Sequential(nn.Conv2d(1, 3, kernel, stride, 1), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 1, 8, 8))
    weight = finished(built(model)).params["0.weight"].flatten(1)
    expected = torch.full((3,), 1 / math.sqrt(overlaps))
    torch.testing.assert_close(torch.linalg.svdvals(weight), expected)
    assert weight.all()  # it started with all taps, not with those in the middle


def test_an_all_ones_kernel_attains_the_overlaps():
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    raw = {"weight": torch.ones(1, 1, 3, 3)}
    weight = a_method("bjorck").explicit(layer, raw, is_final=True)["weight"]
    torch.testing.assert_close(weight, torch.full((1, 1, 3, 3), 1 / 9))


def test_sorted_groups_keep_the_norm_and_the_entries():
    x = torch.randn(20, 12)
    for group in (2, 3, 12):
        found = GroupSort(group)(x)
        torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1))
        pairs = x.unflatten(1, (-1, group)).sort(dim=2).values
        assert torch.equal(found.unflatten(1, (-1, group)).sort(dim=2).values, pairs)


def test_spread_kernels_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2))
    assert "got dilation (2, 2)" in a_method("bjorck").refuses(model, digits())


def test_iterations_must_be_positive():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        a_method("bjorck", iterations=0)
