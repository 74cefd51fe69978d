"""Interval bound propagation: where pre-activations lie on a box, and which slopes they have.

Interval arithmetic in float64, rounded outwards. On all of space nothing is known of where a neuron
is, and its slopes are those that it can have at all.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.loop_transformation import (
    LoopTransformation,
    SlopeBounds,
    loop_transformation,
)
from lipbench.lipschitz.relaxations.magnitudes import widened_box
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlock, NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.refused import Refused
from lipbench.threat import Box

_FUNCTION = 16 * UNIT


class Interval(NamedTuple):
    """Numbers that lie between two ends, entry by entry."""

    lo: Float[Tensor, "*samples rows columns"]
    hi: Float[Tensor, "*samples rows columns"]

    @property
    def largest(self) -> Float[Tensor, "*samples rows columns"]:
        """Return the largest absolute values."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    @property
    def transposed(self) -> "Interval":
        """Return the same with rows as columns."""
        return Interval(self.lo.T, self.hi.T)

    def cut(self, other: "Interval") -> "Interval":
        """Return the numbers that lie in both; an end that is no number says nothing."""
        return Interval(torch.fmax(self.lo, other.lo), torch.fmin(self.hi, other.hi))

    def times(self, other: "Interval") -> "Interval":
        """Return the products, entry by entry."""
        ends = torch.stack([a * b for a in self for b in other])
        return _outwards(ends.amin(dim=0), ends.amax(dim=0), UNIT * ends.abs().amax(dim=0))


def loop_transformation_on(network: NeuronBlocks, domain: Box | None) -> LoopTransformation:
    """Return the matrix of a network with the slopes that its neurons have on a domain.

    Neurons that are linear there are multiplied out.

    Raises:
        Refused: If slopes are not bounded.
    """
    return (
        loop_transformation(network)
        if domain is None
        else loop_transformation(network, slopes(network, domain)).bent
    )


def slopes(network: NeuronBlocks, domain: Box | None) -> SlopeBounds:
    """Return the least and the largest slope of each neuron between inputs in a domain.

    Functions of which only the slopes are known have no others there than everywhere.
    """
    if domain is None:
        return [(block.lo, block.hi) for block in network.blocks]
    shape, ends = (network.inputs, 1), widened_box(domain)
    known = [Interval(*(torch.full(shape, end, dtype=torch.float64) for end in ends))]
    bounds = []
    for block in network.blocks:
        reads = combined(block.reads.matrices, known, block.reads.offset)
        local, values = between(block, reads)
        bounds.append(local)
        known.append(values)
    return bounds


def between(
    block: NeuronBlock, reads: Interval
) -> tuple[tuple[Float[Tensor, " neurons"], Float[Tensor, " neurons"]], Interval]:
    """Return the least and largest slopes of neurons that read numbers in an interval, and values.

    Args:
        block: The neurons.
        reads: One column.
    """
    least, most = local_slopes(block, reads)
    return (least.squeeze(1), most.squeeze(1)), values_between(block, reads)


def derivatives(
    network: NeuronBlocks, domain: Box | None, known_slopes: SlopeBounds | None = None
) -> Interval:
    """Return interval bounds of all derivatives of the outputs on a domain, outputs × inputs.

    Args:
        network: The network.
        domain: The domain.
        known_slopes: Slopes that each neuron has there; None takes those of `slopes`.

    Raises:
        Refused: If slopes are not bounded.
    """
    unit = torch.eye(network.inputs, dtype=torch.float64)
    known = [Interval(unit, unit)]
    local = slopes(network, domain) if known_slopes is None else known_slopes
    for block, (lo, hi) in zip(network.blocks, local, strict=True):
        if not bool((lo.isfinite() & hi.isfinite()).all()):
            raise Refused(f"step {block.name!r} has slopes that are not bounded.")
        reads = combined(block.reads.matrices, known)
        known.append(reads.times(Interval(lo.unsqueeze(1), hi.unsqueeze(1))))
    return combined(network.output.matrices, known)


def combined(
    matrices: Mapping[int, Matrix], known: Sequence[Interval], offset: Matrix | None = None
) -> Interval:
    """Return interval bounds of an affine map of known numbers.

    Args:
        matrices: The weights, by source.
        known: Intervals of the numbers of each source.
        offset: What is added to each column.
    """
    rows = [matrix.values.shape[0] for matrix in matrices.values()] or [
        len(offset.values) if offset else 0
    ]
    middle = torch.zeros(rows[0], known[0].lo.shape[-1], dtype=torch.float64)
    spread, size = torch.zeros_like(middle), torch.zeros_like(middle)
    terms = 4 + len(matrices) + sum(matrix.values.shape[1] for matrix in matrices.values())
    for source, matrix in matrices.items():
        lo, hi = known[source]
        centre = lo + (hi - lo) / 2
        half = torch.maximum(hi - centre, centre - lo) * (1 + UNIT)
        weights = matrix.values.abs()
        middle = middle + matrix.values @ centre
        size = size + weights @ centre.abs()
        spread = spread + weights @ half + matrix.radius @ (centre.abs() + half)
    if offset is not None:
        middle, size = middle + offset.values, size + offset.values.abs()
        spread = spread + offset.radius
    reach = (spread + terms * UNIT * size) * (1 + 2 * terms * UNIT)
    return _outwards(middle - reach, middle + reach, UNIT * (middle.abs() + reach))


def local_slopes(
    block: NeuronBlock, reads: Interval
) -> tuple[Float[Tensor, "neurons columns"], Float[Tensor, "neurons columns"]]:
    """Return the least and largest slopes of neurons that read numbers in an interval."""
    lo, hi = reads
    least, most = block.lo.unsqueeze(1), block.hi.unsqueeze(1)
    if block.sides is not None:
        left, right = (side.unsqueeze(1) for side in block.sides)
        is_right, is_left = lo >= 0, hi <= 0
        return (
            torch.where(is_right, right, torch.where(is_left, left, torch.minimum(left, right))),
            torch.where(is_right, right, torch.where(is_left, left, torch.maximum(left, right))),
        )
    if block.derivative is None:
        return least.expand_as(lo), most.expand_as(hi)
    low, high = block.derivative.between(lo, hi)
    # Where one is no number, these comparisons do not hold.
    return torch.where(low > least, low, least), torch.where(high < most, high, most)


def values_between(block: NeuronBlock, reads: Interval) -> Interval:
    """Return the values of neurons that read numbers in an interval."""
    lo, hi = reads.lo.T, reads.hi.T
    steep = torch.maximum(block.lo.abs(), block.hi.abs())
    stops: tuple[float, ...] = () if block.sides is None else (0.0,)
    if block.derivative is not None:
        stops = block.derivative.stops
    # Where a stop is outside, the end beside it is taken twice.
    points = [lo, hi, *(torch.full_like(lo, stop).clamp(lo, hi) for stop in stops)]
    values = torch.stack([block.function(point) for point in points])
    least, most = values.amin(dim=0), values.amax(dim=0)
    if block.sides is None and block.derivative is None:
        # Away from the ends no farther than a slope allows, unless the function is monotone.
        turns = (block.lo < 0) & (block.hi > 0)
        half = torch.where(turns, steep * (hi - lo) / 2 * (1 + 4 * UNIT), 0.0)
        least, most = least - half, most + half
    slack = _FUNCTION * steep.clamp_min(1) * (1 + reads.largest.T + most.abs() + least.abs())
    widened = _outwards(least, most, slack)
    return Interval(widened.lo.T, widened.hi.T)


def _outwards(lo: Tensor, hi: Tensor, slack: Tensor) -> Interval:
    return Interval(lo - slack, hi + slack)
