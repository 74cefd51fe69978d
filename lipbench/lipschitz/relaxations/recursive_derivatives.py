"""RecurJac: bounds of derivatives, each by a recursion through all layers before it.

The derivatives of what a block of neurons reads are sums of w·s·Y, with s the slope of an earlier
neuron and Y the derivative of what it reads. Interval arithmetic bounds each term by itself. Here
a term whose Y has one sign, or whose slope is one number, is first replaced by a multiple of Y that
is at least as large for every slope: these multiples are a row of weights of the block before, and
are multiplied out before anything else is lost.

Source:
    Zhang, Zhang, Hsieh, RecurJac: An Efficient Recursive Algorithm for Bounding Jacobian Matrix of
    Neural Networks and Its Applications (AAAI 2019), https://arxiv.org/abs/1810.11783, section 3.
    Its layers are a chain; that each block may read all earlier ones, and all rounding, are this
    project's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.entrywise import norm_of_entries
from lipbench.lipschitz.relaxations.intervals import Interval, combined, derivatives, slopes
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.norm import Norm
from lipbench.threat import Box

_FEW = 10**10
"""Products of numbers that take about a second of one core."""

_ROUNDED = 1e-12
"""Share of the larger end up to which the other has its sign: it may be off by rounding."""


def recursive_norm(
    network: NeuronBlocks, norm: Norm, domain: Box | None
) -> tuple[float, Float[Tensor, "outputs inputs"]]:
    """Return a certified Lipschitz constant on a domain, and bounds of all derivatives there.

    It is no larger than that of `interval_norm`.

    Raises:
        Refused: If slopes are not bounded.
    """
    entries = recursive_derivatives(network, domain).largest
    return norm_of_entries(entries, norm), entries


def recursive_derivatives(network: NeuronBlocks, domain: Box | None) -> Interval:
    """Return interval bounds of all derivatives of the outputs on a domain, outputs × inputs.

    The recursion starts from the inputs or from the outputs, whichever takes fewer products, and
    from both if that is cheap: either may be tighter. What they find is cut with what interval
    arithmetic finds.

    Raises:
        Refused: If slopes are not bounded.
    """
    entries = derivatives(network, domain)
    forward = _Flow(
        width=network.inputs,
        reads=(*(block.reads.matrices for block in network.blocks), network.output.matrices),
        sizes=(*map(len, network.blocks), len(network.output)),
        slopes=tuple(
            Interval(lo.unsqueeze(1), hi.unsqueeze(1)) for lo, hi in slopes(network, domain)
        ),
    )
    ahead, back = products(forward.widths), products(forward.widths[::-1])
    if ahead <= max(back, _FEW):
        entries = entries.cut(_Recursion(forward).result())
    if back <= max(ahead, _FEW):
        entries = entries.cut(_Recursion(forward.reversed).result().transposed)
    return entries


def work(widths: Sequence[int]) -> int:
    """Return how many products of numbers it takes, from both ends if it starts from both."""
    ways = products(widths), products(widths[::-1])
    return sum(way for way in ways if way <= max(min(ways), _FEW))


def products(widths: Sequence[int]) -> int:
    """Return how many products of numbers the recursion takes that starts from the inputs.

    Args:
        widths: Inputs, neurons of each block, and outputs; blocks read the one before.
    """
    layers = list(pairwise(widths))
    behind = [sum(reads * width for reads, width in layers[:count]) for count in range(len(layers))]
    blocks = zip(widths[1:], behind, strict=True)
    return 2 * widths[0] * sum(width * before for width, before in blocks)


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """Numbers that are linear in earlier ones, which are multiplied by slopes."""

    width: int
    """Numbers of source 0, with which the flow begins."""
    reads: tuple[Mapping[int, Matrix], ...]
    """Weights of each block, and at last of the result, by the source that they read."""
    sizes: tuple[int, ...]
    """Numbers of each block, and of the result."""
    slopes: tuple[Interval, ...]
    """Slopes of each block, a column."""

    @property
    def widths(self) -> tuple[int, ...]:
        return self.width, *self.sizes

    @property
    def reversed(self) -> "_Flow":
        """Return the transposed flow, from the result to the first numbers."""
        last, (width, *sizes) = len(self.reads), self.widths[::-1]
        # That nothing is read of a block is said by zeros.
        nothing = [torch.zeros(size, width, dtype=torch.float64) for size in sizes]
        reads: list[dict[int, Matrix]] = [{0: Matrix.exact(zeros)} for zeros in nothing]
        for number, matrices in enumerate(self.reads, 1):
            for source, matrix in matrices.items():
                reads[last - source - 1][last - number] = matrix.transposed
        return _Flow(width=width, reads=tuple(reads), sizes=tuple(sizes), slopes=self.slopes[::-1])


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """Linear functions of Y that are at least s·Y, and at most, for all slopes s of a block."""

    above: Float[Tensor, "neurons columns"]
    """The multiples of Y."""
    above_offset: Float[Tensor, "neurons columns"]
    below: Float[Tensor, "neurons columns"]
    below_offset: Float[Tensor, "neurons columns"]
    error: Float[Tensor, "neurons columns"]
    """Rounding error where a row of these multiples is multiplied out, for a weight of 1."""
    read: Bool[Tensor, "neurons columns"]
    """Which of the multiples are not 0."""

    @classmethod
    def of(cls, values: Interval, slopes: Interval, error: Tensor) -> "_Lines":
        above, above_offset = _above(values.lo, values.hi, slopes)
        below, negative = _above(-values.hi, -values.lo, slopes)
        return cls(
            above=above,
            above_offset=above_offset,
            below=below,
            below_offset=-negative,
            error=error,
            read=(above != 0) | (below != 0),
        )


def _above(lo: Tensor, hi: Tensor, slopes: Interval) -> tuple[Tensor, Tensor]:
    """Return A and α with s·Y ≤ A·Y + α for all slopes s and all Y between ends.

    Where Y has both signs and the slope is not one number, A is 0 and α the largest product.
    """
    least, most = slopes
    rising, falling = -lo <= _ROUNDED * hi, hi <= -_ROUNDED * lo
    multiple = torch.where(least == most, least, torch.zeros_like(lo))
    multiple = torch.where(falling, least, torch.where(rising, most, multiple))
    # The largest s·Y is convex in Y: a line is above it if it is so at the ends.
    gaps = [torch.maximum(least * end, most * end) - multiple * end for end in (lo, hi)]
    size = torch.maximum(lo.abs(), hi.abs()) * (least.abs() + most.abs())
    return multiple, torch.maximum(*gaps) + 4 * UNIT * size


class _Recursion:
    """The blocks so far, and where their numbers lie."""

    def __init__(self, flow: _Flow) -> None:
        self.flow = flow
        unit = torch.eye(flow.width, dtype=torch.float64)
        self.known = [Interval(unit, unit)]
        """Numbers of all sources, times their slopes."""
        self.lines: list[_Lines] = []
        self.terms = sum(flow.widths) + 8

    def result(self) -> Interval:
        """Add the blocks, one after the other.

        Returns:
            Interval bounds of the last numbers, one column for each of the first.
        """
        *blocks, last = self.flow.reads
        for matrices, local in zip(blocks, self.flow.slopes, strict=True):
            values = self._values(matrices)
            self.lines.append(_Lines.of(values, local, self._error(matrices, values)))
            self.known.append(values.times(local))
        return self._values(last)

    def _values(self, matrices: Mapping[int, Matrix]) -> Interval:
        plain = combined(matrices, self.known)
        if not any(matrices):  # it reads the first numbers only
            return plain
        rows = {
            source: torch.cat([matrix.values, -matrix.values])
            for source, matrix in matrices.items()
        }
        columns = [self._upper(rows, column) for column in range(self.flow.width)]
        most, least = torch.stack(columns, dim=1).chunk(2)
        spread = sum(
            matrix.radius @ self.known[source].largest for source, matrix in matrices.items()
        )
        slack = spread * (1 + self.terms * UNIT)
        return plain.cut(Interval(-least - slack, most + slack))

    def _error(self, matrices: Mapping[int, Matrix], values: Interval) -> Tensor:
        error = 2 * UNIT * values.largest
        for source, matrix in matrices.items():
            share = matrix.radius + self.terms * UNIT * matrix.values.abs()
            error = error + share @ self.known[source].largest
        return error

    def _upper(self, rows: Mapping[int, Tensor], column: int) -> Float[Tensor, " rows"]:
        """Return numbers that are at least the weighted sums of the sources' numbers."""
        rows = dict(rows)
        total, size, slack = (next(iter(rows.values())).new_zeros(()) for _ in range(3))
        for source in range(len(self.lines), 0, -1):
            if source not in rows:
                continue
            weights, lines = rows.pop(source), self.lines[source - 1]
            up, down = weights.clamp_min(0), weights.clamp_max(0)
            above, below = lines.above_offset[:, column], lines.below_offset[:, column]
            total = total + up @ above + down @ below
            size = size + up @ above.abs() - down @ below.abs()
            read = lines.read[:, column]
            multiples = (
                up[:, read] * lines.above[read, column] + down[:, read] * lines.below[read, column]
            )
            slack = slack + multiples.abs() @ lines.error[read, column]
            for earlier, matrix in self.flow.reads[source - 1].items():
                propagated = multiples @ matrix.values[read]
                if earlier in rows:
                    propagated = propagated + rows[earlier]
                    slack = slack + UNIT * propagated.abs() @ self.known[earlier].largest[:, column]
                rows[earlier] = propagated
        if 0 in rows:
            total, size = total + rows[0][:, column], size + rows[0][:, column].abs()
        return total + (slack + self.terms * UNIT * size) * (1 + self.terms * UNIT)
