"""Bisection of a box: derivatives bounded on subboxes, halved where they are largest.

A line between two inputs of a box crosses subboxes, one after the other, and no piece of it expands
by more than the largest constant of all subboxes. On a small subbox a network is nearly linear:
derivatives at its centre, and intervals around them that shrink with it, leave little to guess. So
a box of one input or a few is known as exactly as one likes, whatever the activations are; with
more inputs there are too many subboxes.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import count
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.relaxations.intervals import (
    Interval,
    combined,
    local_slopes,
    values_between,
)
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks, as_neuron_blocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

MOST_DEPTH = 60
"""Halvings on the way to a subbox: its number fits an integer of 64 bits."""
_TOGETHER = 64
"""Subboxes that are bounded at once."""


class Subbox(NamedTuple):
    """What is left of a box after `depth` halvings, by each input in turn."""

    depth: int
    number: int
    """Which half was kept each time, as binary digits; the first halving is the highest."""

    @property
    def halves(self) -> "tuple[Subbox, Subbox]":
        """Return the two subboxes that make it up."""
        first = Subbox(self.depth + 1, 2 * self.number)
        return first, Subbox(self.depth + 1, 2 * self.number + 1)


def bisection_bound(
    network: Network, norm: Norm, domain: Box, budget: int, tolerance: float
) -> Lipschitz:
    """Return the largest of the constants of subboxes that make up the domain.

    Args:
        network: The network.
        norm: Norm of inputs and outputs.
        domain: Box that is bisected.
        budget: Most subboxes that are bounded.
        tolerance: No subbox is halved any more when the largest constant is no further than this
            above the largest norm of derivatives at a centre, as a share of it.

    Raises:
        Refused: If a step cannot be read neuron by neuron, or its slopes are not bounded.
    """
    local = _Local(as_neuron_blocks(network), norm, domain)
    queue, order = list[tuple[float, int, Subbox]](), count()
    ahead, met, best, value = [Subbox(0, 0)], 0.0, list[Subbox](), math.inf
    while ahead:
        bounds, centres = local.bounds(ahead)
        for bound, subbox in zip(bounds.tolist(), ahead, strict=True):
            heapq.heappush(queue, (-bound, next(order), subbox))
        met = max(met, *(size for size in centres.tolist() if math.isfinite(size)), 0.0)
        # A half may have a larger bound than the whole, as it has another centre.
        if not best or -queue[0][0] < value:
            best, value = [subbox for _, _, subbox in queue], -queue[0][0]
        budget -= len(ahead)
        ahead = []
        while queue and len(ahead) < min(_TOGETHER, budget - 1):
            bound, _, subbox = queue[0]
            if -bound <= met * (1 + tolerance) or subbox.depth == MOST_DEPTH:
                break
            heapq.heappop(queue)
            ahead += subbox.halves
    if not math.isfinite(value):
        raise Refused("its derivatives are too large for float64.")
    value = above_underflow(network, value)
    return Lipschitz.upper(
        network, value, norm, domain, halvings=torch.tensor(sorted(best), dtype=torch.int64)
    )


def proved_by_subboxes(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored subboxes prove, infinite if they leave anything out."""
    rows = value.proof["halvings"]
    if value.domain is None or rows.ndim != 2 or rows.shape[1] != 2:
        return math.inf
    subboxes = [Subbox(*row) for row in rows.tolist()]
    if not _make_up_all(subboxes):
        return math.inf
    local = _Local(as_neuron_blocks(network), value.norm, value.domain)
    chunks = [subboxes[i : i + _TOGETHER] for i in range(0, len(subboxes), _TOGETHER)]
    return max(float(local.bounds(chunk)[0].max()) for chunk in chunks)


def products(network: Network) -> int:
    """Return how many products of numbers bound one subbox."""
    inputs = network.input_size
    return (4 * inputs + 4) * network.weights


def _make_up_all(subboxes: Sequence[Subbox]) -> bool:
    """Return whether subboxes lie side by side from one end of the halvings to the other."""
    end = Fraction(0)
    for subbox in sorted(
        subboxes, key=lambda subbox: Fraction(subbox.number, 2 ** max(subbox.depth, 0))
    ):
        size = Fraction(1, 2 ** max(subbox.depth, 0))
        if not 0 <= subbox.depth <= MOST_DEPTH or subbox.number * size != end:
            return False
        end += size
    return end == 1


class _Local:
    """Bounds of a network on subboxes of a domain."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box) -> None:
        self._network, self._norm, self._domain = network, norm, domain

    def bounds(
        self, subboxes: Sequence[Subbox]
    ) -> tuple[Float[Tensor, " subboxes"], Float[Tensor, " subboxes"]]:
        """Return upper bounds of the constants on subboxes, and norms of derivatives near centres.

        Raises:
            Refused: If slopes are not bounded.
        """
        network = self._network
        centres, reach = self._boxes(subboxes)
        values = [Interval(centres.T, centres.T)]
        unit = torch.eye(network.inputs, dtype=torch.float64).expand(len(subboxes), -1, -1)
        known, middle = [Interval(unit, unit)], [Interval(unit, unit)]
        for block in network.blocks:
            at = combined(block.reads.matrices, values, block.reads.offset)
            slopes = combined(block.reads.matrices, known)
            moves = (slopes.largest @ reach.unsqueeze(2)).squeeze(2).T
            moves = moves * (1 + (network.inputs + 4) * UNIT)
            lo, hi = at.lo - moves, at.hi + moves
            slack = UNIT * (lo.abs() + hi.abs())
            least, most = local_slopes(block, Interval(lo - slack, hi + slack))
            if not bool((least.isfinite() & most.isfinite()).all()):
                raise Refused(f"step {block.name!r} has slopes that are not bounded.")
            values.append(values_between(block, at))
            known.append(slopes.times(Interval(least.T.unsqueeze(2), most.T.unsqueeze(2))))
            mean = torch.stack(local_slopes(block, at)).mean(dim=0).T.unsqueeze(2)
            middle.append(combined(block.reads.matrices, middle).times(Interval(mean, mean)))
        centre = combined(network.output.matrices, middle).largest
        return self._norms(combined(network.output.matrices, known)), self._norm_of(centre)

    def _boxes(self, subboxes: Sequence[Subbox]) -> tuple[Tensor, Tensor]:
        """Return centres, and at least half the lengths, subboxes × inputs."""
        lo, hi = map(Fraction, self._domain)
        centres, reach = [], []
        for subbox in subboxes:
            digits = [subbox.number >> (subbox.depth - 1 - i) & 1 for i in range(subbox.depth)]
            for axis in range(self._network.inputs):
                bits = digits[axis :: self._network.inputs]
                start = sum(
                    (Fraction(digit, 2 ** (i + 1)) for i, digit in enumerate(bits)), Fraction(0)
                )
                half = Fraction(1, 2 ** (len(bits) + 1))
                exact = lo + (hi - lo) * (start + half)
                centre = float(exact)
                centres.append(centre)
                reach.append(
                    float((hi - lo) * half + abs(exact - Fraction(centre))) * (1 + 2 * UNIT)
                )
        boxes = torch.tensor([centres, reach], dtype=torch.float64)
        first, second = boxes.view(2, len(subboxes), self._network.inputs)
        return first, second

    def _norms(self, entries: Interval) -> Float[Tensor, " subboxes"]:
        """Return the largest norms that matrices with entries in intervals can have."""
        middle = entries.lo + (entries.hi - entries.lo) / 2
        half = torch.maximum(entries.hi - middle, middle - entries.lo) * (1 + UNIT)
        apart = self._norm_of(middle) + self._norm_of(half)
        whole = self._norm_of(entries.largest)
        return torch.minimum(apart, whole) * (1 + 1e-12 * sum(middle.shape[1:]))

    def _norm_of(
        self, matrices: Float[Tensor, "subboxes rows columns"]
    ) -> Float[Tensor, " subboxes"]:
        if not matrices[0].numel():
            return matrices.new_zeros(len(matrices))
        # LAPACK takes no norm of what is not finite.
        is_finite = matrices.flatten(1).isfinite().all(dim=1)
        finite = torch.where(is_finite.view(-1, 1, 1), matrices, 0.0)
        norms = torch.linalg.matrix_norm(finite, float(self._norm))
        return torch.where(is_finite, norms, math.inf)
