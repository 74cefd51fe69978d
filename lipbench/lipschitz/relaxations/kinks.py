"""Kinks: derivatives of networks on small boxes, with each neuron that bends there on one side.

At almost every point a neuron is on one side of where its slope jumps, or its derivative is 0. So
the derivatives on a box are those of one of its cases: a side for each such neuron. In a case they
are known the closer the smaller the box is, whereas an interval that holds the slopes of both sides
stays as wide as they are apart.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.intervals import Interval, combined, local_slopes
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlock, NeuronBlocks

_MOST = 3
"""Neurons that may bend on a box, if it is to be told apart by cases."""


class Cases(NamedTuple):
    """Derivatives by cases."""

    boxes: Int[Tensor, " cases"]
    """The box of each case."""
    derivatives: Interval
    """Bounds of them, cases × outputs × inputs."""


def by_sides(network: NeuronBlocks, reads: Sequence[Interval]) -> Cases | None:
    """Return interval bounds of the derivatives on boxes by cases, None if no box has any.

    Boxes on which no neuron bends, or too many do, are left out.

    Args:
        network: The network.
        reads: What the neurons of each block read on each box, neurons × boxes.
    """
    bends = [_bends(block, read) for block, read in zip(network.blocks, reads, strict=True)]
    counts = sum(bend.sum(dim=0) for bend in bends)
    if isinstance(counts, int) or not bool(((counts > 0) & (counts <= _MOST)).any()):
        return None
    cases = torch.where((counts > 0) & (counts <= _MOST), 2 ** counts.clamp_max(_MOST), 0)
    boxes = torch.arange(len(cases)).repeat_interleave(cases)
    numbers = torch.arange(len(boxes)) - (cases.cumsum(0) - cases)[boxes]
    unit = torch.eye(network.inputs, dtype=torch.float64).expand(len(boxes), -1, -1)
    known, before = [Interval(unit, unit)], torch.zeros_like(cases)
    for block, read, bend in zip(network.blocks, reads, bends, strict=True):
        places = before + bend.cumsum(dim=0) - bend.to(torch.int64)
        is_right = (numbers >> places[:, boxes].clamp_max(_MOST)) & 1 == 1
        side = _on_side(block, Interval(*(end[:, boxes] for end in read)), bend[:, boxes], is_right)
        least, most = local_slopes(block, side)
        slopes = Interval(least.T.unsqueeze(2), most.T.unsqueeze(2))
        known.append(combined(block.reads.matrices, known).times(slopes))
        before = before + bend.sum(dim=0)
    return Cases(boxes, combined(network.output.matrices, known))


def _jumps(block: NeuronBlock) -> list[float]:
    """Return the points at which the slope of neurons jumps."""
    if block.sides is not None:
        return [0.0]
    turns = () if block.derivative is None else block.derivative.turns
    return [point for point, low, high in turns if low < high]


def _bends(block: NeuronBlock, read: Interval) -> Bool[Tensor, "neurons boxes"]:
    """Return whether the slope of a neuron jumps once between two ends."""
    inside = [(read.lo < point) & (point < read.hi) for point in _jumps(block)]
    return torch.stack(inside).sum(dim=0) == 1 if inside else torch.zeros_like(read.lo).bool()


def _on_side(
    block: NeuronBlock,
    read: Interval,
    bends: Bool[Tensor, "neurons cases"],
    is_right: Bool[Tensor, "neurons cases"],
) -> Interval:
    """Return the intervals, of those with a jump the part on one side of it."""
    lo, hi = read
    for point in _jumps(block):
        cut = bends & (read.lo < point) & (point < read.hi)
        lo = torch.where(cut & is_right, math.nextafter(point, math.inf), lo)
        hi = torch.where(cut & ~is_right, math.nextafter(point, -math.inf), hi)
    return Interval(lo, hi)
