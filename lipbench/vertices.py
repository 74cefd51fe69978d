"""The largest norm of a matrix whose slopes lie between two ends, from all of its corners.

The matrix of a network is affine in the slope of each neuron, and a norm of it is convex in each:
over a box of slopes the largest norm is that of a corner. No corner is left out, so nothing is
known that would be better without looking at where the neurons are.
"""

import math
from collections.abc import Mapping, Sequence

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
    found = _output(network, [_corners(lo, hi) for lo, hi in slopes])
    # What rounding adds is no more than a share of what the absolute values come to.
    steepest = [torch.maximum(lo.abs(), hi.abs()).unsqueeze(0) for lo, hi in slopes]
    whole = _output(network, steepest, absolute=True)
    terms = network.inputs + 4 * (1 + sum(map(len, network.blocks)))
    largest, size = (float(_norms(one, norm).max()) for one in (found, whole))
    return (largest + terms * UNIT * size) * (1 + 1e-12 * max(found.shape[1:]))


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
    for number, (block, rows) in enumerate(zip(network.blocks, slopes, strict=True), 1):
        reads = _combined(block.reads, known, absolute)
        bent = reads.unsqueeze(1) * rows.unsqueeze(0).unsqueeze(-1)
        # A matrix that is one for all corners stays one.
        known = {
            source: value if len(value) == 1 else value.repeat_interleave(len(rows), dim=0)
            for source, value in known.items()
        }
        known[number] = bent.flatten(0, 1)
    return _combined(network.output, known, absolute)


def _combined(
    value: Affine, known: Mapping[int, Tensor], absolute: bool
) -> Float[Tensor, "corners numbers inputs"]:
    total = torch.zeros(1, len(value), known[0].shape[2], dtype=torch.float64)
    for source, part in value.parts.items():
        matrix = part.values.abs() if absolute else part.values
        total = total + matrix @ known[source]
    return total


def _norms(matrices: Float[Tensor, "corners outputs inputs"], norm: Norm) -> Tensor:
    sums = matrices.abs().sum(dim=2 if norm == math.inf else 1)
    return sums.amax(dim=1)
