"""Bisection of a domain: derivatives bounded on subboxes, halved where they are largest.

A line between two inputs of a box crosses subboxes, one after the other, and no piece of it expands
by more than the largest constant of all subboxes. On a small subbox a network is nearly linear:
derivatives at its centre, and intervals around them that shrink with it, leave little to guess. So
a box of one input or a few is known as exactly as one likes, whatever the activations are; with
more inputs there are too many subboxes. The line of all values of one input is halved at 0, each
half line at 1, and what is beyond 2^k at 2^(k + 1); far from 0 little happens.
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
from lipbench.lipschitz.relaxations.half_lines import HalfLines, derivatives_on
from lipbench.lipschitz.relaxations.intervals import (
    Interval,
    combined,
    local_slopes,
    values_between,
)
from lipbench.lipschitz.relaxations.kinks import by_sides
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
    """What is left of a domain after `depth` halvings, of a box by each input in turn."""

    depth: int
    number: int
    """Which half was kept each time, as binary digits; the first halving is the highest."""

    @property
    def halves(self) -> "tuple[Subbox, Subbox]":
        """Return the two subboxes that make it up."""
        first = Subbox(self.depth + 1, 2 * self.number)
        return first, Subbox(self.depth + 1, 2 * self.number + 1)

    @property
    def digits(self) -> list[int]:
        """Return which half was kept each time, from the first halving on."""
        return [self.number >> (self.depth - 1 - i) & 1 for i in range(self.depth)]

    @property
    def on_the_line(self) -> tuple[Fraction | None, Fraction | None]:
        """Return both ends of what is left of the line of all numbers, None where there is none."""
        if not self.depth:
            return None, None
        side, *digits = self.digits
        # On the left the same as on the right, and the other way round.
        outwards = [digit == side for digit in digits]
        doublings = next((i for i, outer in enumerate(outwards) if not outer), len(outwards))
        near = Fraction(2 ** (doublings - 1) if doublings else 0)
        if doublings == len(outwards):
            return (near, None) if side else (None, -near)
        size = 2**doublings - near
        for outer in outwards[doublings + 1 :]:
            size /= 2
            near += size * outer
        return (near, near + size) if side else (-near - size, -near)


def bisection_bound(
    network: Network, norm: Norm, domain: Box | None, budget: int, tolerance: float
) -> Lipschitz:
    """Return the largest of the constants of subboxes that make up the domain.

    Args:
        network: The network.
        norm: Norm of inputs and outputs.
        domain: Box that is bisected; None, for a network of one input, is the line of all numbers.
        budget: Most subboxes that are bounded.
        tolerance: No subbox is halved any more when the largest constant is no further than this
            above the largest norm of derivatives at a centre, as a share of it.

    Raises:
        Refused: If a step cannot be read neuron by neuron, or its slopes are not bounded.
    """
    local = _Local(as_neuron_blocks(network), norm, domain)
    queue, order = list[tuple[float, int, Subbox]](), count()
    ahead, met, steepest = [Subbox(0, 0)], -1.0, Subbox(0, 0)
    best, value = list[Subbox](), math.inf
    while ahead:
        bounds, centres = local.bounds(ahead)
        for bound, subbox in zip(bounds.tolist(), ahead, strict=True):
            heapq.heappush(queue, (-bound, next(order), subbox))
        for size, subbox in zip(centres.tolist(), ahead, strict=True):
            if met < size < math.inf:
                met, steepest = size, subbox
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
        network,
        value,
        norm,
        domain,
        halvings=torch.tensor(sorted(best), dtype=torch.int64),
        centre=local.centre(steepest),
    )


def proved_by_subboxes(network: Network, value: Lipschitz) -> float:
    """Return the constant that the stored subboxes prove, infinite if they leave anything out."""
    rows = value.proof["halvings"]
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.is_floating_point():
        return math.inf
    if value.domain is None and network.input_size != 1:
        return math.inf
    subboxes = [Subbox(*row) for row in rows.tolist()]
    if not _make_up_all(subboxes):
        return math.inf
    local = _Local(as_neuron_blocks(network), value.norm, value.domain)
    chunks = [subboxes[i : i + _TOGETHER] for i in range(0, len(subboxes), _TOGETHER)]
    # The largest of tensors, for one that is no number is larger.
    return float(torch.stack([local.bounds(chunk)[0].max() for chunk in chunks]).max())


def products(network: Network) -> int:
    """Return how many products of numbers bound one subbox."""
    inputs = network.input_size
    return (4 * inputs + 4) * network.weights


def _make_up_all(subboxes: Sequence[Subbox]) -> bool:
    """Return whether subboxes lie side by side from one end of the halvings to the other."""
    if not all(0 <= subbox.depth <= MOST_DEPTH for subbox in subboxes):
        return False
    end = Fraction(0)
    for subbox in sorted(subboxes, key=lambda subbox: Fraction(subbox.number, 2**subbox.depth)):
        size = Fraction(1, 2**subbox.depth)
        if subbox.number * size != end:
            return False
        end += size
    return end == 1


class _Local:
    """Bounds of a network on subboxes of a domain."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box | None) -> None:
        self._network, self._norm, self._domain = network, norm, domain

    def bounds(
        self, subboxes: Sequence[Subbox]
    ) -> tuple[Float[Tensor, " subboxes"], Float[Tensor, " subboxes"]]:
        """Return upper bounds of the constants on subboxes, and norms of derivatives near centres.

        Raises:
            Refused: If slopes are not bounded.
        """
        endless = [number for number, subbox in enumerate(subboxes) if self._is_endless(subbox)]
        bounded = [number for number in range(len(subboxes)) if number not in endless]
        both = torch.zeros(2, len(subboxes), dtype=torch.float64)
        for numbers, bounds in ((bounded, self._bounded), (endless, self._endless)):
            if numbers:
                both[:, numbers] = torch.stack(bounds([subboxes[number] for number in numbers]))
        return both[0], both[1]

    def centre(self, subbox: Subbox) -> Float[Tensor, " inputs"]:
        """Return the centre of a subbox, or the point at which an endless one begins."""
        if self._is_endless(subbox):
            return self._half_lines([subbox]).points
        return self._boxes([subbox])[0][0]

    def _is_endless(self, subbox: Subbox) -> bool:
        return self._domain is None and None in subbox.on_the_line

    def _endless(self, subboxes: Sequence[Subbox]) -> tuple[Tensor, Tensor]:
        entries, there = derivatives_on(self._network, self._half_lines(subboxes))
        return self._norms(entries), self._norm_of(there)

    def _half_lines(self, subboxes: Sequence[Subbox]) -> HalfLines:
        ends = [subbox.on_the_line for subbox in subboxes]
        points = [float(next((end for end in both if end is not None), 0)) for both in ends]
        falls, rises = (torch.tensor([both[side] is None for both in ends]) for side in range(2))
        return HalfLines(torch.tensor(points, dtype=torch.float64), falls, rises)

    def _bounded(self, subboxes: Sequence[Subbox]) -> tuple[Tensor, Tensor]:
        network = self._network
        centres, reach = self._boxes(subboxes)
        values = [Interval(centres.T, centres.T)]
        unit = torch.eye(network.inputs, dtype=torch.float64).expand(len(subboxes), -1, -1)
        known, middle = [Interval(unit, unit)], [Interval(unit, unit)]
        reads = []
        for block in network.blocks:
            at = combined(block.reads.matrices, values, block.reads.offset)
            slopes = combined(block.reads.matrices, known)
            moves = (slopes.largest @ reach.unsqueeze(2)).squeeze(2).T
            moves = moves * (1 + (network.inputs + 4) * UNIT)
            lo, hi = at.lo - moves, at.hi + moves
            slack = UNIT * (lo.abs() + hi.abs())
            reads.append(Interval(lo - slack, hi + slack))
            least, most = local_slopes(block, reads[-1])
            if not bool((least.isfinite() & most.isfinite()).all()):
                raise Refused(f"step {block.name!r} has slopes that are not bounded.")
            values.append(values_between(block, at))
            known.append(slopes.times(Interval(least.T.unsqueeze(2), most.T.unsqueeze(2))))
            mean = torch.stack(local_slopes(block, at)).mean(dim=0).T.unsqueeze(2)
            middle.append(combined(block.reads.matrices, middle).times(Interval(mean, mean)))
        centre = combined(network.output.matrices, middle).largest
        norms = self._norms(combined(network.output.matrices, known))
        cases = by_sides(network, reads)
        if cases is not None:
            either = torch.full_like(norms, -math.inf)
            either.scatter_reduce_(0, cases.boxes, self._norms(cases.derivatives), "amax")
            norms = torch.where(either >= 0, torch.minimum(norms, either), norms)
        return norms, self._norm_of(centre)

    def _boxes(self, subboxes: Sequence[Subbox]) -> tuple[Tensor, Tensor]:
        """Return centres, and at least half the lengths, subboxes × inputs."""
        centres, reach = [], []
        for lo, hi in (ends for subbox in subboxes for ends in self._ends(subbox)):
            exact = (lo + hi) / 2
            centre = float(exact)
            centres.append(centre)
            reach.append(float((hi - lo) / 2 + abs(exact - Fraction(centre))) * (1 + 2 * UNIT))
        boxes = torch.tensor([centres, reach], dtype=torch.float64)
        first, second = boxes.view(2, len(subboxes), self._network.inputs)
        return first, second

    def _ends(self, subbox: Subbox) -> list[tuple[Fraction, Fraction]]:
        """Return both ends of each input on a bounded subbox."""
        if self._domain is None:
            least, most = subbox.on_the_line
            return [] if least is None or most is None else [(least, most)]
        lo, hi = map(Fraction, self._domain)
        ends = []
        for axis in range(self._network.inputs):
            bits = subbox.digits[axis :: self._network.inputs]
            size = (hi - lo) / 2 ** len(bits)
            start = lo + size * sum(2**i for i, digit in enumerate(reversed(bits)) if digit)
            ends.append((start, start + size))
        return ends

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
