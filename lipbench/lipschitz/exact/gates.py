"""ReLU gates on a box: open, closed or undecided, and derivatives that pass through them.

A neuron s(z) = left·z + (right - left)·relu(z) has a gate, which is open to the right of 0. The
derivatives of the outputs pass the same gates: a column of the Jacobian forwards, a row of it
backwards. The norm 1 is the largest sum of absolute values of a column, the norm infinity that of a
row.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.decisions import Decision
from lipbench.lipschitz.relaxations.intervals import Interval, combined
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Columns or rows of the Jacobian as affine functions of derivatives behind gates."""

    starts: Matrix
    """What arrives at each gate, neurons × columns or rows, besides what passed other gates."""
    passes: Matrix
    """Its weights for what passed other gates."""
    ends: Matrix
    """The entries, outputs × columns or inputs × rows, besides what passed gates."""
    collects: Matrix
    """Their weights for what passed gates."""

    def only(self, number: int) -> "Passage":
        """Return the passage of one column or row."""
        starts, ends = (
            _each(matrix, lambda tensor: tensor[:, [number]]) for matrix in (self.starts, self.ends)
        )
        return Passage(starts=starts, passes=self.passes, ends=ends, collects=self.collects)


@dataclass(frozen=True, kw_only=True, eq=False)
class GateBounds:
    """Interval bounds of a column or row of the Jacobian after decisions, and what they use."""

    passage: Passage
    reads: Interval
    """Of the pre-activations."""
    sides: Int[Tensor, " neurons"]
    """1 right of 0, -1 left of it, 0 where both are possible."""
    arrives: Interval
    """Of the derivatives that arrive at gates."""
    entries: Interval
    """Of the derivatives whose absolute values are summed."""

    @property
    def total(self) -> float:
        """Return the largest sum of absolute values, rounded up."""
        largest = self.entries.largest
        total = float(largest.sum()) * (1 + 1e-12 * len(largest))
        return total if math.isfinite(total) else math.inf


class Gates:
    """The gates of one network on one box.

    Decisions are about gates, and about signs of the derivatives that are summed, which are
    numbered after the gates.
    """

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box) -> None:
        """Read the network.

        Raises:
            Refused: If a neuron is no piecewise linear function with one bend at 0.
        """
        self.domain, self.inputs = domain, network.inputs
        ends, left, right = [0], [], []
        for block in network.blocks:
            if block.sides is None:
                raise Refused(f"step {block.name!r} is not linear on both sides of 0.")
            left.append(block.sides[0])
            right.append(block.sides[1])
            ends.append(ends[-1] + len(block))
        self.neurons = ends[-1]
        none = torch.zeros(0, dtype=torch.float64)
        self.left, self.right = torch.cat([none, *left]), torch.cat([none, *right])
        reads = [block.reads for block in network.blocks]
        self.weights = _stacked(reads, network.inputs, ends)
        self.offset = joined([affine.offset for affine in reads], 1)
        self.output = _stacked([network.output], network.inputs, ends)
        self._blocks = [slice(*limits) for limits in pairwise(ends)]
        (inner, within), (outer, last) = (
            tuple(columns(matrix, source) for source in self._sources)
            for matrix in (self.weights, self.output)
        )
        self._backwards = math.isinf(norm)
        if self._backwards:
            last, within, outer, inner = (
                transposed(matrix) for matrix in (last, within, outer, inner)
            )
            self._passage = Passage(starts=last, passes=within, ends=outer, collects=inner)
        else:
            self._passage = Passage(starts=inner, passes=within, ends=outer, collects=last)

    @property
    def sums(self) -> int:
        """Return how many columns or rows the Jacobian has."""
        return self._passage.ends.values.shape[1]

    @property
    def decisions(self) -> int:
        """Return how many gates, and signs in one column or row, there are."""
        return self.neurons + len(self._passage.ends.values)

    def bounds(self, number: int, path: Iterable[Decision] = ()) -> GateBounds:
        """Return interval bounds of a column or row after decisions.

        What contradicts the decisions is cut off; where nothing is left, a point stays.
        """
        decided = torch.zeros(self.decisions, dtype=torch.int64)
        for variable, right in path:
            decided[variable] = 1 if right else -1
        passage = self._passage.only(number)
        reads, sides = self._reads(decided[: self.neurons])
        arrives, passed = self._arrives(passage, sides)
        entries = combined({0: passage.collects}, [passed], passage.ends)
        return GateBounds(
            passage=passage,
            reads=reads,
            sides=sides,
            arrives=arrives,
            entries=_cut(entries, decided[self.neurons :]),
        )

    def sides(self, points: Float[Tensor, "points inputs"]) -> Bool[Tensor, "points neurons"]:
        """Return which neurons are right of 0 at points, up to rounding."""
        inputs, inner = self._sources
        known = points.new_zeros(len(points), self.inputs + self.neurons)
        known[:, inputs] = points
        sides = torch.zeros(len(points), self.neurons, dtype=torch.bool)
        for block in self._blocks:
            reads = known @ self.weights.values[block].T + self.offset.values[block, 0]
            sides[:, block] = reads > 0
            known[:, inner][:, block] = self._slopes(reads > 0, block) * reads
        return sides

    def matrices(
        self, sides: Bool[Tensor, "points neurons"]
    ) -> Float[Tensor, "points outputs inputs"]:
        """Return the Jacobian where neurons are on these sides, up to rounding."""
        inputs, inner = self._sources
        known = self.right.new_zeros(len(sides), self.inputs + self.neurons, self.inputs)
        known[:, inputs] = torch.eye(self.inputs, dtype=torch.float64)
        for block in self._blocks:
            slopes = self._slopes(sides[:, block], block).unsqueeze(2)
            known[:, inner][:, block] = slopes * (self.weights.values[block] @ known)
        return self.output.values @ known

    @property
    def _sources(self) -> tuple[slice, slice]:
        """Return the columns of the inputs, and those of the neurons."""
        return slice(0, self.inputs), slice(self.inputs, self.inputs + self.neurons)

    def _slopes(self, is_right: Tensor, block: slice) -> Tensor:
        return torch.where(is_right, self.right[block], self.left[block])

    def _reads(self, decided: Tensor) -> tuple[Interval, Tensor]:
        """Return interval bounds of the pre-activations, and the sides of the gates."""
        inputs, inner = self._sources
        known, reads = _zeros(self.inputs + self.neurons), _zeros(self.neurons)
        sides = decided.clone()
        for ends, value in zip(known, self.domain, strict=True):
            ends[inputs] = value
        for block in self._blocks:
            weights, offset = (_rows(matrix, block) for matrix in (self.weights, self.offset))
            lo, hi = here = _cut(combined({0: weights}, [known], offset), decided[block])
            settled = torch.where(lo >= 0, 1, torch.where(hi <= 0, -1, 0)).squeeze(1)
            sides[block] = torch.where(decided[block] == 0, settled, decided[block])
            values = self._values(block, here)
            for end in (0, 1):
                reads[end][block] = here[end]
                known[end][inner][block] = values[end]
        return reads, sides

    def _values(self, block: slice, reads: Interval) -> Interval:
        ends = torch.stack([self._slopes(end.T > 0, block).T * end for end in reads])
        least, most = ends.amin(dim=0), ends.amax(dim=0)
        crosses = (reads.lo < 0) & (reads.hi > 0)
        least = torch.where(crosses, least.clamp_max(0), least)
        most = torch.where(crosses, most.clamp_min(0), most)
        return Interval(least - UNIT * least.abs(), most + UNIT * most.abs())

    def _arrives(self, passage: Passage, sides: Tensor) -> tuple[Interval, Interval]:
        """Return interval bounds of the derivatives before gates, and behind them."""
        before, behind = _zeros(self.neurons), _zeros(self.neurons)
        ends = torch.stack([self.left, self.right])
        least, most = (
            torch.where(sides == 0, end, torch.where(sides > 0, self.right, self.left)).unsqueeze(1)
            for end in (ends.amin(dim=0), ends.amax(dim=0))
        )
        for block in self._blocks[::-1] if self._backwards else self._blocks:
            weights, offset = (_rows(matrix, block) for matrix in (passage.passes, passage.starts))
            here = combined({0: weights}, [behind], offset)
            passed = here.times(Interval(least[block], most[block]))
            for end in (0, 1):
                before[end][block], behind[end][block] = here[end], passed[end]
        return before, behind


def columns(matrix: Matrix, chosen: slice | Tensor) -> Matrix:
    """Return some columns."""
    return _each(matrix, lambda tensor: tensor[:, chosen])


def transposed(matrix: Matrix) -> Matrix:
    """Return the transpose."""
    return _each(matrix, lambda tensor: tensor.T)


def joined(matrices: Sequence[Matrix], width: int) -> Matrix:
    """Return matrices stacked below each other, each with `width` columns."""
    none = torch.zeros(0, width, dtype=torch.float64)
    return Matrix(
        values=torch.cat([none, *(matrix.values for matrix in matrices)]),
        radius=torch.cat([none, *(matrix.radius for matrix in matrices)]),
    )


def _each(matrix: Matrix, change: Callable[[Tensor], Tensor]) -> Matrix:
    return Matrix(values=change(matrix.values), radius=change(matrix.radius))


def _rows(matrix: Matrix, block: slice) -> Matrix:
    return Matrix(values=matrix.values[block], radius=matrix.radius[block])


def _stacked(numbers: Sequence[Affine], inputs: int, ends: Sequence[int]) -> Matrix:
    """Return the matrices of affine numbers as one: columns are inputs, then all neurons."""
    spans = [(0, inputs), *((inputs + start, inputs + stop) for start, stop in pairwise(ends))]
    width = inputs + ends[-1]
    rows = []
    for affine in numbers:
        whole = Matrix.exact(torch.zeros(len(affine), width, dtype=torch.float64))
        for source, matrix in affine.matrices.items():
            span = slice(*spans[source])
            whole.values[:, span], whole.radius[:, span] = matrix.values, matrix.radius
        rows.append(whole)
    return joined(rows, width)


def _zeros(count: int) -> Interval:
    lo, hi = torch.zeros(2, count, 1, dtype=torch.float64)
    return Interval(lo, hi)


def _cut(interval: Interval, decided: Tensor) -> Interval:
    """Return the part of an interval with the decided signs, 0 for undecided; never empty."""
    lo, hi = interval
    right, left = (decided > 0).unsqueeze(1), (decided < 0).unsqueeze(1)
    lo, hi = torch.where(right, lo.clamp_min(0), lo), torch.where(left, hi.clamp_max(0), hi)
    return Interval(
        torch.where(left, torch.minimum(lo, hi), lo), torch.where(left, hi, torch.maximum(lo, hi))
    )
