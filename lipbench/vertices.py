"""The largest norm of a matrix whose slopes lie between two ends, from all of its corners.

The matrix of a network is affine in the slope of each neuron, and a norm of it is convex in each:
over a box of slopes the largest norm is that of a corner. No corner is left out, so nothing is
known that would be better without looking at where the neurons are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.affine import Affine
from lipbench.centred import Slopes
from lipbench.norm import Norm
from lipbench.rounding import UNIT
from lipbench.unrolled import Unrolled

_LARGEST = 2**21
"""Numbers that the matrices of one block may have, of all corners."""
_MOST_PRODUCTS = 3e10
"""Of a look at all corners of a network, which takes a few seconds."""
_MOST = 2**23
"""Numbers that are held at once for it."""
_AT_ONCE = 2**18
"""Numbers of the matrices of some corners of the first block: they should stay in the cache."""


def corners_fit(network: Unrolled, undecided: int) -> bool:
    """Return whether there is room for all corners, if so many slopes have two ends."""
    widest = max(map(len, network.blocks), default=1)
    return 2**undecided * widest * network.inputs <= _LARGEST


def largest_norm(network: Unrolled, slopes: Slopes, norm: Norm) -> float:
    """Return the largest norm of the matrix over all slopes between their ends, rounded upwards.

    Args:
        network: The network.
        slopes: The least and the largest slope of each block's neurons.
        norm: 1 or infinity.
    """
    found = _norms(_output(network, [_corners(lo, hi) for lo, hi in slopes]), norm)
    return float(_upwards(found.max(), network, slopes, norm))


class FirstBlock:
    """The largest norm for each choice of the slopes of a network's first block."""

    def __init__(self, network: Unrolled, slopes: Slopes, norm: Norm) -> None:
        """Take the least and the largest slope of each block's neurons; nothing is computed yet."""
        self._network, self._slopes, self._norm = network, slopes, norm

    @property
    def fits(self) -> bool:
        """Return whether all corners can be looked at."""
        if len(self._slopes) < 2:
            return False
        first, *others = (2.0 ** int((lo < hi).sum()) for lo, hi in self._slopes)
        rest, widest = math.prod(others), max(map(len, self._network.blocks))
        matrix = len(self._network.output) * self._network.inputs
        # Rows of slopes of the first block, and matrices for one of them.
        if first * len(self._network.blocks[0]) > _MOST or rest * (matrix + widest**2) > _MOST:
            return False
        return first * rest * matrix * widest <= _MOST_PRODUCTS

    def largest(self, slopes: Slopes) -> float:
        """Return the largest norm, rounded upwards, if the first block's slopes are between these.

        All others may be anything.
        """
        least_of_all, most_of_all = self._slopes[0]
        places = (least_of_all < most_of_all).nonzero().squeeze(1)
        lo, hi = (end[places] for end in slopes[0])
        codes = torch.arange(len(self._norms))
        for place, (least, most) in enumerate(zip(lo.tolist(), hi.tolist(), strict=True)):
            if least == most:
                is_high = least == float(most_of_all[places[place]])
                codes = codes[(codes >> place & 1) == is_high]
        return float(self._norms[codes].max())

    @cached_property
    def _norms(self) -> Float[Tensor, " corners"]:
        network, slopes = self._network, self._slopes
        first, *others = (_corners(lo, hi) for lo, hi in slopes)
        rest = math.prod(map(len, others)) * len(network.output) * network.inputs
        size = max(1, _AT_ONCE // rest)
        found = []
        for rows in first.split(size):
            norms = _norms(_output(network, [rows, *others]), self._norm)
            found.append(norms.reshape(len(rows), -1).amax(dim=1))
        return _upwards(torch.cat(found), network, slopes, self._norm)


def _corners(lo: Float[Tensor, " neurons"], hi: Float[Tensor, " neurons"]) -> Tensor:
    """Return one row of slopes for each way to choose an end for all."""
    places = (lo < hi).nonzero().squeeze(1)
    bits = torch.arange(2 ** len(places)).unsqueeze(1) >> torch.arange(len(places)) & 1
    rows = lo.repeat(len(bits), 1)
    rows[:, places] = torch.where(bits.bool(), hi[places], lo[places])
    return rows


def _output(
    network: Unrolled, slopes: Sequence[Tensor], *, absolute: bool = False
) -> Float[Tensor, "corners outputs inputs"]:
    """Return the matrix for each row of slopes of all blocks, each combined with each."""
    known = {0: torch.eye(network.inputs, dtype=torch.float64).unsqueeze(0)}
    last = len(network.blocks)
    for number, (block, rows) in enumerate(zip(network.blocks, slopes, strict=True), 1):
        reads = _combined(block.reads, known, absolute)
        if number == last:
            return _last(network.output, known, reads, rows, absolute)
        # A matrix that is one for all corners stays one.
        known = {
            source: value if len(value) == 1 else value.repeat_interleave(len(rows), dim=0)
            for source, value in known.items()
        }
        known[number] = (reads.unsqueeze(1) * rows.unsqueeze(0).unsqueeze(-1)).flatten(0, 1)
    return _combined(network.output, known, absolute)


def _last(
    output: Affine, known: Mapping[int, Tensor], reads: Tensor, rows: Tensor, absolute: bool
) -> Float[Tensor, "corners outputs inputs"]:
    # One product for all slopes of the last block, which are most of the corners.
    others = {source: part for source, part in output.parts.items() if source in known}
    total = _combined(replace(output, parts=others), known, absolute)
    own = next((part for source, part in output.parts.items() if source not in known), None)
    if own is None:
        return total.expand(len(reads) * len(rows), -1, -1)
    matrix = own.values.abs() if absolute else own.values
    spread = (rows.unsqueeze(1) * matrix).flatten(0, 1)
    found = (spread @ reads).unflatten(1, (len(rows), -1))
    return found.add_(total.unsqueeze(1)).flatten(0, 1)


def _combined(
    value: Affine, known: Mapping[int, Tensor], absolute: bool
) -> Float[Tensor, "corners numbers inputs"]:
    total = torch.zeros(1, len(value), known[0].shape[2], dtype=torch.float64)
    for source, part in value.parts.items():
        matrix = part.values.abs() if absolute else part.values
        total = total + matrix @ known[source]
    return total


def _upwards(norms: Tensor, network: Unrolled, slopes: Slopes, norm: Norm) -> Tensor:
    """Return norms with what rounding may have taken off them."""
    # It is no more than a share of what the absolute values come to.
    steepest = [torch.maximum(lo.abs(), hi.abs()).unsqueeze(0) for lo, hi in slopes]
    size = _norms(_output(network, steepest, absolute=True), norm).max()
    terms = network.inputs + 4 * (1 + sum(map(len, network.blocks)))
    longest = max(len(network.output), network.inputs)
    return (norms + terms * UNIT * size) * (1 + 1e-12 * longest)


def _norms(matrices: Float[Tensor, "corners outputs inputs"], norm: Norm) -> Tensor:
    sums = matrices.abs().sum(dim=2 if norm == math.inf else 1)
    return sums.amax(dim=1)
