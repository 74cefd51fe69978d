"""Jacobian norms on a domain, of all Jacobians at once, by linear relaxation.

Between any two inputs the outputs change by W D W ... D W times the change of the inputs, where
each D is a diagonal of slopes that neurons have between them. Row by row, from the outputs
backwards, this is a network of its own: its numbers are adjoints, and a slope in [m, M] makes of an
adjoint λ a number between min(mλ, Mλ) and max(mλ, Mλ), which bend at 0 alone. So do absolute
values, whose sum is what the norm infinity asks for. For the norm 1 it is columns, forwards.

Source:
    Shi, Wang, Zhang, Kolter, Hsieh, Efficiently Computing Local Lipschitz Constants of Neural
    Networks via Bound Propagation (NeurIPS 2022), https://arxiv.org/abs/2210.07394. Slopes other
    than 0 and 1, all of space, and the norms 1 and 2, are this project's.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.decisions import Decision
from lipbench.lipschitz.relaxations.intervals import Interval, derivatives
from lipbench.lipschitz.relaxations.linear_relaxation import Lines, Relaxation, above, below
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, widths
from lipbench.lipschitz.relaxations.preactivations import on_subdomains
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box

_TOGETHER = 32
"""Cases that are bounded at once."""
_OVERHEAD = 200
"""Products of numbers that take as long as all else that is done with a weight."""


class Case(NamedTuple):
    """A row or a column of all matrices for which some neurons are on known sides."""

    start: int
    path: tuple[Decision, ...] = ()
    """Neurons, and whether they are right of 0."""


class CaseBounds(NamedTuple):
    """Bounds of cases, and how to split these."""

    sums: Float[Tensor, " cases"]
    """Upper bounds of the sums of absolute derivatives."""
    splits: Int[Tensor, " cases"]
    """The neuron whose slope is most worth a decision, -1 if there is none."""


class Jacobians:
    """The Jacobians of a network on a domain, bounded by row or by column."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box | None) -> None:
        """Find where slopes and derivatives lie.

        Raises:
            Refused: If slopes are not bounded.
        """
        self._network, self._domain = network, domain
        maps = [*(block.reads for block in network.blocks), network.output]
        sizes = [network.inputs, *map(len, maps)]
        self._by_row = _by_row(norm, sizes[0], sizes[-1])
        self._maps = (
            _backwards(maps, sizes) if self._by_row else [_linear(affine) for affine in maps]
        )
        self._starts = sizes[-1] if self._by_row else sizes[0]
        bends = [torch.full((len(block),), block.sides is not None) for block in network.blocks]
        self.is_decidable = torch.cat([*bends, torch.empty(0, dtype=torch.bool)])
        """Which neurons are linear on both sides of 0."""
        whole = on_subdomains(
            network, domain, torch.zeros(len(self.is_decidable), 1, dtype=torch.int64)
        )
        self._reads = whole.reads
        slopes = [(lo.squeeze(1), hi.squeeze(1)) for lo, hi in whole.slopes]
        known = derivatives(network, domain, slopes)
        self._known = Interval(known.lo.T, known.hi.T) if self._by_row else known

    @property
    def whole(self) -> list[Case]:
        """Return all rows or columns, with nothing decided."""
        return [Case(start) for start in range(self._starts)]

    def bounds(self, cases: Sequence[Case]) -> CaseBounds:
        """Return bounds of cases, in their order; none depends on what the others are."""
        sums, splits = zip(*[bounds for _, bounds in self._followed(cases)], strict=True)
        return CaseBounds(torch.cat(sums), torch.cat(splits))

    def spectral(self) -> float:
        """Return an upper bound of the norm 2 of all matrices.

        It is the least of the norm of the largest absolute values, that of the middle plus that of
        the half widths, and the geometric mean of the norms 1 and infinity.
        """
        entries, bounds = zip(*self._followed(self.whole), strict=True)
        lo, hi = (torch.cat(ends, dim=1) for ends in zip(*entries, strict=True))
        if not bool((lo.isfinite() & hi.isfinite()).all()):
            return math.inf
        middle = lo + (hi - lo) / 2
        half = torch.maximum(hi - middle, middle - lo) * (1 + UNIT)
        largest, norm = Interval(lo, hi).largest, torch.linalg.matrix_norm
        ways = [
            norm(largest, 2),
            norm(middle, 2) + norm(half, 2),
            (torch.cat([chunk.sums for chunk in bounds]).max() * largest.sum(dim=1).max()).sqrt(),
        ]
        return min(map(float, ways)) * (1 + 1e-12 * max(lo.shape))

    def _followed(self, cases: Sequence[Case]) -> Iterator[tuple[Interval, CaseBounds]]:
        """Yield where derivatives lie, entries × cases, and bounds of cases, some at once."""
        for first in range(0, len(cases), _TOGETHER):
            yield self._bounds(cases[first : first + _TOGETHER])

    def _bounds(self, cases: Sequence[Case]) -> tuple[Interval, CaseBounds]:
        slopes, possible = self._slopes([case.path for case in cases])
        starts = torch.tensor([case.start for case in cases])
        unit = torch.eye(self._starts, dtype=torch.float64)[:, starts]
        relaxation, known_reads = Relaxation(Interval(unit, unit)), []
        *maps, last = self._maps
        for affine, (lo, hi) in zip(maps, slopes, strict=True):
            reads = relaxation.reads(affine, lo < hi)
            lines = Lines(below=below(reads, hi, lo), above=above(reads, lo, hi))
            relaxation.add(affine, reads, lines, reads.times(Interval(lo, hi)))
            known_reads.append(reads)
        relaxed, known = relaxation.reads(last), [end[:, starts] for end in self._known]
        entries = Interval(torch.maximum(relaxed.lo, known[0]), torch.minimum(relaxed.hi, known[1]))
        rise = torch.ones(len(last), 1, dtype=torch.float64)
        lines = Lines(below=below(entries, -rise, rise), above=above(entries, -rise, rise))
        relaxation.add(last, entries, lines, Interval(-entries.largest, entries.largest))
        jointly = relaxation.total()
        # What is no number is not less, and never taken.
        apart = entries.largest.sum(dim=0) * (1 + 1e-12 * len(last))
        sums = torch.where(possible, torch.where(jointly < apart, jointly, apart), 0.0)
        sums = torch.where(sums.isfinite(), sums, torch.inf)
        return entries, CaseBounds(sums, self._splits(known_reads, slopes, sums))

    def _slopes(self, paths: Sequence[tuple[Decision, ...]]) -> tuple[list[Interval], Tensor]:
        """Return slopes after decisions, in the order of the maps, and whether any point is so."""
        different = list(dict.fromkeys(paths))
        sides = torch.zeros(len(self.is_decidable), len(different), dtype=torch.int64)
        for column, path in enumerate(different):
            for neuron, is_right in path:
                sides[neuron, column] = 1 if is_right else -1
        subdomains = on_subdomains(self._network, self._domain, sides, self._reads)
        number = {path: column for column, path in enumerate(different)}
        columns = torch.tensor([number[path] for path in paths])
        slopes = [Interval(lo[:, columns], hi[:, columns]) for lo, hi in subdomains.slopes]
        return slopes[::-1] if self._by_row else slopes, subdomains.possible[columns]

    def _splits(
        self, reads: Sequence[Interval], slopes: Sequence[Interval], sums: Tensor
    ) -> Int[Tensor, " cases"]:
        """Return the neurons whose slope, as far as it is open, can move positive sums most."""
        if not len(self.is_decidable):
            return torch.full_like(sums, -1, dtype=torch.int64)
        count = len(self._maps)
        # How far a sum moves at most with each number of a block.
        effects = [sums.new_zeros(len(affine), len(sums)) for affine in self._maps[:-1]]
        moved = sums.new_ones(len(self._maps[-1]), len(sums))
        for number in range(count, 0, -1):
            if number < count:
                moved = effects[number - 1] * slopes[number - 1].largest
            for source, matrix in self._maps[number - 1].matrices.items():
                if source:
                    effects[source - 1] = effects[source - 1] + matrix.values.abs().T @ moved
        costs = [
            effect * read.largest * (hi - lo)
            for effect, read, (lo, hi) in zip(effects, reads, slopes, strict=True)
        ]
        cost = torch.cat(costs[::-1] if self._by_row else costs)
        most, neuron = (cost * self.is_decidable.unsqueeze(1)).max(dim=0)
        return torch.where((most > 0) & (sums > 0), neuron, -1)


def jacobian_work(network: Network, norm: Norm, domain: Box | None) -> tuple[float, float]:
    """Return about how many products of numbers bounds take: of all rows or columns, and of one."""
    inputs, outputs = (math.prod(shape) for shape in (network.input_shape, network.output_shape))
    sizes = widths(network)
    by_row = _by_row(norm, inputs, outputs)
    each = _work(sizes[::-1] if by_row else sizes, 0)
    reads = 0.0 if domain is None else _work(sizes[:-1], inputs)
    return reads + each * (outputs if by_row else inputs), reads + each


def _work(sizes: Sequence[int], start: int) -> float:
    """Return the products that following lines back takes, from all that reads a block."""
    back = total = 0.0
    for size, earlier in zip(sizes[1:], [start, *sizes[1:]], strict=False):
        total += size * back
        back += size * (earlier + _OVERHEAD)
    return 2 * total


def _by_row(norm: Norm, inputs: int, outputs: int) -> bool:
    return outputs <= inputs if norm == 2.0 else norm == math.inf


def _linear(affine: Affine) -> Affine:
    return Affine(matrices=affine.matrices, offset=_nothing(len(affine)))


def _backwards(maps: Sequence[Affine], sizes: Sequence[int]) -> list[Affine]:
    """Return the maps of adjoints: of the last block's, from the outputs, to the input's."""
    last, adjoints = len(maps), []
    for source in reversed(range(last)):
        matrices = {
            last - reader: Matrix(values=matrix.values.T, radius=matrix.radius.T)
            for reader in range(source + 1, last + 1)
            if (matrix := maps[reader - 1].matrices.get(source)) is not None
        }
        adjoints.append(Affine(matrices=matrices, offset=_nothing(sizes[source])))
    return adjoints


def _nothing(size: int) -> Matrix:
    return Matrix.exact(torch.zeros(size, 1, dtype=torch.float64))
