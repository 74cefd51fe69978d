"""Linear combinations that a forward pass writes with Python's operators."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

Operand = Any
"""A value of the network, as a node of its trace, or a number."""


@dataclass(frozen=True)
class Combination:
    """A sum of values with coefficients, and a number."""

    terms: tuple[tuple[float, fx.Node], ...]
    offset: float

    @classmethod
    def of(cls, operand: Operand) -> "Combination":
        """Return an operand as a combination.

        Raises:
            ValueError: If it is neither a value nor a finite number.
        """
        if isinstance(operand, fx.Node):
            return cls(((1.0, operand),), 0.0)
        return cls((), _number(operand))

    def plus(self, other: "Combination") -> "Combination":
        """Return the sum of both."""
        return Combination(self.terms + other.terms, self.offset + other.offset)

    def each(self, change: Callable[[float], float]) -> "Combination":
        """Return it with every coefficient, and the number, changed by a linear function."""
        terms = tuple((_number(change(coefficient)), node) for coefficient, node in self.terms)
        return Combination(terms, change(self.offset))


def add(input: Operand, other: Operand, *, alpha: Operand = 1) -> Combination:
    """Return input + alpha·other."""
    factor = _number(alpha)
    return Combination.of(input).plus(Combination.of(other).each(lambda x: factor * x))


def subtract(input: Operand, other: Operand, *, alpha: Operand = 1) -> Combination:
    """Return input - alpha·other."""
    return add(input, other, alpha=-_number(alpha))


def multiply(input: Operand, other: Operand) -> Combination:
    """Return input·other, of which one must be a number.

    Raises:
        ValueError: If both are values.
    """
    first, second = Combination.of(input), Combination.of(other)
    if first.terms and second.terms:
        raise ValueError("a product of two values has no constant on all of space")
    values, factor = (first, second.offset) if first.terms else (second, first.offset)
    return values.each(lambda x: factor * x)


def divide(input: Operand, other: Operand) -> Combination:
    """Return input / other, of which the second must be a number.

    Raises:
        ValueError: If it is none, or 0.
    """
    divisor = Combination.of(other)
    if divisor.terms or divisor.offset == 0:
        raise ValueError("only a number other than 0 can divide")
    return Combination.of(input).each(lambda x: x / divisor.offset)


def negate(input: Operand) -> Combination:
    """Return -input."""
    return multiply(input, -1)


def keep(input: Operand) -> Combination:
    """Return the input."""
    return Combination.of(input)


def _number(value: Operand) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
