"""Slope bounds of elementwise activations: the least and the largest difference quotient.

A curve's slopes lie in [lo, hi] on the whole real line. Ends that are irrational are rounded
outwards by 1e-9. On an interval they lie where the derivative does, of which it is known where it
turns.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.layers.elementwise import Derivative, Elementwise, Formula, Sides

_THRESHOLD = 20.0
"""Below that threshold torch's softplus jumps by more than rounding."""


class Curve(NamedTuple):
    """An elementwise function and the range of its slopes."""

    function: Elementwise
    lo: float | Tensor
    hi: float | Tensor
    sides: Sides = None
    derivative: Derivative | None = None
    """What its slopes on an interval are; None if `sides` says it, or nothing is known."""
    formula: Formula | None = None
    """The function of one number, in any precision; None if `sides` says it, or none is known."""


def prelu(slope: Tensor, axes: int) -> Curve:
    """Return the curve of a PReLU, whose slopes may differ by channel.

    Args:
        slope: Slope on the negative side, for all entries or one per channel.
        axes: Number of axes after the channel axis of one sample.
    """
    ends = slope if slope.numel() == 1 else slope.reshape(-1, *[1] * axes)
    ones = torch.ones_like(ends)
    return Curve(
        lambda x: torch.where(x >= 0, x, ends * x),
        torch.minimum(ends, ones),
        torch.maximum(ends, ones),
        sides=(ends, ones),
    )


def _outwards(curve: Curve) -> Curve:
    return curve._replace(lo=curve.lo - 1e-9, hi=curve.hi + 1e-9)


def _leaky(slope: float) -> Curve:
    ends = min(slope, 1.0), max(slope, 1.0)
    return Curve(lambda x: F.leaky_relu(x, slope), *ends, sides=(slope, 1.0))


def _clipped(function: Elementwise, lo: float, hi: float) -> Curve:
    """Return a curve that is straight between two points, with slope 1, and constant beyond."""
    derivative = Derivative(
        function=lambda x: ((lo < x) & (x < hi)).to(x.dtype),
        turns=((lo, 0.0, 1.0), (hi, 0.0, 1.0)),
        error=0.0,
    )
    return Curve(
        *(function, 0.0, 1.0),
        derivative=derivative,
        formula=lambda mp, x: min(max(x, mp.mpf(lo)), mp.mpf(hi)),
    )


def _hardtanh(layer: nn.Hardtanh) -> Curve:
    lo, hi = float(layer.min_val), float(layer.max_val)
    return _clipped(lambda x: F.hardtanh(x, lo, hi), lo, hi)


def _hardsigmoid() -> Curve:
    derivative = Derivative(
        function=lambda x: (x.abs() < 3).to(x.dtype) / 6,
        turns=((-3.0, 0.0, 1 / 6), (3.0, 0.0, 1 / 6)),
        error=0.0,  # whoever multiplies by a slope allows for its own rounding
    )
    # The same bits as F.hardsigmoid, whose derivative torch cannot differentiate.
    curve = Curve(
        *(lambda x: F.relu6(x + 3) / 6, 0.0, 1 / 6),
        derivative=derivative,
        formula=lambda mp, x: min(max(x + 3, mp.zero), mp.mpf(6)) / 6,
    )
    return _outwards(curve)


def _hardswish() -> Curve:
    derivative = Derivative(
        function=lambda x: torch.where(x.abs() < 3, x.clamp(-3, 3) / 3 + 0.5, (x > 0).to(x.dtype)),
        turns=((-3.0, -0.5, 0.0), (3.0, 1.0, 1.5)),
        stops=(-1.5,),
    )
    return Curve(
        *(F.hardswish, -0.5, 1.5),
        derivative=derivative,
        formula=lambda mp, x: x * min(max(x + 3, mp.zero), mp.mpf(6)) / 6,
    )


def _elu(alpha: float) -> Curve:
    derivative = Derivative(
        function=lambda x: torch.where(x > 0, 1.0, alpha * x.clamp_max(0).exp()),
        turns=((0.0, min(1.0, alpha), max(1.0, alpha)),),
        stops=(0.0,),
        error=Derivative.error * max(1.0, abs(alpha)),
    )
    ends = min(0.0, alpha), max(1.0, alpha)
    return Curve(
        *(lambda x: F.elu(x, alpha), *ends),
        derivative=derivative,
        formula=lambda mp, x: x if x > 0 else alpha * mp.expm1(x),
    )


def _celu(alpha: float) -> Curve:
    if alpha < 0:  # its slopes grow without end
        return Curve(lambda x: F.celu(x, alpha), 0.0, math.inf)
    derivative = Derivative(function=lambda x: (x.clamp_max(0) / alpha).exp())
    return Curve(
        *(lambda x: F.celu(x, alpha), 0.0, 1.0),
        derivative=derivative,
        formula=lambda mp, x: x if x > 0 else alpha * mp.expm1(x / alpha),
    )


def _selu() -> Curve:
    right, left = 1.0507009873554805, 1.7580993408473766
    derivative = Derivative(
        function=lambda x: torch.where(x > 0, right, left * x.clamp_max(0).exp()),
        turns=((0.0, right, left),),
    )
    return _outwards(Curve(F.selu, 0.0, left, derivative=derivative, formula=_selu_of))


def _selu_of(mp: Any, x: Any) -> Any:
    # The numbers that define it, as torch holds them.
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    return scale * (x if x > 0 else alpha * mp.expm1(x))


def _softplus(beta: float, threshold: float) -> Curve:
    derivative = Derivative(function=lambda x: torch.sigmoid(beta * x))
    # torch switches to the identity beyond a threshold: by default that leaves a jump of 2e-9.
    if threshold < _THRESHOLD:
        return Curve(lambda x: F.softplus(x, beta, threshold), 0.0, math.inf)
    return Curve(
        lambda x: torch.logaddexp(torch.zeros_like(x), beta * x) / beta,
        *(0.0, 1.0),
        derivative=derivative,
        formula=lambda mp, x: _softplus_of(mp, beta * x) / beta,
    )


def _softplus_of(mp: Any, x: Any) -> Any:
    return max(x, mp.zero) + mp.log1p(mp.exp(-abs(x)))


def _bell(function: Elementwise, hi: float, slope: Elementwise, formula: Formula) -> Curve:
    """Return a rising curve that is steepest at 0."""
    derivative = Derivative(function=slope, turns=((0.0, hi, hi),))
    return Curve(function, 0.0, hi, derivative=derivative, formula=formula)


def _dipping(
    function: Elementwise,
    slope: Elementwise,
    least: tuple[float, float],
    most: tuple[float, float],
    stop: float,
    formula: Formula,
) -> Curve:
    """Return a curve that falls to a minimum, and rises from there.

    Args:
        function: The curve.
        slope: Its derivative.
        least: Where the slope is least, and that slope.
        most: Where it is largest, and that slope.
        stop: Where the curve has its minimum.
        formula: The curve in any precision.
    """
    turns = tuple((point, value, value) for point, value in (least, most))
    derivative = Derivative(function=slope, turns=turns, stops=(stop,))
    return _outwards(Curve(function, least[1], most[1], derivative=derivative, formula=formula))


def _gelu(layer: nn.GELU) -> Curve:
    form = layer.approximate
    # The extreme slopes of the two forms differ in the fourth digit.
    if form == "none":
        slope, point, reach, stop = _gelu_slope, 2**0.5, 1.128904145185154786, -0.7517915246935645
    else:
        slope, point, reach, stop = (
            *(_gelu_tanh_slope, 1.4185040087908284, 1.128993068658771765),
            -0.7524614220710163,
        )
    ends = (-point, 1 - reach), (point, reach)
    formula = _gelu_of if form == "none" else _gelu_tanh_of
    return _dipping(lambda x: F.gelu(x, approximate=form), slope, *ends, stop, formula)


def _gelu_of(mp: Any, x: Any) -> Any:
    return x * mp.ncdf(x)


def _gelu_tanh_of(mp: Any, x: Any) -> Any:
    # The constant is the number that torch holds in float64.
    return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + 0.044715 * x**3))) / 2


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    x = x.clamp(-30, 30)  # beyond, it is 0 or 1 to the last digit
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    steep = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
    return (1 + inner.tanh() + x * steep / inner.cosh().square()) / 2


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _mish_slope(x: Tensor) -> Tensor:
    inner = torch.logaddexp(torch.zeros_like(x), x)
    return inner.tanh() + x * torch.sigmoid(x) / inner.cosh().square()


ABSOLUTE = Curve(torch.abs, -1.0, 1.0, sides=(-1.0, 1.0))
_SIGMOID = _bell(
    *(torch.sigmoid, 0.25, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    formula=lambda mp, x: 1 / (1 + mp.exp(-x)),
)
_TANH = _bell(*(torch.tanh, 1.0, lambda x: 1 / x.cosh().square()), formula=lambda mp, x: mp.tanh(x))
_SOFTSIGN = _bell(
    *(F.softsign, 1.0, lambda x: 1 / (1 + x.abs()).square()),
    formula=lambda mp, x: x / (1 + abs(x)),
)
_SILU = _dipping(
    F.silu,
    _silu_slope,
    (-2.3993572805154677, -0.09983932012886692),
    (2.3993572805154677, 1.09983932012886692),
    -1.2784645427610738,
    lambda mp, x: x / (1 + mp.exp(-x)),
)
_MISH = _dipping(
    F.mish,
    _mish_slope,
    (-2.2563763963607931, -0.112526122389462556),
    (1.4905711794854285, 1.08849816125172786),
    -1.1924312145154952,
    lambda mp, x: x * mp.tanh(_softplus_of(mp, x)),
)
_LOG_SIGMOID = Curve(
    *(F.logsigmoid, 0.0, 1.0),
    derivative=Derivative(function=lambda x: torch.sigmoid(-x)),
    formula=lambda mp, x: -_softplus_of(mp, -x),
)
_TANHSHRINK = Curve(
    F.tanhshrink,
    *(0.0, 1.0),
    derivative=Derivative(function=lambda x: x.tanh().square(), turns=((0.0, 0.0, 0.0),)),
    formula=lambda mp, x: x - mp.tanh(x),
)

CURVES: Mapping[type[nn.Module], Callable[[Any], Curve]] = {
    nn.ReLU: lambda layer: Curve(torch.relu, 0.0, 1.0, sides=(0.0, 1.0)),
    nn.Sigmoid: lambda layer: _SIGMOID,
    nn.Tanh: lambda layer: _TANH,
    nn.ReLU6: lambda layer: _clipped(F.relu6, 0.0, 6.0),
    nn.Hardtanh: _hardtanh,
    nn.LeakyReLU: lambda layer: _leaky(layer.negative_slope),
    nn.ELU: lambda layer: _elu(float(layer.alpha)),
    nn.CELU: lambda layer: _celu(float(layer.alpha)),
    nn.SELU: lambda layer: _selu(),
    nn.GELU: _gelu,
    nn.SiLU: lambda layer: _SILU,
    nn.Mish: lambda layer: _MISH,
    nn.Softplus: lambda layer: _softplus(float(layer.beta), float(layer.threshold)),
    nn.Hardswish: lambda layer: _hardswish(),
    nn.Hardsigmoid: lambda layer: _hardsigmoid(),
    nn.Softsign: lambda layer: _SOFTSIGN,
    nn.LogSigmoid: lambda layer: _LOG_SIGMOID,
    nn.Tanhshrink: lambda layer: _TANHSHRINK,
}
"""The curve of an activation layer without parameters."""
