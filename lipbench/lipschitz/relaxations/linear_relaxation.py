"""Linear relaxation (CROWN): lines around activations, propagated backwards.

A block's numbers t are functions, entry by entry, of p = Σ W t' + c, which reads the start and
earlier blocks. Where each lies between two lines in p, a weighted sum of them is at most a weighted
sum of lines, that is of earlier numbers; of the start the least and largest values are known. Lines
of any slope will do if their offsets are rounded outwards: slopes are proposals.

Weights are taken as they were rounded. What this leaves out is at most the rounding times the
largest absolute value of what is weighted, which is known, and is added to the bound at the end.

Source:
    Zhang, Weng, Chen, Hsieh, Daniel, Efficient Neural Network Robustness Certification with General
    Activation Functions (NeurIPS 2018), https://arxiv.org/abs/1811.00866, section 3. Any
    architecture, and the account of rounding, are this project's.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine
from lipbench.lipschitz.relaxations.intervals import Interval, combined
from lipbench.lipschitz.relaxations.rounding import UNIT

_AT_ONCE = 2**18
"""About how many weights of one block are held together: more no longer fit caches."""
_TINY = torch.finfo(torch.float64).tiny
_TIE = 1e-6
"""Two areas that differ by less count as equal, so that rounding never decides."""


class Line(NamedTuple):
    """Lines slope·p + offset, one for each number."""

    slope: Float[Tensor, "numbers cases"]
    offset: Float[Tensor, "numbers cases"]

    @property
    def negative(self) -> "Line":
        """Return the lines times -1."""
        return Line(-self.slope, -self.offset)


class Lines(NamedTuple):
    """Lines that are nowhere above the numbers of a block, and lines that are nowhere below."""

    below: Line
    above: Line


def above(
    reads: Interval, left: Float[Tensor, "numbers _"], right: Float[Tensor, "numbers _"]
) -> Line:
    """Return lines above functions that are 0 at 0, with one slope left of it and one right of it.

    Args:
        reads: Where the lines have to be above them.
        left: The slopes left of 0.
        right: The slopes right of 0.
    """
    lo, hi = reads
    crosses = (lo < 0) & (hi > 0)
    chord = (right * hi - left * lo) / torch.where(crosses, hi - lo, 1.0)
    # Above a function that bends downwards either slope will do: one leaves the smaller area.
    side = torch.where(hi > -lo * (1 + _TIE), right, left)
    bent = torch.where(right > left, chord, side)
    slope = torch.where(crosses, bent, torch.where(lo >= 0, right, left))
    # Their difference is linear on both sides of 0, and largest at an end or there.
    excess = torch.maximum((left - slope) * lo, (right - slope) * hi).clamp_min(0)
    return Line(slope, torch.where(crosses, excess * (1 + 4 * UNIT) + _TINY, 0.0))


def below(
    reads: Interval, left: Float[Tensor, "numbers _"], right: Float[Tensor, "numbers _"]
) -> Line:
    """Return lines below such functions."""
    return above(reads, -left, -right).negative


class Relaxation:
    """Blocks of numbers between lines, each of which reads earlier ones.

    Cases share the weights, and differ in the start and the lines.
    """

    def __init__(self, start: Interval) -> None:
        """Begin with source 0.

        Args:
            start: Where its numbers lie, numbers × cases.
        """
        self._known = [start]
        self._blocks: list[_RelaxedBlock] = []

    def reads(self, affine: Affine, bent: Bool[Tensor, "rows _"] | None = None) -> Interval:
        """Return bounds of affine numbers, rows × cases: those of intervals and those of lines.

        Args:
            affine: Numbers that are affine in the start and the blocks so far.
            bent: Rows, or rows and cases, of which nothing but the side of 0 matters, and matters
                at all. Lines are followed for these alone, where intervals leave the side open;
                None stands for lines for everything.
        """
        interval = combined(affine.matrices, self._known, affine.offset)
        wanted = torch.ones_like(interval.lo, dtype=torch.bool)
        if bent is not None:
            wanted = bent & (interval.lo < 0) & (interval.hi > 0)
        rows = wanted.any(dim=1).nonzero().squeeze(1)
        if not self._blocks or not len(rows):
            return interval
        block = _RelaxedBlock(affine, self._known, interval)
        lo, hi = interval.lo.clone(), interval.hi.clone()
        # No case gains from what others want: its own values do not depend on them.
        lo[rows] = _larger(lo[rows], -self._most_of(block, rows, -1.0), wanted[rows])
        hi[rows] = -_larger(-hi[rows], -self._most_of(block, rows, 1.0), wanted[rows])
        return Interval(lo, hi)

    def add(self, affine: Affine, reads: Interval, lines: Lines, values: Interval) -> None:
        """Add a block.

        Args:
            affine: What it reads.
            reads: Where this lies.
            lines: Lines around the block's numbers where they read that.
            values: Where these lie.
        """
        self._blocks.append(_RelaxedBlock(affine, self._known, reads, lines))
        self._known.append(values)

    def total(self) -> Float[Tensor, " cases"]:
        """Return upper bounds of the sum of the last block's numbers."""
        last = self._blocks[-1]
        weights = torch.ones(last.cases, 1, last.size, dtype=torch.float64)
        return self._back({len(self._blocks): weights}, _Bound.zero(weights)).squeeze(1)

    def _most_of(self, block: "_RelaxedBlock", rows: Int[Tensor, " rows"], sign: float) -> Tensor:
        """Return upper bounds of numbers, or of their negatives, rows × cases."""
        widest = max(block.size, *(len(known.lo) for known in self._known))
        bounds = []
        for chosen in rows.split(max(1, _AT_ONCE // (block.cases * widest))):
            unit = torch.zeros(block.cases, len(chosen), block.size, dtype=torch.float64)
            unit[:, torch.arange(len(chosen)), chosen] = sign
            bounds.append(self._back(*block.through(unit, {}, _Bound.zero(unit))))
        return torch.cat(bounds, dim=1).T

    def _back(self, weights: dict[int, Tensor], bound: "_Bound") -> Float[Tensor, "cases rows"]:
        """Follow weights of sums back to the start, which uses them up.

        Args:
            weights: The weights by source, cases × rows × numbers.
            bound: What is added to the sums.

        Returns:
            Upper bounds of the sums.
        """
        for number in range(len(self._blocks), 0, -1):
            if number not in weights:
                continue
            block, block_weights = self._blocks[number - 1], weights.pop(number)
            block_weights, bound = block.between(block_weights, bound)
            weights, bound = block.through(block_weights, weights, bound)
        if 0 in weights:
            start = self._known[0]
            lo, hi, largest = (_cases_first(end) for end in (*start, start.largest))
            value = weights[0].clamp_min(0) @ hi + weights[0].clamp_max(0) @ lo
            bound = bound.plus(value, weights[0].abs() @ ((len(start.lo) + 4) * UNIT * largest))
        return bound.upper


class _Bound(NamedTuple):
    """The constant part of a bound, and all that rounding may have left out of it."""

    value: Float[Tensor, "cases rows 1"]
    error: Float[Tensor, "cases rows 1"]

    @classmethod
    def zero(cls, weights: Tensor) -> "_Bound":
        zero = weights.new_zeros(*weights.shape[:2], 1)
        return cls(zero, zero)

    def plus(self, value: Tensor, error: Tensor) -> "_Bound":
        total = self.value + value
        return _Bound(total, self.error + error + UNIT * total.abs())

    @property
    def upper(self) -> Float[Tensor, "cases rows"]:
        # The errors are rounded as well, by a much smaller share of them.
        total = self.value + self.error * (1 + 1e-6)
        return (total + UNIT * total.abs()).squeeze(2)


class _RelaxedBlock:
    """A block, and what back-propagation through it takes."""

    def __init__(
        self, affine: Affine, known: list[Interval], reads: Interval, lines: Lines | None = None
    ) -> None:
        self.size, self.cases = reads.lo.shape
        terms = (max(self.size, len(known[0].lo)) + len(known) + 4) * UNIT
        # For each unit of a weight of p: what rounding it, and its products with a row, leave out,
        # and what is not known of that row.
        error = 4 * UNIT * reads.largest + terms * affine.offset.values.abs()
        error = error + affine.offset.radius
        for source, matrix in affine.matrices.items():
            error = error + (terms * matrix.values.abs() + matrix.radius) @ known[source].largest
        self._matrices, offset = dict(affine.matrices), affine.offset.values
        if 0 in self._matrices and torch.equal(known[0].lo, known[0].hi):
            offset = offset + self._matrices.pop(0).values @ known[0].lo
        self._error = _cases_first(error)
        self._offset = _cases_first(offset.expand(-1, self.cases))
        if lines is None:
            return
        self._slopes = [line.slope.T.unsqueeze(1) for line in lines]
        self._offsets = [_cases_first(line.offset) for line in lines]
        self._slack = terms * torch.maximum(*(offset.abs() for offset in self._offsets))

    def between(self, weights: Tensor, bound: _Bound) -> tuple[Tensor, _Bound]:
        """Return weights of the p that a block reads, for weights of its numbers."""
        rise, fall = weights.clamp_min(0), weights.clamp_max(0)
        value = fall @ self._offsets[0] + rise @ self._offsets[1]
        propagated = fall * self._slopes[0] + rise * self._slopes[1]
        return propagated, bound.plus(value, weights.abs() @ self._slack)

    def through(
        self, weights: Tensor, others: dict[int, Tensor], bound: _Bound
    ) -> tuple[dict[int, Tensor], _Bound]:
        """Return weights of earlier numbers, added to others, for weights of p."""
        merged = dict(others)
        for source, matrix in self._matrices.items():
            propagated = weights @ matrix.values
            merged[source] = merged[source] + propagated if source in merged else propagated
        return merged, bound.plus(weights @ self._offset, weights.abs() @ self._error)


def _cases_first(numbers: Float[Tensor, "numbers cases"]) -> Float[Tensor, "cases numbers 1"]:
    return numbers.T.unsqueeze(2)


def _larger(known: Tensor, candidate: Tensor, wanted: Tensor) -> Tensor:
    """Return the larger of two lower bounds where wanted; one that is no number bounds nothing."""
    return torch.where(wanted & candidate.isfinite() & (candidate > known), candidate, known)
