"""Unit scale: a linear step whose weights are near 1, so that no square of one vanishes."""

import math
from dataclasses import replace
from typing import TypeVar

from lipbench.lipschitz.relaxations.rounding import LEAST
from lipbench.networks.steps import Linear

_Step = TypeVar("_Step", bound=Linear)


def at_unit_scale(step: _Step) -> tuple[_Step, float]:
    """Return a step in float64 without bias, its weights over a power of 2, and that power.

    The largest weight is from 1/2 to 2. Weights that are 10⁻³⁰⁸ times smaller may be rounded.
    """
    weight = step.weight.detach().double()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not 0 < largest < math.inf:
        return replace(step, weight=weight, bias=None), 1.0
    exponent = min(math.frexp(largest)[1], 1023)  # 2^1024 is no float64
    # In two parts, neither of which overflows: a power of 2 changes no digit.
    first = exponent // 2
    for part in (first, exponent - first):
        weight = weight * math.ldexp(1.0, -part)
    return replace(step, weight=weight, bias=None), math.ldexp(1.0, exponent)


def at_scale(value: float, unit: float) -> float:
    """Return a bound at unit scale times the unit, rounded upwards where it is not exact."""
    product = value * unit
    # A power of 2 changes no digit of what stays a normal number.
    return math.nextafter(product, math.inf) if value and product < 2 * LEAST else product


def widened(value: float, share: float) -> float:
    """Return a non-negative number and a share of it more, rounded upwards even below 10⁻³⁰⁸."""
    return max(value * (1 + share), math.nextafter(value, math.inf)) if value else value
