"""Cholesky proof of a convolution's l2 norm: an upper bound, exact up to rounding.

‖W‖ ≤ s holds exactly if s²I - WᵀW has no negative eigenvalue, and a Cholesky factorisation decides
that. Image row after image row the matrix has a band, so that its factors are cheap. Whoever
proposes s need not be trusted.

With M = s²I - WᵀW as it was computed and L the computed factor, M = LLᵀ + E, where |E| is at most
γ|L||L|ᵀ entry by entry. The rows of L have squared lengths near the diagonal entries of M, at most
m, and LLᵀ has no more than min(n, 2b + 1) entries in a row, n the size of M and b its band; so
‖E‖ ≤ γ·m·min(n, 2b + 1). M itself is off by γ'·r·c at most, r and c the largest row and column
sums of |W|. The proof holds for s² plus both.

Source:
    Rump, Verification of Positive Definiteness (BIT Numerical Mathematics 46, 2006),
    https://doi.org/10.1007/s10543-006-0056-1. Higham, Accuracy and Stability of Numerical
    Algorithms (2nd ed., 2002), section 10.1, for the error of the factors.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.operator_norms.dense_and_convolution import upper_norm
from lipbench.lipschitz.operator_norms.unit_scale import at_scale, at_unit_scale
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.steps import Convolution, Linear
from lipbench.norm import Norm

_LEAST = 1e-100  # Squares of what is smaller beside taps of 1 may underflow.


def proved_norm(step: Convolution, claim: float) -> float:
    """Return an upper bound of ‖W‖₂: the claim and its rounding if it holds, else infinity.

    Args:
        step: The convolution.
        claim: What its norm is said not to exceed.
    """
    step, unit = at_unit_scale(step)
    if not _LEAST < claim / unit < math.inf:
        return math.inf
    # Groups are blocks on a diagonal.
    return at_scale(max(_proved(group, claim / unit) for group in _groups(step)), unit)


def band_entries(step: Convolution) -> int:
    """Return how many entries of a band matrix a proof keeps at once."""
    return _cheapest(next(_groups(step))).entries


def band_products(step: Convolution) -> int:
    """Return roughly how many products a proof takes."""
    return step.groups * _cheapest(next(_groups(step))).products


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """WᵀW or WWᵀ, in blocks of image rows.

    A tap leads from a row of outputs to a row of inputs. Rows of the matrix meet where taps lead
    from them to one row of the other side.
    """

    near: Int[Tensor, " ways"]
    """For each way a tap leads: its row in the matrix."""
    far: Int[Tensor, " ways"]
    """Its row on the other side of the convolution."""
    taps: Int[Tensor, " ways"]
    rows: int
    width: int
    """Entries of a row over all channels."""
    is_inner: bool
    """Whether the matrix is WᵀW, whose rows are those of the input."""

    @property
    def offsets(self) -> int:
        """Return how many blocks of a block column may be set, from the diagonal downwards."""
        if not len(self.near):
            return 1
        least, most = (
            self.near.new_zeros(int(self.far.max()) + 1).scatter_reduce(
                0, self.far, self.near, extreme, include_self=False
            )
            for extreme in ("amin", "amax")
        )
        return 1 + int((most - least).max())

    @property
    def entries(self) -> int:
        """Return how many entries these blocks have."""
        return self.rows * self.offsets * self.width**2

    @property
    def products(self) -> int:
        """Return roughly how many products a factorisation takes."""
        return self.entries * self.offsets * self.width

    def blocks(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Return the blocks to which the product of two taps adds, by these taps."""
        meeting = defaultdict(list)
        ways = (self.far, self.near, self.taps)
        for far, near, tap in zip(*(numbers.tolist() for numbers in ways), strict=True):
            meeting[far].append((near, tap))
        blocks = defaultdict(list)
        for ends in meeting.values():
            for (row, tap), (column, second) in product(ends, ends):
                if row >= column:
                    blocks[tap, second].append((column, row - column))
        return blocks


def _proved(step: Convolution, claim: float) -> float:
    """Return the bound that is proved for a convolution in one group."""
    if upper_norm(step, Norm(2)) <= claim:
        return claim
    square = claim * claim
    band = _banded_gram(step).neg_()
    band[:, 0] += square
    size, reach, largest = len(band), band.shape[1] - 1, float(band[:, 0].max())
    if not _is_definite(band):
        return math.inf
    rows, columns = _sums(step.absolute())
    # What reads one entry, or one result: each of these meets all taps of another.
    reads = max(_sums(replace(step, weight=torch.ones_like(step.weight))))
    terms = 2 * (reads + 2) * step.weight[0, 0].numel()
    # UNIT is twice the unit roundoff, and the terms are doubled once more: room for other orders
    # of the sums, for reciprocals of the diagonal, and for the rounding of this line.
    of_factors = 2 * (reach + 4) * UNIT * largest * min(size, 2 * reach + 1)
    of_matrix = 2 * (terms + 4) * UNIT * rows * columns
    return math.sqrt((square + of_factors + of_matrix) * (1 + 8 * UNIT)) * (1 + UNIT)


def _sums(step: Linear) -> tuple[float, float]:
    """Return the largest row and column sum of a matrix that is nowhere negative."""
    ones = step.weight.new_ones
    rows = step.apply(ones(1, *step.input_shape))
    columns = step.adjoint(ones(1, *step.output_shape))
    return float(rows.max()), float(columns.max())


def _is_definite(band: Float[Tensor, "size reach"]) -> bool:
    """Return whether a matrix has a Cholesky factor; its row i holds what is below entry (i, i)."""
    from scipy.linalg import LinAlgError, cholesky_banded

    try:
        # LAPACK keeps diagonals as rows, column by column: the same numbers in the same order.
        factor = cholesky_banded(band.numpy().T, overwrite_ab=True, lower=True, check_finite=False)
    except LinAlgError:
        return False
    return bool(np.isfinite(factor).all())


def _banded_gram(step: Convolution) -> Float[Tensor, "size reach"]:
    """Return WᵀW or WWᵀ, whichever is cheaper; row i is what is below its entry (i, i)."""
    side = _cheapest(step)
    matrices = _rows(step)
    matrices = matrices if side.is_inner else matrices.mT
    width, count = side.width, side.offsets + 1  # one more, of zeros, below
    blocks = step.weight.new_zeros(side.rows * count, width, width)
    for (tap, second), positions in side.blocks().items():
        numbers = torch.tensor([column * count + offset for column, offset in positions])
        gram = matrices[tap].T @ matrices[second]
        blocks.index_add_(0, numbers, gram.expand(len(positions), -1, -1))
    # Entry (c + d, c) of a block column of the given width is the number c·(width + 1) + d·width.
    shape = side.rows, width, side.offsets * width
    strides = count * width**2, width + 1, width
    band = blocks.as_strided(shape, strides).reshape(side.rows * width, -1)
    reach = int(band.any(dim=0).nonzero().max()) if bool(band.any()) else 0
    return band[:, : reach + 1].contiguous()


def _cheapest(step: Convolution) -> _Side:
    """Return the side on which the proof takes fewer products."""
    sources = _sources(step)
    outputs, taps = (sources >= 0).nonzero().unbind(1)
    inputs = sources[outputs, taps]
    (channels, length, *across), (results, count, *wide) = step.input_shape, step.output_shape
    return min(
        _Side(
            near=inputs,
            far=outputs,
            taps=taps,
            rows=length,
            width=channels * math.prod(across),
            is_inner=True,
        ),
        _Side(
            near=outputs,
            far=inputs,
            taps=taps,
            rows=count,
            width=results * math.prod(wide),
            is_inner=False,
        ),
        key=lambda side: side.products,
    )


def _sources(step: Convolution) -> Int[Tensor, "outputs taps"]:
    """Return which row of the image each tap of each row of outputs reads, -1 for zeros."""
    numbers = torch.arange(1, step.input_shape[1] + 1, dtype=torch.float64).reshape(1, 1, -1)
    padded = replace(step, padding=step.padding[:1]).pad(numbers).flatten().long() - 1
    first = torch.arange(step.output_shape[1]) * step.stride[0]
    return padded[first.unsqueeze(1) + torch.arange(step.weight.shape[2]) * step.dilation[0]]


def _rows(step: Convolution) -> Float[Tensor, "taps out in"]:
    """Return the matrix of each tap along the first axis, from row to row, channels last."""
    taps = step.weight.unbind(2)
    if step.weight.ndim == 3:
        return torch.stack(taps)
    (channels, _, *across), (results, _, *wide) = step.input_shape, step.output_shape
    basis = torch.eye(channels * math.prod(across), dtype=torch.float64)
    basis = basis.reshape(-1, *across, channels).movedim(-1, 1)
    matrices = []
    for weight in taps:
        row = replace(
            step,
            weight=weight,
            input_shapes=((channels, *across),),
            output_shape=(results, *wide),
            stride=step.stride[1:],
            padding=step.padding[1:],
            dilation=step.dilation[1:],
        )
        matrices.append(row.apply(basis).movedim(1, -1).flatten(1).T)
    return torch.stack(matrices)


def _groups(step: Convolution) -> Iterator[Convolution]:
    """Return the convolutions side by side of which a grouped one is made."""
    (channels, *lengths), (results, *wide) = step.input_shape, step.output_shape
    shapes = (channels // step.groups, *lengths), (results // step.groups, *wide)
    for weight in step.weight.chunk(step.groups):
        yield replace(
            step, weight=weight, groups=1, input_shapes=shapes[:1], output_shape=shapes[1]
        )
