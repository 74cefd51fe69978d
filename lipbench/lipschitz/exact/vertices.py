"""Vertex enumeration: the largest norm of a matrix over all corners of a box of slopes.

The matrix of a network is affine in the slope of each neuron, and a norm of it is convex in each:
over a box of slopes the largest norm is that of a corner. No corner is left out, so nothing is
known that would be better without looking at where the neurons are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.loop_transformation import SlopeBounds
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.norm import Norm

_LARGEST = 2**21
"""Numbers that the matrices of one block may have, of all corners."""
_MOST_PRODUCTS = 3e10
"""Of a look at all corners of a network, which takes a few seconds."""
_MOST = 2**23
"""Numbers that are held at once for it."""
_AT_ONCE = 2**18
"""Numbers of the matrices of some corners: they should stay in the cache."""
_MOST_ROOTS = 3
"""Rows or columns of a matrix whose spectral norm has a formula."""
_BLUR = 1e-13
"""More than rounding makes of a cosine: of the cube of the entries some hundred units."""


def corners_fit(network: NeuronBlocks, undecided: int) -> bool:
    """Return whether there is room for all corners, if so many slopes have two ends."""
    widest = max(map(len, network.blocks), default=1)
    return 2**undecided * widest * network.inputs <= _LARGEST


def all_corners_fit(network: NeuronBlocks, norm: Norm) -> bool:
    """Return whether the norms for all sides of all neurons can be looked at."""
    everywhere = [(block.lo, block.hi) for block in network.blocks]
    return bool(everywhere) and Corners(network, everywhere, norm, 0).fit


def norm_of_corners(network: NeuronBlocks, slopes: SlopeBounds, norm: Norm) -> float:
    """Return the largest norm of the matrix over all slopes between their ends, rounded upwards.

    Args:
        network: The network.
        slopes: The least and the largest slope of each block's neurons.
        norm: 1 or infinity.
    """
    norms = _norms(_output(network, [_corners(lo, hi) for lo, hi in slopes]), norm)
    return float(_upwards(norms.max(), network, slopes, norm))


class Corners:
    """The largest norm for each choice of sides of one block's neurons, those before decided."""

    def __init__(self, network: NeuronBlocks, slopes: SlopeBounds, norm: Norm, number: int) -> None:
        """Take the least and the largest slope of each block's neurons; nothing is computed yet.

        Args:
            network: The network.
            slopes: The two slopes are the same in all blocks before the one that is asked about.
            norm: Norm of inputs and outputs.
            number: The block that is asked about, the first being 0.
        """
        self._network, self._slopes, self._norm, self._number = network, slopes, norm, number

    @property
    def fit(self) -> bool:
        """Return whether all corners can be looked at."""
        codes, *later = (2.0 ** int((lo < hi).sum()) for lo, hi in self._slopes[self._number :])
        rest, widest = math.prod(later), max(map(len, self._network.blocks))
        rows, columns = len(self._network.output), self._network.inputs
        if self._norm == 2.0 and min(rows, columns) > _MOST_ROOTS:
            return False
        # Codes of the block's slopes, and matrices for one of them.
        if codes * widest > _MOST or rest * (rows * columns + widest**2) > _MOST:
            return False
        return codes * rest * rows * columns * widest <= _MOST_PRODUCTS

    def largest(
        self, neurons: Sequence[int], codes: Int[Tensor, " codes"]
    ) -> Float[Tensor, " codes"]:
        """Return the largest norm for each code, rounded upwards.

        Args:
            neurons: Indices of neurons in the block.
            codes: The n-th bit says whether the n-th of these is right of 0. What all others
                have to do with the outputs must not depend on the input.
        """
        sides = self._network.blocks[self._number].sides
        assert sides is not None
        chosen = torch.tensor(list(neurons), dtype=torch.int64)
        left, right = (side[chosen] for side in sides)
        before = [lo.unsqueeze(0) for lo, _ in self._slopes[: self._number]]
        after = [_corners(lo, hi) for lo, hi in self._slopes[self._number + 1 :]]
        matrix = len(self._network.output) * self._network.inputs
        rest = math.prod(map(len, after)) * matrix
        largest = [torch.zeros(0, dtype=torch.float64)]
        for chunk in codes.split(max(1, _AT_ONCE // rest)):
            bits = (chunk.unsqueeze(1) >> torch.arange(len(neurons)) & 1).bool()
            rows = self._slopes[self._number][0].repeat(len(chunk), 1)
            rows[:, chosen] = torch.where(bits, right, left)
            norms = _norms(_output(self._network, [*before, rows, *after]), self._norm)
            largest.append(norms.reshape(len(chunk), -1).amax(dim=1))
        return _upwards(torch.cat(largest), self._network, self._slopes, self._norm)


def _corners(lo: Float[Tensor, " neurons"], hi: Float[Tensor, " neurons"]) -> Tensor:
    """Return one row of slopes for each way to choose an end for all."""
    undecided = (lo < hi).nonzero().squeeze(1)
    bits = torch.arange(2 ** len(undecided)).unsqueeze(1) >> torch.arange(len(undecided)) & 1
    rows = lo.repeat(len(bits), 1)
    rows[:, undecided] = torch.where(bits.bool(), hi[undecided], lo[undecided])
    return rows


def _output(
    network: NeuronBlocks, slopes: Sequence[Tensor], *, absolute: bool = False
) -> Float[Tensor, "corners outputs inputs"]:
    """Return the matrix for each row of slopes of all blocks, each combined with each."""
    known = {0: torch.eye(network.inputs, dtype=torch.float64).unsqueeze(0)}
    last, count = len(network.blocks), 1
    for number, (block, rows) in enumerate(zip(network.blocks, slopes, strict=True), 1):
        # A block that reads the input alone is the same for all choices before it.
        reads = _combined(block.reads, known, absolute).expand(count, -1, -1)
        if number == last:
            return _last(network.output, known, reads, rows, absolute)
        # A matrix that is one for all corners stays one.
        known = {
            source: value if len(value) == 1 else value.repeat_interleave(len(rows), dim=0)
            for source, value in known.items()
        }
        known[number] = (reads.unsqueeze(1) * rows.unsqueeze(0).unsqueeze(-1)).flatten(0, 1)
        count *= len(rows)
    return _combined(network.output, known, absolute)


def _last(
    output: Affine, known: Mapping[int, Tensor], reads: Tensor, rows: Tensor, absolute: bool
) -> Float[Tensor, "corners outputs inputs"]:
    # One product for all slopes of the last block, which are most of the corners.
    before = {source: matrix for source, matrix in output.matrices.items() if source in known}
    total = _combined(replace(output, matrices=before), known, absolute)
    last = next((matrix for source, matrix in output.matrices.items() if source not in known), None)
    if last is None:
        return total.repeat_interleave(len(reads) * len(rows) // len(total), dim=0)
    weights = _weights(last, absolute)
    spread = (rows.unsqueeze(1) * weights).flatten(0, 1)
    matrices = (spread @ reads).unflatten(1, (len(rows), -1))
    return matrices.add_(total.unsqueeze(1)).flatten(0, 1)


def _combined(
    value: Affine, known: Mapping[int, Tensor], absolute: bool
) -> Float[Tensor, "corners numbers inputs"]:
    total = torch.zeros(1, len(value), known[0].shape[2], dtype=torch.float64)
    for source, matrix in value.matrices.items():
        total = total + _weights(matrix, absolute) @ known[source]
    return total


def _weights(matrix: Matrix, absolute: bool) -> Tensor:
    # What is known up to rounding is off by shares of these, as results of products here are.
    return matrix.values.abs() + matrix.radius / UNIT if absolute else matrix.values


def _upwards(norms: Tensor, network: NeuronBlocks, slopes: SlopeBounds, norm: Norm) -> Tensor:
    """Return norms with what rounding may have taken off them."""
    # It is no more than a share of what the absolute values come to.
    steepest = [torch.maximum(lo.abs(), hi.abs()).unsqueeze(0) for lo, hi in slopes]
    size = _norms(_output(network, steepest, absolute=True), norm).max()
    terms = network.inputs + 4 * (1 + sum(map(len, network.blocks)))
    longest = max(len(network.output), network.inputs)
    upper = (norms + terms * UNIT * size) * (1 + 1e-12 * longest)
    # Nothing is known where it overflowed.
    return torch.where(upper.isnan(), math.inf, upper)


def _norms(
    matrices: Float[Tensor, "corners outputs inputs"], norm: Norm
) -> Float[Tensor, " corners"]:
    if norm == 2.0:
        return _spectral(matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT)
    sums = matrices.abs().sum(dim=2 if norm == math.inf else 1)
    return sums.amax(dim=1)


def _spectral(matrices: Float[Tensor, "corners few many"]) -> Float[Tensor, " corners"]:
    """Return spectral norms of matrices with up to three rows, some of them larger by 1e-7."""
    unit = matrices.abs().amax(dim=(1, 2))
    rows = (matrices / torch.where(unit > 0, unit, 1.0).view(-1, 1, 1)).unbind(dim=1)
    if len(rows) == 1:
        return unit * torch.linalg.vector_norm(rows[0], dim=1)
    a, b = rows[0].square().sum(dim=1), rows[1].square().sum(dim=1)
    d = (rows[0] * rows[1]).sum(dim=1)
    if len(rows) == 2:
        return unit * ((a + b) / 2 + torch.hypot((a - b) / 2, d)).sqrt()
    c = rows[2].square().sum(dim=1)
    e, f = ((row * rows[2]).sum(dim=1) for row in rows[:2])
    # The largest root of the cubic in Viete's form, of the matrix without its trace. Where the two
    # largest roots are close the cosine is known to half the digits, so it is rounded upwards.
    mean = (a + b + c) / 3
    a, b = a - mean, b - mean
    c = -(a + b)
    square = (a.square() + b.square() + c.square()) / 6 + (d.square() + e.square() + f.square()) / 3
    radius = square.sqrt()
    determinant = a * (b * c - f.square()) - d * (d * c - e * f) + e * (d * f - b * e)
    cube = square * radius
    turn = torch.where(cube > 0, determinant / (2 * torch.where(cube > 0, cube, 1.0)), 1.0)
    cosine = ((turn + _BLUR).clamp(-1, 1).acos() / 3).cos()
    return unit * (mean + 2 * radius * cosine).sqrt()
