"""Slope bounds of elementwise activations.

A curve's slopes lie in [lo, hi] on the whole real line. Ends that are irrational are rounded
outwards by 1e-9.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.steps import Elementwise, Sides


class Curve(NamedTuple):
    """An elementwise function and the range of its slopes."""

    function: Elementwise
    lo: float | Tensor
    hi: float | Tensor
    sides: Sides = None


def _softplus(beta: float) -> Elementwise:
    # torch switches to the identity beyond a threshold, which leaves a jump of 2e-9.
    return lambda x: torch.logaddexp(torch.zeros_like(x), beta * x) / beta


def _outwards(function: Elementwise, lo: float, hi: float) -> Curve:
    return Curve(function, lo - 1e-9, hi + 1e-9)


def _gelu(layer: nn.GELU) -> Curve:
    # The extreme slopes of the two forms differ in the fourth digit.
    reach = 1.1289041451847 if layer.approximate == "none" else 1.1289930687
    form = layer.approximate
    return _outwards(lambda x: F.gelu(x, approximate=form), 1 - reach, reach)


def _leaky(slope: float) -> Curve:
    ends = min(slope, 1.0), max(slope, 1.0)
    return Curve(lambda x: F.leaky_relu(x, slope), *ends, sides=(slope, 1.0))


def _elu(alpha: float) -> Curve:
    return Curve(lambda x: F.elu(x, alpha), min(0.0, alpha), max(1.0, alpha))


def _celu(alpha: float) -> Curve:
    hi = 1.0 if alpha > 0 else math.inf
    return Curve(lambda x: F.celu(x, alpha), 0.0, hi)


def _hardtanh(layer: nn.Hardtanh) -> Curve:
    lo, hi = layer.min_val, layer.max_val
    return Curve(lambda x: F.hardtanh(x, lo, hi), 0.0, 1.0)


ABSOLUTE = Curve(torch.abs, -1.0, 1.0, sides=(-1.0, 1.0))

CURVES: Mapping[type[nn.Module], Callable[[Any], Curve]] = {
    nn.ReLU: lambda layer: Curve(torch.relu, 0.0, 1.0, sides=(0.0, 1.0)),
    nn.Sigmoid: lambda layer: Curve(torch.sigmoid, 0.0, 0.25),
    nn.Tanh: lambda layer: Curve(torch.tanh, 0.0, 1.0),
    nn.ReLU6: lambda layer: Curve(F.relu6, 0.0, 1.0),
    nn.Hardtanh: _hardtanh,
    nn.LeakyReLU: lambda layer: _leaky(layer.negative_slope),
    nn.ELU: lambda layer: _elu(layer.alpha),
    nn.CELU: lambda layer: _celu(layer.alpha),
    nn.SELU: lambda layer: _outwards(F.selu, 0.0, 1.7580993408473766),
    nn.GELU: _gelu,
    nn.SiLU: lambda layer: _outwards(F.silu, -0.0998393201286, 1.0998393201286),
    nn.Mish: lambda layer: _outwards(F.mish, -0.1125261224, 1.0884981613),
    nn.Softplus: lambda layer: Curve(_softplus(layer.beta), 0.0, 1.0),
    nn.Hardswish: lambda layer: Curve(F.hardswish, -0.5, 1.5),
    nn.Hardsigmoid: lambda layer: _outwards(F.hardsigmoid, 0.0, 1 / 6),
    nn.Softsign: lambda layer: Curve(F.softsign, 0.0, 1.0),
    nn.LogSigmoid: lambda layer: Curve(F.logsigmoid, 0.0, 1.0),
    nn.Tanhshrink: lambda layer: Curve(F.tanhshrink, 0.0, 1.0),
}
"""The curve of an activation layer without parameters."""


def prelu(slope: Tensor, axes: int) -> Curve:
    """Return the curve of a PReLU, whose slopes may differ by channel.

    Args:
        slope: Slope on the negative side, for all entries or one per channel.
        axes: Number of axes after the channel axis of one sample.
    """
    ends = slope if slope.numel() == 1 else slope.reshape(-1, *[1] * axes)
    one = torch.ones_like(ends)
    return Curve(
        lambda x: torch.where(x >= 0, x, ends * x),
        torch.minimum(ends, one),
        torch.maximum(ends, one),
        sides=(ends, one),
    )
