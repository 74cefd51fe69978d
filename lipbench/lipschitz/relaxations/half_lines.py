"""Derivatives on half lines: intervals with infinite ends, for networks of one input.

From the end of a half line every number moves by no more than its derivatives allow: one that only
rises stays above where it began. What is bounded beside that, as behind a sigmoid, is known by the
values of its own layer. So far from 0 activations that saturate are flat, those that become linear
have one slope, and nothing is left of what happens in between.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine
from lipbench.lipschitz.relaxations.intervals import (
    Interval,
    combined,
    local_slopes,
    values_between,
)
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlock, NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.refused import Refused

_FAR, _NEARER = 1e300, 1e150
"""Where functions have become what they are at infinity: a constant, or without end."""


class HalfLines(NamedTuple):
    """Unbounded intervals of one input, each with a point at which its numbers are computed."""

    points: Float[Tensor, " lines"]
    falls: Bool[Tensor, " lines"]
    """Whether an interval has everything below its point."""
    rises: Bool[Tensor, " lines"]
    """Whether it has everything above."""


def derivatives_on(
    network: NeuronBlocks, lines: HalfLines
) -> tuple[Interval, Float[Tensor, "lines outputs 1"]]:
    """Return interval bounds of the derivatives on unbounded intervals, and those at their points.

    Args:
        network: A network of one input.
        lines: The intervals.

    Raises:
        Refused: If slopes are not bounded.
    """
    points = lines.points.unsqueeze(0)
    values, ranges = [Interval(points, points)], [_reached(Interval(points, points), 1.0, lines)]
    unit = torch.ones(len(lines.points), 1, 1, dtype=torch.float64)
    known, there = [Interval(unit, unit)], [Interval(unit, unit)]
    for block in network.blocks:
        at = combined(block.reads.matrices, values, block.reads.offset)
        slopes = combined(block.reads.matrices, known)
        reads = _reached(at, slopes, lines).cut(_combined(block.reads, ranges))
        least, most = local_slopes(block, reads)
        if not bool((least.isfinite() & most.isfinite()).all()):
            raise Refused(f"step {block.name!r} has slopes that are not bounded.")
        values.append(values_between(block, at))
        ranges.append(_values(block, reads))
        known.append(slopes.times(Interval(least.T.unsqueeze(2), most.T.unsqueeze(2))))
        mean = torch.stack(local_slopes(block, at)).mean(dim=0).T.unsqueeze(2)
        there.append(combined(block.reads.matrices, there).times(Interval(mean, mean)))
    matrices = network.output.matrices
    return combined(matrices, known), combined(matrices, there).largest


def _reached(at: Interval, slopes: Interval | float, lines: HalfLines) -> Interval:
    """Return where numbers with such slopes may be on the intervals.

    Args:
        at: Where they are at the points, numbers × lines.
        slopes: Their derivatives on the intervals, lines × numbers × 1.
        lines: The intervals.
    """
    if isinstance(slopes, float):
        slopes = Interval(*(torch.full_like(at.lo, slopes).T.unsqueeze(2) for _ in range(2)))
    may_fall, may_rise = (slopes.lo < 0).squeeze(2).T, (slopes.hi > 0).squeeze(2).T
    down = (may_fall & lines.rises) | (may_rise & lines.falls)
    up = (may_rise & lines.rises) | (may_fall & lines.falls)
    return Interval(at.lo.masked_fill(down, -math.inf), at.hi.masked_fill(up, math.inf))


def _combined(reads: Affine, ranges: list[Interval]) -> Interval:
    """Return interval bounds of affine numbers of ranges that may be infinite.

    A range is a finite one, and what goes on from it without end, upwards or downwards.
    """
    finite, down, up = [], torch.zeros(()), torch.zeros(())
    for source, (lo, hi) in enumerate(ranges):
        falls, rises = lo == -math.inf, hi == math.inf
        least = torch.where(falls, torch.where(rises, 0.0, hi), lo)
        finite.append(Interval(least, torch.where(rises, least, hi)))
        if source not in reads.matrices:
            continue
        matrix = reads.matrices[source]
        positive, negative = (
            (sign * matrix.values + matrix.radius > 0).to(torch.float64) for sign in (1, -1)
        )
        endless = falls.to(torch.float64), rises.to(torch.float64)
        down = down + positive @ endless[0] + negative @ endless[1]
        up = up + positive @ endless[1] + negative @ endless[0]
    inner = combined(reads.matrices, finite, reads.offset)
    return Interval(
        inner.lo.masked_fill(down.expand_as(inner.lo) > 0, -math.inf),
        inner.hi.masked_fill(up.expand_as(inner.hi) > 0, math.inf),
    )


def _values(block: NeuronBlock, reads: Interval) -> Interval:
    """Return the values of neurons that read numbers in intervals that may be infinite."""
    if block.sides is None and block.derivative is None:
        endless = ~(reads.lo.isfinite() & reads.hi.isfinite())
        held = values_between(block, Interval(*(end.masked_fill(endless, 0.0) for end in reads)))
        return Interval(
            held.lo.masked_fill(endless, -math.inf), held.hi.masked_fill(endless, math.inf)
        )
    stops = (0.0,) if block.derivative is None else block.derivative.stops
    between = (torch.full_like(reads.lo, stop).clamp(*reads) for stop in stops)
    ends = [_value(block, point) for point in (*reads, *between)]
    return Interval(
        torch.stack([end.lo for end in ends]).amin(dim=0),
        torch.stack([end.hi for end in ends]).amax(dim=0),
    )


def _value(block: NeuronBlock, points: Float[Tensor, "neurons lines"]) -> Interval:
    """Return interval bounds of the values at points, and of the limits at infinite ones."""
    is_endless = ~points.isfinite()
    finite = points.masked_fill(is_endless, 0.0)
    near = values_between(block, Interval(finite, finite))
    signs = points.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0)
    far, nearer = (block.function((reach * signs).T).T for reach in (_FAR, _NEARER))
    slack = 32 * UNIT * (1 + nearer.abs())
    lo = torch.where(far >= nearer, nearer - slack, -math.inf)
    hi = torch.where(far <= nearer, nearer + slack, math.inf)
    return Interval(torch.where(is_endless, lo, near.lo), torch.where(is_endless, hi, near.hi))
