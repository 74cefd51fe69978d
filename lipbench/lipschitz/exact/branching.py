"""LipBaB: exact Lipschitz constants of piecewise linear networks by branch and bound.

Regions are dropped only with a proof that they have no interior; all that counts is decided in
rational numbers, and norms are rounded outwards.

Source:
    Bhowmick, D'Souza, Raghavan, LipBaB: Computing Exact Lipschitz Constant of ReLU Networks
    (2021), https://arxiv.org/abs/2105.05495. That regions are dropped by proof and not within a
    tolerance, and the bound of a region, are this project's.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from lipbench.bound import EXACT_WITHIN
from lipbench.lipschitz.exact.polyhedra import Empty, Interior
from lipbench.lipschitz.exact.regions import Region, Regions
from lipbench.lipschitz.relaxations.decisions import Decision

SAME = EXACT_WITHIN / 2
"""Relative distance of the two sides at which a value counts as exact."""


@dataclass(frozen=True, kw_only=True)
class Explored:
    """Bounds from both sides after a search, and what it takes to check them."""

    lower: float
    """Norm of the matrix at `point`, rounded down; 0 if no region was decided."""
    upper: float
    point: tuple[Fraction, ...] | None
    closed: tuple[tuple[Decision, ...], ...]
    """Regions that cover the domain, together with the empty ones."""
    empty: tuple[tuple[tuple[Decision, ...], Empty], ...]
    """Regions without interior, with their proofs."""
    inside: tuple[tuple[Fraction, ...], ...]
    """Points in regions that the search has met, many of which it has not decided."""

    @property
    def is_exact(self) -> bool:
        """Return whether the two sides meet."""
        return self.upper <= self.lower * (1 + SAME)


def explore(regions: Regions, nodes: int, starts: Iterable[tuple[Fraction, ...]] = ()) -> Explored:
    """Return bounds from both sides, exact if the search ended within a number of nodes.

    Args:
        regions: The regions of the network.
        nodes: Most of them that are looked at.
        starts: Points where the network is known to be steep.
    """
    search = _Search(regions)
    for point in starts:
        search.visit(point)
    search.consider(regions.root(), math.inf)
    for _ in range(nodes):
        if not search.queue or search.upper <= search.lower * (1 + SAME / 2):
            break
        search.advance()
    return Explored(
        lower=search.lower,
        upper=max([search.settled, search.upper]),
        point=search.point,
        closed=tuple(region.path for region in search.closed + [q[2] for q in search.queue]),
        empty=tuple(search.empty),
        inside=tuple(proof.point for proof in search.inside.values()),
    )


def regions_prove(
    regions: Regions,
    value: float,
    closed: Sequence[tuple[Decision, ...]],
    empty: Sequence[tuple[tuple[Decision, ...], Empty]],
) -> bool:
    """Return whether these regions cover the domain, and prove that no slope exceeds a value.

    All is computed anew: that each split has both its sides, that empty regions are so, and the
    bounds of the others.
    """
    proofs = dict(empty)
    leaves = {*closed, *proofs}
    left: list[tuple[Region, ...]] = [(regions.root(),)]
    while left:
        *around, region = left.pop()
        if region.path in leaves:
            leaves.remove(region.path)
            proof = proofs.get(region.path)
            if proof is not None and regions.excludes(region, proof):
                continue
            # A bound of a region holds for its parts, whose own may be a little larger.
            whole = [region, *reversed(around)]
            if any(
                regions.bound(outer, sharp) <= value for sharp in (False, True) for outer in whole
            ):
                continue
            return False
        if region.is_leaf or not leaves:
            return False
        left += [(*around, region, half) for half in regions.halves(region)]
    return not leaves


class _Search:
    """The regions that are left, the one with the largest bound first."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self.queue: list[tuple[float, int, Region, bool]] = []
        self.closed: list[Region] = []
        self.empty: list[tuple[tuple[Decision, ...], Empty]] = []
        self.lower, self.settled = 0.0, 0.0
        self.point: tuple[Fraction, ...] | None = None
        self.inside: dict[int, Interior] = {}
        self._order = count()

    @property
    def upper(self) -> float:
        """Return the largest bound of what is left."""
        return -self.queue[0][0] if self.queue else 0.0

    def visit(self, point: tuple[Fraction, ...]) -> None:
        """Raise the lower bound to the slope at a point, if that is larger."""
        region = self.regions.region_at(point)
        if region is not None:
            self._raise(self.regions.least(region), point)

    def consider(self, region: Region, upper: float) -> None:
        """Put a region into the queue; its bound is at most that of the region around it."""
        if isinstance(region.proof, Interior):
            # Parts of a region may share its proof.
            self.inside[id(region.proof)] = region.proof
            if region.is_leaf:
                self._raise(self.regions.least(region), region.proof.point)
        is_sharp = not self.regions.has_sharp_bound(region)
        self._put(region, min(upper, self.regions.bound(region)), sharp=is_sharp)

    def advance(self) -> None:
        """Sharpen the bound of the first region, or else split it."""
        negative, _, region, is_sharp = heapq.heappop(self.queue)
        upper = -negative
        if region.is_leaf:
            self.closed.append(region)
            self.settled = max(self.settled, upper)
        elif not is_sharp:
            self._put(region, min(upper, self.regions.bound(region, sharp=True)), sharp=True)
        else:
            for child in self.regions.children(region):
                if isinstance(child.proof, Empty):
                    self.empty.append((child.path, child.proof))
                else:
                    self.consider(child, upper)

    def _raise(self, least: float, point: tuple[Fraction, ...]) -> None:
        if least > self.lower:
            self.lower, self.point = least, point

    def _put(self, region: Region, upper: float, *, sharp: bool) -> None:
        heapq.heappush(self.queue, (-upper, next(self._order), region, sharp))
