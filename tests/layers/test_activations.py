"""Slope bounds of activations against their difference quotients on a fine grid."""

import pytest
import torch
from support.activations import LAYERS
from torch import nn

from lipbench.networks.network import as_network


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_slopes_enclose_all_difference_quotients_tightly(layer):
    """No quotient leaves [lo, hi], and the larger end is nearly attained."""
    (step,) = as_network(layer, (1,)).steps
    grid = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    quotients = step.function(grid).diff() / grid.diff()
    # Values of size 10 are rounded to 1e-15, over a distance of 1e-4.
    least, most = float(quotients.min()) + 1e-10, float(quotients.max()) - 1e-10
    lo, hi = float(step.lo), float(step.hi)
    assert lo <= least
    assert most <= hi
    assert max(-least, most) == pytest.approx(max(-lo, hi), abs=1e-3)


def test_prelu_slopes_may_differ_by_channel():
    layer = nn.PReLU(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-3.0, 2.0]))
    (step,) = as_network(layer, (2, 4)).steps
    assert step.lo.flatten().tolist() == [-3.0, 1.0]
    assert step.hi.flatten().tolist() == [1.0, 2.0]
    assert float(step.constant) == 3.0
