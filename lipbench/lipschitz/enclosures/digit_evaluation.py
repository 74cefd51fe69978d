"""Evaluation of a network in many digits, for inputs whose images float64 cannot tell apart."""

import math
from dataclasses import replace
from functools import singledispatch
from typing import Any

import mpmath
import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.enclosures.digits import Digits, TooWide
from lipbench.lipschitz.relaxations.rounding import UNIT, Enclosed, rounding_error
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    Concatenation,
    Copy,
    GroupSort,
    Linear,
    MaxPool,
    Normalisation,
    Rearrange,
    Scale,
    Slope,
    Step,
    Sum,
)

_MOST_FORMULAS = 300_000
"""Values of smooth functions for one step; beyond, float64 has to do."""
_GUARD_BITS = 32
"""Binary digits that a formula is computed with beyond those that are kept."""


def evaluate_in_digits(
    network: Network, inputs: Float[Tensor, "batch *shape"], most: int
) -> Digits:
    """Return a network's outputs at float64 inputs, which are taken as exact.

    Steps that are linear, choose entries, or are linear left and right of 0 have no more error
    than what is cut off; so have smooth activations whose formula is known. Others are computed
    in float64, with its error.

    Args:
        network: The network, in float64.
        inputs: Few points: digits multiply the work.
        most: How many digits of 16 bits are kept.
    """
    with torch.no_grad():
        known = [Digits.of(inputs, most)]
        for step in network.steps:
            sources = [known[i] for i in step.inputs]
            try:
                known.append(_image(step, *sources))
            except TooWide:
                known.append(_rounded(step, *sources))
        return known[network.output]


def products_of(network: Network) -> int:
    """Return how many products one sample takes in one digit, of the linear steps."""
    return sum(math.prod(layer.output_shape) * layer.fan_in for layer in network.layers)


def _rounded(step: Step, *sources: Digits) -> Digits:
    """Return the result of a step in float64."""
    pairs = [source.rounded() for source in sources]
    values = [Enclosed(values=values, radius=radius) for values, radius in pairs]
    image = step(*[source.values for source in values])
    digits = Digits.of(image, sources[0].most)
    return replace(digits, radius=digits.radius + rounding_error(step, *values))


@singledispatch
def _image(step: Step, *sources: Digits) -> Digits:
    return _rounded(step, *sources)


@_image.register(Linear)
def _(step: Linear, source: Digits) -> Digits:
    def linear(weight: Tensor, inputs: Tensor) -> Tensor:
        return replace(step, weight=weight).apply(inputs)

    image = source.through(linear, step.weight.detach(), step.fan_in)
    if step.bias is None:
        return image
    return image.plus(Digits.of(step.broadcast(step.bias.detach()).unsqueeze(0), source.most))


@_image.register(Scale)
def _(step: Scale, source: Digits) -> Digits:
    most = source.most
    if step.normalisation is None:
        factor, offset = (
            Digits.of(tensor.detach().unsqueeze(0), most) for tensor in (step.factor, step.offset)
        )
    else:
        factor, offset = _normalisation(step.normalisation, step, most)
    return source.times(factor).plus(offset)


def _normalisation(terms: Normalisation, step: Scale, most: int) -> tuple[Digits, Digits]:
    """Return factor and offset of a normalisation, with more than the digits of float64."""
    bits = 16 * most + _GUARD_BITS
    with mpmath.workprec(bits):
        lines = [terms.line(mpmath.mp, *row) for row in terms.rows()]
    factor, offset, size = (
        Digits.of_binary(list(map(_binary, column)), step.factor.shape, most).in_batch()
        for column in zip(*lines, strict=True)
    )
    # An offset is a difference, off by shares of what it is a difference of.
    share = 2.0 ** (8 - bits)
    spread = share * size.rounded()[0].abs()
    factor = replace(factor, radius=factor.radius + share * factor.rounded()[0].abs())
    return factor, replace(offset, radius=offset.radius + spread)


@_image.register(Slope)
def _(step: Slope, source: Digits) -> Digits:
    radius = float(step.constant) * source.radius * (1 + UNIT)
    if step.sides is not None:
        return _two_sided(step.sides, source, radius)
    if step.formula is None or source.radius.numel() > _MOST_FORMULAS:
        return _rounded(step, source)
    bits = 16 * source.most + _GUARD_BITS
    with mpmath.workprec(bits):
        images = [
            _binary(step.formula(mpmath.mp, mpmath.ldexp(*number))) for number in source.binary()
        ]
    image = Digits.of_binary(images, source.radius.shape, source.most)
    # As for float64: a share of the argument, of the value, and of 1.
    values, _ = source.rounded()
    size = 1 + values.abs() + image.rounded()[0].abs()
    return replace(image, radius=image.radius + radius + 2.0 ** (16 - bits) * size)


def _two_sided(sides: tuple[Any, Any], source: Digits, radius: Tensor) -> Digits:
    """Return a function that is linear left and right of 0."""
    left, right = (
        source if _is_number(side, 1.0) else source.times(_factor(side, source)) for side in sides
    )
    if _is_number(sides[0], 0.0) and _is_number(sides[1], 1.0):
        return replace(
            source, digits=torch.where(source.negative, 0.0, source.digits), radius=radius
        )
    zero = source.digits.new_zeros(())
    parts = (
        replace(part, digits=torch.where(where, part.digits, zero), radius=part.radius * where)
        for part, where in ((left, source.negative), (right, ~source.negative))
    )
    first, second = parts
    return replace(first.plus(second), radius=first.radius + second.radius + radius)


def _factor(side: float | Tensor, source: Digits) -> Digits:
    number = torch.as_tensor(side, dtype=torch.float64).detach()
    return Digits.of(number.reshape(1, *number.shape), source.most)


def _is_number(side: float | Tensor, number: float) -> bool:
    return not isinstance(side, Tensor) and side == number


@_image.register(Rearrange)
@_image.register(Copy)
def _(step: Step, source: Digits) -> Digits:
    return source.each(step, step(source.radius))


@_image.register(MaxPool)
@_image.register(GroupSort)
def _(step: Step, source: Digits) -> Digits:
    # These round nothing: an entry moves by what entries beside it do.
    spread = rounding_error(step, Enclosed(values=source.radius, radius=source.radius))
    return source.chosen(step, spread)


@_image.register(Sum)
def _(step: Sum, *sources: Digits) -> Digits:
    most = sources[0].most
    total: Digits | None = None
    for coefficient, source in zip(step.coefficients, sources, strict=True):
        term = _multiple(source, coefficient)
        total = term if total is None else total.plus(term)
    assert total is not None
    if not step.offset:
        return total
    number = torch.full((1,) * total.radius.ndim, step.offset, dtype=torch.float64)
    total = total.plus(Digits.of(number, most))
    # A number that code divides by is held as its inverse, rounded.
    return replace(total, radius=total.radius + abs(step.offset) * UNIT)


def _multiple(source: Digits, coefficient: float) -> Digits:
    if abs(coefficient) == 1:
        return source if coefficient > 0 else source.negated
    factor = torch.full((1,) * source.radius.ndim, coefficient, dtype=torch.float64)
    image = source.times(Digits.of(factor, source.most))
    return replace(image, radius=image.radius + image.rounded()[0].abs() * UNIT)


@_image.register(Concatenation)
def _(step: Concatenation, *sources: Digits) -> Digits:
    return Digits.joined(sources, lambda parts: torch.cat(parts, dim=step.axis))


def _binary(number: Any) -> tuple[int, int]:
    """Return a number of mpmath as a whole number and the exponent of a power of 2."""
    sign, mantissa, exponent, _ = number._mpf_
    return -int(mantissa) if sign else int(mantissa), int(exponent)
