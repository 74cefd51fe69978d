"""Dyadic numbers: exact arithmetic with integers times powers of two, as float64 holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Dyadic:
    """A matrix of integers, each to be divided by 2^exponent."""

    numerators: Shaped[np.ndarray, "rows columns"]
    """Python's integers, which have no largest."""
    exponent: int

    @classmethod
    def of(cls, matrix: Float[Tensor, "rows columns"]) -> "Dyadic":
        """Return the very numbers of a float64 matrix."""
        pairs = [[float(entry).as_integer_ratio() for entry in row] for row in matrix.tolist()]
        bits = [divisor.bit_length() - 1 for row in pairs for _, divisor in row]
        exponent = max(bits, default=0)
        whole = np.empty(tuple(matrix.shape), dtype=object)
        for number, row in enumerate(pairs):
            for column, (top, divisor) in enumerate(row):
                whole[number, column] = top << (exponent - divisor.bit_length() + 1)
        return cls(whole, exponent)

    @classmethod
    def column(cls, entries: Sequence[Fraction]) -> "Dyadic":
        """Return a column of fractions whose denominators are powers of two."""
        exponent = max((entry.denominator.bit_length() - 1 for entry in entries), default=0)
        whole = np.empty((len(entries), 1), dtype=object)
        for row, entry in enumerate(entries):
            whole[row, 0] = int(entry * (1 << exponent))
        return cls(whole, exponent)

    def entry(self, row: int) -> Fraction:
        """Return the number in a row of the first column."""
        return Fraction(int(self.numerators[row, 0]), 1 << self.exponent)

    @property
    def negative(self) -> "Dyadic":
        """Return the matrix times -1."""
        return Dyadic(-self.numerators, self.exponent)

    def times(self, other: "Dyadic") -> "Dyadic":
        """Return the matrix product."""
        exponent, nonzero = self.exponent + other.exponent, other.numerators != 0
        if not len(nonzero) or (nonzero.sum(axis=0) > 1).any():
            return Dyadic(self.numerators.dot(other.numerators), exponent)
        # Columns with one entry choose columns here: as many products as the result has entries.
        chosen, entries = nonzero.argmax(axis=0), other.numerators.sum(axis=0)
        return Dyadic(self.numerators[:, chosen] * entries, exponent)

    def plus(self, other: "Dyadic") -> "Dyadic":
        """Return the sum."""
        exponent = max(self.exponent, other.exponent)
        left, right = (
            matrix.numerators * (1 << (exponent - matrix.exponent)) for matrix in (self, other)
        )
        return Dyadic(left + right, exponent)

    def scaled(self, factors: "Dyadic") -> "Dyadic":
        """Return the rows times the entries of a column."""
        return Dyadic(self.numerators * factors.numerators, self.exponent + factors.exponent)
