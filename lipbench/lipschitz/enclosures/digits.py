"""Numbers of many digits: tensors of digits, whose products and sums are exact in float64.

A number is 2^e·Σ d_k·2^(-16k) with a whole d_0 of either sign and whole digits d_1, d_2, ... from 0
to 2^16 - 1, in tensors of float64. A product of two digits has 32 bits, so that 2^21 of them are
added without rounding, in any order: the matrix product of digit tensors is exact, and fast.

Source:
    Ozaki, Ogita, Oishi, Rump, Error-free transformations of matrix multiplication by using fast
    routines of matrix multiplication (Numerical Algorithms 59, 2012),
    https://doi.org/10.1007/s11075-011-9478-1: matrices cut into parts whose products are exact. The
    fixed-point form and the bound of what is cut off are this project's.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.lipschitz.relaxations.rounding import LEAST, UNIT

_BITS = 16
_BASE = 2.0**_BITS
_EXACT = 2.0**52
"""Sums of whole numbers up to here are exact, with room for what is carried."""
_SPARE = 2
"""Digits beyond those wanted that are computed before the rest is cut off."""


class TooWide(Exception):
    """A sum has too many products to be exact."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Digits:
    """Numbers, and how far each may be from the one that is meant."""

    digits: Float[Tensor, "digits batch *shape"]
    """The most significant first."""
    exponent: int
    """e, a multiple of 16."""
    radius: Float[Tensor, "batch *shape"]
    most: int
    """How many digits are kept."""

    @classmethod
    def of(cls, values: Float[Tensor, "batch *shape"], most: int) -> "Digits":
        """Return float64 numbers.

        Args:
            values: The numbers; they are exact, but where one is so much smaller than the largest
                that its digits are not among those that are kept.
            most: How many digits are kept.
        """
        parts = _Parts.of(values.detach(), most)
        digits = list(parts)
        return _settled(torch.stack(digits), parts.exponent, parts.radius, most)

    @classmethod
    def of_binary(
        cls, numbers: Sequence[tuple[int, int]], shape: Sequence[int], most: int
    ) -> "Digits":
        """Return whole numbers times powers of 2.

        Args:
            numbers: Each whole number and the power's exponent, row after row.
            shape: The shape that they have, the batch included.
            most: How many digits are kept.
        """
        logarithms = [abs(whole).bit_length() + power for whole, power in numbers if whole]
        exponent = _BITS * (max(logarithms, default=0) // _BITS)
        unit = exponent - _BITS * (most - 1)
        whole = [_shift(number, power - unit) for number, power in numbers]
        rows = []
        for _ in range(most):
            rows.append([number & (2**_BITS - 1) for number in whole])
            whole = [number >> _BITS for number in whole]
        digits = torch.tensor([whole, *reversed(rows)], dtype=torch.float64).reshape(-1, *shape)
        radius = torch.full(tuple(shape), _power(unit), dtype=torch.float64)
        return _settled(digits, exponent + _BITS, radius, most)

    @classmethod
    def joined(cls, parts: Sequence["Digits"], join: Callable[[list[Tensor]], Tensor]) -> "Digits":
        """Return numbers side by side.

        Args:
            parts: The numbers.
            join: What puts tensors with a batch beside each other.
        """
        exponent = max(part.exponent for part in parts)
        shifted = [_shifted(part, exponent) for part in parts]
        count = max(map(len, shifted))
        rows = [join([_padded(digits, count)[row] for digits in shifted]) for row in range(count)]
        radius = join([part.radius for part in parts])
        return _settled(torch.stack(rows), exponent, radius, parts[0].most)

    def binary(self) -> list[tuple[int, int]]:
        """Return whole numbers and the exponents of powers of 2, without the radius."""
        whole = [0] * self.digits[0].numel()
        for digits in self.digits.flatten(1).tolist():
            whole = [
                (number << _BITS) + int(digit) for number, digit in zip(whole, digits, strict=True)
            ]
        unit = self.exponent - _BITS * (len(self.digits) - 1)
        return [(number, unit) for number in whole]

    @property
    def negated(self) -> "Digits":
        """Return the numbers times -1."""
        return _settled(-self.digits, self.exponent, self.radius, self.most)

    @property
    def negative(self) -> Bool[Tensor, "batch *shape"]:
        """Return which numbers are below 0."""
        return self.digits[0] < 0

    def rounded(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Return float64 numbers, and how far each may be from the one that is meant."""
        total = self.digits[0]
        for digit in self.digits[1:]:
            # The digits so far are few, or the new one is below what they are rounded by.
            total = total * _BASE + digit
        values = _times_power(total, self.exponent - _BITS * (len(self.digits) - 1))
        return values, self.radius + 4 * len(self.digits) * UNIT * values.abs() + LEAST

    def halves(self) -> tuple["Digits", "Digits"]:
        """Return the first half of the batch, and the second."""
        digits, radius = self.digits.chunk(2, dim=1), self.radius.chunk(2)
        first, second = (
            replace(self, digits=part, radius=spread)
            for part, spread in zip(digits, radius, strict=True)
        )
        return first, second

    def in_batch(self) -> "Digits":
        """Return the numbers as one sample."""
        return replace(self, digits=self.digits.unsqueeze(1), radius=self.radius.unsqueeze(0))

    def plus(self, other: "Digits") -> "Digits":
        """Return the sum; shapes are broadcast."""
        exponent = max(self.exponent, other.exponent)
        left, right = (_shifted(number, exponent) for number in (self, other))
        count = max(len(left), len(right))
        left, right = _padded(left, count), _padded(right, count)
        axes = max(left.ndim, right.ndim)
        total = _broadcast(left, axes) + _broadcast(right, axes)
        radius = (self.radius + other.radius) * (1 + UNIT)
        return _settled(total, exponent, radius.expand(total.shape[1:]), self.most)

    def minus(self, other: "Digits") -> "Digits":
        """Return the difference."""
        return self.plus(other.negated)

    def times(self, factors: "Digits") -> "Digits":
        """Return the products with other numbers, entry by entry; shapes are broadcast."""
        axes = max(self.digits.ndim, factors.digits.ndim)
        left = _broadcast(self.digits, axes)
        right = _broadcast(factors.digits, axes)
        functions = (digit.mul for digit in right)
        total = self._sum_of_products(functions, left, 1)
        size, radius = self._size(), self.radius * (1 + UNIT)
        spread = radius * factors._size() + size * factors.radius * (1 + UNIT)
        spread = spread + self.radius * factors.radius
        return self._product(total, factors.exponent, spread, 1)

    def through(
        self,
        linear: Callable[[Tensor, Tensor], Tensor],
        weight: Float[Tensor, "..."],
        fan_in: int,
    ) -> "Digits":
        """Return a linear function of each sample.

        Args:
            linear: From a weight and samples to the results.
            weight: The weight, of exact float64 numbers.
            fan_in: How many products make up one result.

        Raises:
            TooWide: If these are too many to be added exactly.
        """
        parts, share = _Parts.of(weight, self.most), (fan_in + 4) * UNIT

        def of(digit: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: linear(digit, x.flatten(0, 1)).unflatten(0, x.shape[:2])

        functions = map(of, parts)
        total = self._sum_of_products(functions, self.digits, fan_in)
        spread = linear(weight.abs(), self.radius) * (1 + share)
        if bool(parts.radius.any()):
            sizes = self._size() + self.radius
            spread = spread + linear(parts.radius, sizes) * (1 + share)
        return self._product(total, parts.exponent, spread, fan_in)

    def each(self, function: Callable[[Tensor], Tensor], radius: Tensor) -> "Digits":
        """Return what a function does that copies and moves entries, of all digits alike.

        Args:
            function: The function of samples; what it adds are zeros.
            radius: How far each result may be off.
        """
        digits = function(self.digits.flatten(0, 1)).unflatten(0, self.digits.shape[:2])
        return replace(self, digits=digits, radius=radius)

    def chosen(self, function: Callable[[Tensor], Tensor], radius: Tensor) -> "Digits":
        """Return what a function does that chooses entries by their order alone.

        Args:
            function: The function of samples, which does to ranks what it does to numbers.
            radius: How far each result may be off.
        """
        table, ranks = torch.unique(self.digits.flatten(1).T, dim=0, return_inverse=True)
        chosen = function(ranks.double().reshape(self.digits.shape[1:])).long()
        digits = table[chosen.flatten()].T.reshape(-1, *chosen.shape)
        return replace(self, digits=digits, radius=radius)

    def _size(self) -> Tensor:
        """Return upper bounds of the absolute values."""
        values, radius = replace(self, radius=torch.zeros_like(self.radius)).rounded()
        return values.abs() + radius

    def _sum_of_products(
        self, factors: Iterable[Callable[[Tensor], Tensor]], digits: Tensor, terms: int
    ) -> list[Tensor]:
        """Return the sum of what all digits of the factors make of all digits, by place.

        Raises:
            TooWide: If these are too many to be added exactly.
        """
        if terms * len(digits) * _BASE**2 * 2 > _EXACT:
            raise TooWide(f"{terms} products of digits are too many to be added exactly.")
        cut = self.most + _SPARE
        total: list[Tensor] = []
        for place, factor in enumerate(factors):
            count = min(len(digits), cut - place)
            for number, image in enumerate(factor(digits[:count])):
                if place + number < len(total):
                    total[place + number] += image
                else:
                    total.append(image.clone())
        return total

    def _product(self, total: list[Tensor], exponent: int, spread: Tensor, terms: int) -> "Digits":
        exponent += self.exponent
        cut = self.most + _SPARE
        # What lies beyond the cut: no more than so many products, each below 2^32 units, at the
        # first place, and a 2^16th of that at each further one.
        beyond = 2 * terms * self.most * _BASE**2 * _power(exponent - _BITS * cut)
        radius = (spread + beyond + terms * LEAST).expand_as(total[0])
        return _settled(torch.stack(total), exponent, radius, self.most)


@dataclass(kw_only=True, eq=False)
class _Parts:
    """The digits of numbers, one tensor after the other, with the signs of the numbers."""

    rest: Tensor
    """What is left, without signs."""
    sign: Tensor
    exponent: int
    radius: Tensor
    """How far the digits may be from the numbers, when all are taken."""
    most: int

    @classmethod
    def of(cls, values: Tensor, most: int) -> "_Parts":
        size = values.abs()
        largest = float(size.max()) if size.numel() else 0.0
        exponent = _BITS * ((math.frexp(largest)[1] - 1) // _BITS) if largest else 0
        # Smaller ones would be rounded by the scaling.
        lost = size < _power(exponent - _BITS * most)
        return cls(
            rest=_times_power(torch.where(lost, 0.0, size), -exponent),
            sign=values.sign(),
            exponent=exponent,
            radius=torch.where(lost, size, 0.0),
            most=most,
        )

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.most):
            digit = self.rest.floor()
            self.rest = (self.rest - digit) * _BASE
            yield digit * self.sign
            if not bool(self.rest.any()):
                return
        unit = _power(self.exponent - _BITS * (self.most - 1))
        self.radius = self.radius + (self.rest > 0).to(self.rest.dtype) * unit


def _settled(digits: Tensor, exponent: int, radius: Tensor, most: int) -> Digits:
    """Return numbers whose digits are in range again, cut to those that are kept."""
    rows = list(digits.unbind(0))
    for place in range(len(rows) - 1, 0, -1):
        carry = (rows[place] / _BASE).floor()
        rows[place] = rows[place] - carry * _BASE
        rows[place - 1] = rows[place - 1] + carry
    while rows[0].numel() and float(rows[0].abs().max()) >= _BASE:
        carry = (rows[0] / _BASE).floor()
        rows[0] = rows[0] - carry * _BASE
        rows.insert(0, carry)
        exponent += _BITS
    while len(rows) > 1:
        joined = rows[0] * _BASE + rows[1]
        if joined.numel() and float(joined.abs().max()) >= _BASE:
            break
        rows[:2] = [joined]
        exponent -= _BITS
    unit = _power(exponent - _BITS * (most - 1))
    for row in rows[most:]:
        radius = torch.where(row != 0, radius + unit, radius)
    kept = torch.stack(rows[:most])
    return Digits(digits=kept, exponent=exponent, radius=radius, most=most)


def _shifted(number: Digits, exponent: int) -> Tensor:
    places = (exponent - number.exponent) // _BITS
    return torch.cat([number.digits.new_zeros(places, *number.digits.shape[1:]), number.digits])


def _padded(digits: Tensor, count: int) -> Tensor:
    return torch.cat([digits, digits.new_zeros(count - len(digits), *digits.shape[1:])])


def _broadcast(digits: Tensor, axes: int) -> Tensor:
    # Axes of samples are aligned from the right, behind the digits.
    return digits.reshape(len(digits), *[1] * (axes - digits.ndim), *digits.shape[1:])


def _times_power(values: Tensor, exponent: int) -> Tensor:
    # In parts that neither overflow nor vanish.
    for part in (exponent // 2, exponent - exponent // 2):
        values = values * math.ldexp(1.0, max(min(part, 1000), -1000))
    return values


def _power(exponent: int) -> float:
    """Return 2^exponent, rounded up where it has no float64."""
    if exponent > 1023:
        return math.inf
    return max(math.ldexp(1.0, exponent), LEAST)


def _shift(number: int, places: int) -> int:
    return number << places if places >= 0 else number >> -places
