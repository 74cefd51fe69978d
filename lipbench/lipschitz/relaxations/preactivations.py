"""Pre-activation bounds (CROWN): where neurons are on a box, closer than intervals tell.

Their slopes there follow, and can follow for subdomains: those points of the box at which some
neurons read numbers of one sign.

Source:
    Zhang, Weng, Chen, Hsieh, Daniel, Efficient Neural Network Robustness Certification with General
    Activation Functions (NeurIPS 2018), https://arxiv.org/abs/1811.00866, table 2 for ReLU. Lines
    of other functions are made of bounds of their slopes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.intervals import Interval, between
from lipbench.lipschitz.relaxations.linear_relaxation import Line, Lines, Relaxation, above, below
from lipbench.lipschitz.relaxations.magnitudes import widened_box
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlock, NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.refused import Refused
from lipbench.threat import Box

_TIE = 1e-6
"""Two heights that differ by less count as equal, so that rounding never decides."""


@dataclass(frozen=True, kw_only=True)
class Subdomains:
    """Pre-activations on subdomains of a box, and the slopes of neurons there."""

    reads: tuple[Interval, ...]
    """Bounds of what each block reads, neurons × subdomains; nothing on all of space."""
    slopes: tuple[Interval, ...]
    """The least and the largest slope of each block's neurons, neurons × subdomains."""
    possible: Bool[Tensor, " subdomains"]
    """Subdomains that may hold points: the others are empty."""


def on_subdomains(
    network: NeuronBlocks,
    domain: Box | None,
    sides: Int[Tensor, "neurons subdomains"],
    known: Sequence[Interval] = (),
) -> Subdomains:
    """Return bounds of pre-activations on subdomains, and the slopes of neurons there.

    Args:
        network: The network.
        domain: The domain.
        sides: What makes up each subdomain: 1 for a neuron that reads no negative number there,
            -1 for one that reads no positive number, and 0 for others, among them all neurons
            that are not linear on both sides of 0.
        known: Where the numbers lie that each block reads, on the whole domain, one column: on a
            subdomain lines may be drawn worse.

    Raises:
        Refused: If slopes are not bounded.
    """
    for block in network.blocks:
        if not bool((block.lo.isfinite() & block.hi.isfinite()).all()):
            raise Refused(f"step {block.name!r} has slopes that are not bounded.")
    block_sides = sides.split([len(block) for block in network.blocks])
    if domain is None:
        ends = [Interval(block.lo.unsqueeze(1), block.hi.unsqueeze(1)) for block in network.blocks]
        everywhere = tuple(map(_decided, network.blocks, ends, block_sides))
        return Subdomains(
            reads=(),
            slopes=everywhere,
            possible=torch.ones(sides.shape[1], dtype=torch.bool),
        )
    least, most = widened_box(domain)
    inputs = torch.ones(network.inputs, sides.shape[1], dtype=torch.float64)
    start = Interval(least * inputs, most * inputs)
    relaxation = Relaxation(start)
    reads, slopes, empty = [], [], torch.zeros(sides.shape[1], dtype=torch.bool)
    for number, (block, side) in enumerate(zip(network.blocks, block_sides, strict=True)):
        bent = None if block.sides is None else (block.lo < block.hi).unsqueeze(1)
        lo, hi = relaxation.reads(block.reads, bent)
        if known:
            lo, hi = torch.maximum(lo, known[number].lo), torch.minimum(hi, known[number].hi)
        lo = torch.where(side > 0, lo.clamp_min(0), lo)
        hi = torch.where(side < 0, hi.clamp_max(0), hi)
        empty = empty | (lo > hi).any(dim=0)
        reads.append(Interval(lo, torch.maximum(lo, hi)))
        local, values = _between(block, reads[-1])
        slopes.append(_decided(block, local, side))
        relaxation.add(block.reads, reads[-1], _lines(block, reads[-1], local), values)
    return Subdomains(reads=tuple(reads), slopes=tuple(slopes), possible=~empty)


def _between(block: NeuronBlock, reads: Interval) -> tuple[Interval, Interval]:
    """Return slopes and values of neurons, subdomain by subdomain."""
    columns = [
        between(block, Interval(lo, hi))
        for lo, hi in zip(reads.lo.split(1, dim=1), reads.hi.split(1, dim=1), strict=True)
    ]
    least, most = (torch.stack([column[0][end] for column in columns], dim=1) for end in (0, 1))
    lo, hi = (torch.cat([column[1][end] for column in columns], dim=1) for end in (0, 1))
    return Interval(least, most), Interval(lo, hi)


def _decided(block: NeuronBlock, local: Interval, sides: Tensor) -> Interval:
    if block.sides is None:
        return Interval(*(end.expand_as(sides) for end in local))
    left, right = (side.unsqueeze(1) for side in block.sides)
    lo, hi = (torch.where(sides < 0, left, torch.where(sides > 0, right, end)) for end in local)
    return Interval(lo, hi)


def _lines(block: NeuronBlock, reads: Interval, local: Interval) -> Lines:
    """Return lines around the values of neurons."""
    if block.sides is not None:
        left, right = (side.unsqueeze(1) for side in block.sides)
        return Lines(below=below(reads, left, right), above=above(reads, left, right))
    # A function less its least slope times p rises, less its largest it falls: it lies between
    # lines of either slope through its ends, and the pair with less height is taken.
    least, most = local
    first, last = (_between(block, Interval(end, end))[1] for end in reads)
    rise, run = last.hi - first.lo, reads.hi - reads.lo
    is_rising = rise - least * run <= (most * run - rise) * (1 + _TIE)
    slope = torch.where(is_rising, least, most)
    low, high = torch.where(is_rising, first.lo, last.lo), torch.where(is_rising, last.hi, first.hi)
    start = torch.where(is_rising, reads.lo, reads.hi)
    end = torch.where(is_rising, reads.hi, reads.lo)
    return Lines(below=_through(low, slope, start, -1), above=_through(high, slope, end, 1))


def _through(value: Tensor, slope: Tensor, point: Tensor, sign: int) -> Line:
    """Return lines through values at points, or a little beyond."""
    share = slope * point
    return Line(slope, value - share + sign * 2 * UNIT * (value.abs() + share.abs()))
