"""Where neurons can be while the inputs lie in a box, and what slopes they have there.

Interval arithmetic in float64, rounded outwards. On all of space nothing is known of where a neuron
is, and its slopes are those that it can have at all.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.affine import Matrix
from lipbench.bound import Refused
from lipbench.centred import Centred, Slopes, centre
from lipbench.rounding import UNIT
from lipbench.threat import Box
from lipbench.unrolled import Block, Unrolled

_FUNCTION = 16 * UNIT


class Interval(NamedTuple):
    """Numbers that lie between two ends, entry by entry."""

    lo: Float[Tensor, "rows columns"]
    hi: Float[Tensor, "rows columns"]

    @property
    def largest(self) -> Float[Tensor, "rows columns"]:
        """Return the largest absolute values."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    def times(self, other: "Interval") -> "Interval":
        """Return the products, entry by entry."""
        ends = torch.stack([a * b for a in self for b in other])
        return _outwards(ends.amin(dim=0), ends.amax(dim=0), UNIT * ends.abs().amax(dim=0))


def centred_on(network: Unrolled, domain: Box | None) -> Centred:
    """Return the matrix of a network with the slopes that its neurons have on a domain.

    Neurons that are linear there are multiplied out.

    Raises:
        Refused: If slopes are not bounded.
    """
    return centre(network) if domain is None else centre(network, slopes(network, domain)).bent


def slopes(network: Unrolled, domain: Box | None) -> Slopes:
    """Return the least and the largest slope of each neuron between inputs in a domain.

    Only functions that are linear on both sides of 0 have others there than everywhere.
    """
    if domain is None:
        return [(block.lo, block.hi) for block in network.blocks]
    shape = network.inputs, 1
    known = [Interval(*(torch.full(shape, end, dtype=torch.float64) for end in domain))]
    found = []
    for block in network.blocks:
        reads = combined(block.reads.parts, known, block.reads.offset)
        found.append(_local(block, reads))
        known.append(_range(block, reads))
    return found


def derivatives(network: Unrolled, domain: Box | None) -> Interval:
    """Return where all derivatives of the outputs lie on a domain, outputs × inputs.

    Raises:
        Refused: If slopes are not bounded.
    """
    unit = torch.eye(network.inputs, dtype=torch.float64)
    known = [Interval(unit, unit)]
    for block, (lo, hi) in zip(network.blocks, slopes(network, domain), strict=True):
        if not bool((lo.isfinite() & hi.isfinite()).all()):
            raise Refused(f"step {block.name!r} has slopes that are not bounded.")
        reads = combined(block.reads.parts, known)
        known.append(reads.times(Interval(lo.unsqueeze(1), hi.unsqueeze(1))))
    return combined(network.output.parts, known)


def combined(
    parts: Mapping[int, Matrix], known: list[Interval], offset: Matrix | None = None
) -> Interval:
    """Return sums of known numbers, with the weights of an affine map."""
    rows = [part.values.shape[0] for part in parts.values()] or [
        len(offset.values) if offset else 0
    ]
    middle = torch.zeros(rows[0], known[0].lo.shape[1], dtype=torch.float64)
    spread, size = torch.zeros_like(middle), torch.zeros_like(middle)
    terms = 4 + len(parts) + sum(part.values.shape[1] for part in parts.values())
    for source, part in parts.items():
        lo, hi = known[source]
        centre_ = lo + (hi - lo) / 2
        half = torch.maximum(hi - centre_, centre_ - lo) * (1 + UNIT)
        weights = part.values.abs()
        middle = middle + part.values @ centre_
        size = size + weights @ centre_.abs()
        spread = spread + weights @ half + part.radius @ (centre_.abs() + half)
    if offset is not None:
        middle, size = middle + offset.values, size + offset.values.abs()
        spread = spread + offset.radius
    reach = (spread + terms * UNIT * size) * (1 + 2 * terms * UNIT)
    return _outwards(middle - reach, middle + reach, UNIT * (middle.abs() + reach))


def _local(block: Block, reads: Interval) -> tuple[Tensor, Tensor]:
    if block.sides is None:
        return block.lo, block.hi
    left, right = block.sides
    lo, hi = reads.lo.squeeze(1), reads.hi.squeeze(1)
    least, most = torch.minimum(left, right), torch.maximum(left, right)
    is_right, is_left = lo >= 0, hi <= 0
    return (
        torch.where(is_right, right, torch.where(is_left, left, least)),
        torch.where(is_right, right, torch.where(is_left, left, most)),
    )


def _range(block: Block, reads: Interval) -> Interval:
    """Return the values of neurons that read numbers in an interval."""
    lo, hi = reads.lo.T, reads.hi.T
    steep = torch.maximum(block.lo.abs(), block.hi.abs())
    one, other = block.function(lo), block.function(hi)
    least, most = torch.minimum(one, other), torch.maximum(one, other)
    if block.sides is not None:
        crosses = (lo < 0) & (hi > 0)
        least = torch.where(crosses, least.clamp_max(0), least)
        most = torch.where(crosses, most.clamp_min(0), most)
    else:
        # Away from the ends no farther than a slope allows, unless the function is monotone.
        turns = (block.lo < 0) & (block.hi > 0)
        half = torch.where(turns, steep * (hi - lo) / 2 * (1 + 4 * UNIT), 0.0)
        least, most = least - half, most + half
    slack = _FUNCTION * steep.clamp_min(1) * (1 + reads.largest.T + most.abs() + least.abs())
    found = _outwards(least, most, slack)
    return Interval(found.lo.T, found.hi.T)


def _outwards(lo: Tensor, hi: Tensor, slack: Tensor) -> Interval:
    return Interval(lo - slack, hi + slack)
