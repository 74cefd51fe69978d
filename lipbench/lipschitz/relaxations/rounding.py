"""Rounding error of a network: how far computed outputs can be from exact ones.

A running error analysis in float64: every step passes on the errors of its inputs and adds its
own rounding. It covers sums in any order, and results below the smallest normal number.

Source:
    Higham, Accuracy and Stability of Numerical Algorithms (2nd ed., SIAM 2002), section 3.1: a
    sum of n products is off by at most n·u/(1 - n·u) times the sum of their absolute values.
"""

from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.networks.network import Network
from lipbench.networks.steps import (
    AveragePool,
    Concatenation,
    Contraction,
    ConvContraction,
    Copy,
    GroupSort,
    Linear,
    MaxPool,
    Rearrange,
    Sandwich,
    Scale,
    Slope,
    Softmax,
    Step,
    Sum,
    refuse_kind,
)

UNIT = torch.finfo(torch.float64).eps
"""Twice the unit roundoff of float64: half of it is room for rounding of the analysis itself."""
LEAST = torch.finfo(torch.float64).tiny
"""The smallest normal number of float64: no result is off by more because it is below it."""
_FUNCTION = 16 * UNIT


@dataclass(frozen=True, kw_only=True)
class Enclosed:
    """Computed values, and how far each may be from the exact one."""

    values: Float[Tensor, "batch *shape"]
    radius: Float[Tensor, "batch *shape"]


def enclose(network: Network, inputs: Float[Tensor, "batch *shape"]) -> Enclosed:
    """Return a network's outputs at float64 inputs, taken as exact, with their error bounds.

    Raises:
        ValueError: If the inputs are not float64.
    """
    return enclose_values(network, inputs)[network.output]


def enclose_values(network: Network, inputs: Float[Tensor, "batch *shape"]) -> list[Enclosed]:
    """Return what `enclose` does of the inputs and the results of all steps, in order.

    Raises:
        ValueError: If the inputs are not float64.
    """
    if inputs.dtype != torch.float64:
        raise ValueError(f"rounding is analysed for float64 inputs, got {inputs.dtype}.")
    with torch.no_grad():
        known = [Enclosed(values=inputs, radius=torch.zeros_like(inputs))]
        for step in network.steps:
            sources = [known[i] for i in step.inputs]
            values = step(*[source.values for source in sources])
            known.append(Enclosed(values=values, radius=_radius(step, *sources)))
        return known


def rounding_error(step: Step, *sources: Enclosed) -> Tensor:
    """Return how far each entry of a step's result may be from the exact one.

    Args:
        step: The step.
        sources: What it reads; without radius, what its own rounding adds is returned.
    """
    return _radius(step, *sources)


@singledispatch
def _radius(step: Step, *sources: Enclosed) -> Tensor:
    refuse_kind(step, "has no analysis of its rounding", __name__)


@_radius.register(Linear)
def _(step: Linear, source: Enclosed) -> Tensor:
    absolute = step.absolute()
    rounding = absolute(source.values.abs()) * ((step.fan_in + 2) * UNIT) + _lost(step.fan_in)
    return absolute.apply(source.radius) * (1 + (step.fan_in + 2) * UNIT) + rounding


@_radius.register(Slope)
def _(step: Slope, source: Enclosed) -> Tensor:
    if step.sides is not None:  # one product, or none
        spread = float(step.constant) * source.radius * (1 + UNIT)
        return spread + UNIT * step(source.values).abs() + _lost(1)
    size = 1 + source.values.abs() + step(source.values).abs()
    steepest = max(1.0, float(step.constant))
    return float(step.constant) * source.radius * (1 + UNIT) + _FUNCTION * steepest * size


@_radius.register(Scale)
def _(step: Scale, source: Enclosed) -> Tensor:
    size = (step.factor * source.values).abs() + step.offset.abs()
    return step.factor.abs() * source.radius * (1 + UNIT) + _FUNCTION * size + _lost(2)


@_radius.register(Rearrange)
def _(step: Rearrange, source: Enclosed) -> Tensor:
    return step(source.radius)


@_radius.register(Copy)
def _(step: Copy, source: Enclosed) -> Tensor:
    return step(source.radius)


@_radius.register(MaxPool)
def _(step: MaxPool, source: Enclosed) -> Tensor:
    return step(source.radius)


@_radius.register(GroupSort)
def _(step: GroupSort, source: Enclosed) -> Tensor:
    # The k-th largest entry moves by no more than some entry of its group.
    largest = source.radius.unflatten(1, (-1, step.group)).amax(dim=2)
    return largest.repeat_interleave(step.group, dim=1)


@_radius.register(Softmax)
def _(step: Softmax, source: Enclosed) -> Tensor:
    # The largest entry is subtracted first: what that rounds is a share of each difference, and
    # turns into as large a share of an exponential, which the sum takes on as a weighted mean.
    values, axis = source.values, step.axis
    largest = source.radius.amax(axis, keepdim=True)
    below = values.amax(axis, keepdim=True) - values
    shares = values.softmax(axis)
    rounding = (
        _FUNCTION + values.shape[axis] * UNIT + UNIT * (shares * below).sum(axis, keepdim=True)
    )
    if step.is_log:
        rounding = rounding + UNIT * below + _FUNCTION * step(values).abs()
        return (source.radius + largest) * (1 + UNIT) + rounding
    return largest / 2 * (1 + UNIT) + shares * (rounding + UNIT * below) + _lost(4)


@_radius.register(Sum)
def _(step: Sum, *sources: Enclosed) -> Tensor:
    absolute = replace(step, coefficients=tuple(map(abs, step.coefficients)), offset=0.0)
    rounding = (len(sources) + 3) * UNIT  # Coefficients may be rounded themselves.
    spread = absolute(*[source.radius for source in sources])
    size = absolute(*[source.values.abs() for source in sources]) + abs(step.offset)
    return spread * (1 + rounding) + size * rounding + _lost(len(sources))


@_radius.register(Concatenation)
def _(step: Concatenation, *sources: Enclosed) -> Tensor:
    return step(*[source.radius for source in sources])


@_radius.register(AveragePool)
def _(step: AveragePool, source: Enclosed) -> Tensor:
    terms = source.values[0].numel()
    spread = step(source.radius + source.values.abs() * terms * UNIT) * (1 + terms * UNIT)
    return spread + _lost(terms)


@_radius.register(Contraction)
def _(step: Contraction, source: Enclosed) -> Tensor:
    weight, terms = step.weight.abs(), max(step.weight.shape) + 2
    inner = source.values @ step.weight + step.bias
    spread = source.radius @ weight + terms * UNIT * (
        source.values.abs() @ weight + step.bias.abs()
    )
    hidden = step.function(inner).abs()
    spread = _of_neurons(spread, inner, hidden) / step.diagonal
    rounding = 2 * terms * UNIT * (hidden / step.diagonal) @ weight.T + UNIT * source.values.abs()
    back = 2 * spread @ weight.T * (1 + terms * UNIT)
    return source.radius * (1 + UNIT) + back + rounding + _lost(4 * terms)


@_radius.register(ConvContraction)
def _(step: ConvContraction, source: Enclosed) -> Tensor:
    operator, absolute = step.operator, step.operator.absolute()
    inner = operator(source.values)
    hidden = step.function(inner).abs()
    spread = _of_neurons(_radius(operator, source), inner, hidden)
    terms = operator.weight[:, 0].numel() + 2
    rounding = 2 * terms * UNIT * absolute.adjoint(hidden) + UNIT * source.values.abs()
    back = 2 * absolute.adjoint(spread) * (1 + terms * UNIT)
    return source.radius * (1 + UNIT) + back + rounding + _lost(4 * terms)


@_radius.register(Sandwich)
def _(step: Sandwich, source: Enclosed) -> Tensor:
    # Entries of both maps are rounded three times, and roots of 2 once.
    pull, push = step.pull.absolute(), step.push.absolute()
    terms = (max(pull.fan_in, push.weight[:, 0].numel()) + 8) * UNIT
    inner = step.pull.apply(source.values) + step.bias
    spread = pull.apply(source.radius) * (1 + terms)
    spread = spread + terms * (pull.apply(source.values.abs()) + step.bias.abs())
    hidden = step.function(inner).abs()
    spread = _of_neurons(spread, inner, hidden)
    lost = _lost(4 * max(pull.fan_in, push.weight[:, 0].numel()))
    return push.adjoint(spread) * (1 + terms) + terms * push.adjoint(hidden) + lost


def _lost(terms: int) -> float:
    """Return by how much a sum of products may be off because products are too small."""
    return 2 * (terms + 2) * LEAST


def _of_neurons(spread: Tensor, inner: Tensor, hidden: Tensor) -> Tensor:
    """Return how far |s(z)| may be off where z is off by `spread`, for slopes in [0, 1]."""
    # The evaluation of s is that of any elementwise function.
    return spread * (1 + UNIT) + _FUNCTION * (1 + inner.abs() + hidden)
