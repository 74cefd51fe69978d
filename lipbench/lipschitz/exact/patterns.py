"""Activation patterns: exact constants, where a pattern that no input has is struck out.

Each choice of signs for the neurons of a block has a matrix, and its norm is known before it is
known whether any input has these signs. So the search takes the choice with the largest norm, and
asks a linear program. Where there is no such input, the program names the few signs that cannot be
together, and all choices that have them are struck out; where there is one, the next block follows.

Source:
    The cuts are those of Marques-Silva, Sakallah, GRASP: A New Search Algorithm for Satisfiability
    (1996), from the multipliers of Motzkin (1936) instead of clauses. The rest is this project's.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.exact.branching import SAME, Explored
from lipbench.lipschitz.exact.polyhedra import Empty, Interior, holds
from lipbench.lipschitz.exact.regions import Region, Regions
from lipbench.lipschitz.exact.sign_choices import Conflict, Point, SignChoice
from lipbench.lipschitz.exact.vertices import all_corners_fit
from lipbench.lipschitz.relaxations.decisions import Decision

_SAMPLES = 50_000
"""Random points of the domain, in whose regions no linear program is needed."""
_NUMBERS = 2_000_000
"""Most coordinates of them together."""
_TRIES = 64
"""Choices that are drawn to find one of which nothing is known."""
_HITS = 6
"""Choices in a row that are possible, after which it no longer pays to look for others."""
_MET = 100
"""Points of regions that are left when a search ends early."""
_SCALE = 3.0
"""Where there is no domain: standard deviation of the points."""


def explore_patterns(regions: Regions, nodes: int, starts: Iterable[Point] = ()) -> Explored:
    """Return bounds from both sides, exact if the search ended within a number of nodes.

    Args:
        regions: The regions of the network, whose corners fit (`fits`).
        nodes: Most choices of signs that are looked at.
        starts: Points where the network is known to be steep.
    """
    search = _Search(regions, nodes)
    for point in starts:
        search.visit(point)
    search.run()
    return Explored(
        lower=search.lower,
        upper=max(search.settled, search.upper),
        point=search.point,
        closed=(),
        empty=tuple(search.empty),
        inside=tuple(search.inside()),
    )


def fits(regions: Regions) -> bool:
    """Return whether all choices of signs can be looked at."""
    return all_corners_fit(regions.network, regions.norm)


def patterns_prove(regions: Regions, value: float, empty: Sequence[Conflict]) -> bool:
    """Return whether the signs that cannot be together prove that no slope exceeds a value.

    All is computed anew: that they cannot be, and the norms of all other choices.
    """
    cuts = _cuts_by_region(regions, empty) if fits(regions) else None
    if cuts is None:
        return False
    left = [regions.root()]
    while left:
        choice = SignChoice(regions, left.pop())
        for signs, proof in cuts.get(choice.region.path, ()):
            if not choice.excludes(signs, proof):
                return False
            choice.strike(signs)
        norms = choice.norms()
        for code in choice.codes[~(norms <= value)].tolist():
            subregion = choice.subregion(code)
            if not subregion.is_leaf:
                left.append(subregion)
            elif not regions.bound(subregion) <= value:
                return False
    return True


def _cuts_by_region(
    regions: Regions, empty: Sequence[Conflict]
) -> dict[tuple[Decision, ...], list[Conflict]] | None:
    """Return which signs of a block cannot be together, by the signs of all blocks before it.

    None if a proof names no signs, or a neuron that is none.
    """
    cuts: dict[tuple[Decision, ...], list[Conflict]] = defaultdict(list)
    for path, proof in empty:
        if not path or path[-1][0] < 0:
            return None
        start = max(start for start in regions.starts if start <= path[-1][0])
        cuts[path[:start]].append((path[start:], proof))
    return cuts


@dataclass(order=True)
class _Entry:
    """A choice in the queue."""

    negative: float
    """Minus the largest norm that is left."""
    order: int
    choice: SignChoice = field(compare=False)
    values: Float[Tensor, " codes"] = field(compare=False)


class _Search:
    """The choices that are left, those with the largest norm first."""

    def __init__(self, regions: Regions, nodes: int) -> None:
        self.regions, self.left = regions, nodes
        self.queue: list[_Entry] = []
        self.empty: list[Conflict] = []
        self.lower, self.settled = 0.0, 0.0
        self.point: Point | None = None
        self._leaves: list[Point] = []
        self._order = count()

    @property
    def upper(self) -> float:
        """Return the largest norm of what is left."""
        return -self.queue[0].negative if self.queue else 0.0

    def inside(self) -> list[Point]:
        """Return points in regions that were met, first those that have the largest norms left."""
        proofs = [entry.choice.region.proof for entry in heapq.nsmallest(_MET, self.queue)]
        return [*self._leaves, *(proof.point for proof in proofs if isinstance(proof, Interior))]

    def visit(self, point: Point) -> None:
        """Raise the lower bound to the slope at a point, if that is larger."""
        region = self.regions.region_at(point)
        if region is not None:
            self._raise(self.regions.least(region), point)

    def run(self) -> None:
        """Search until no norm that is left exceeds the lower bound, or the nodes are spent."""
        root = SignChoice(self.regions, self.regions.root())
        self._meet_samples(root)
        self._learn(root)
        self._put(root, root.norms())
        while self.queue and self.left > 0 and self.upper > self.lower * (1 + SAME / 2):
            entry = heapq.heappop(self.queue)
            self._advance(entry.choice, entry.values)

    def _meet_samples(self, root: SignChoice) -> None:
        """Remember a random point of each choice that has one."""
        number = min(_SAMPLES, _NUMBERS // self.regions.network.inputs)
        points = self.regions.sampled(number, _SCALE, torch.Generator().manual_seed(0))
        _, rows = np.unique(root.at(points), return_index=True)
        root.meet([tuple(map(Fraction, points[row].tolist())) for row in rows.tolist()])

    def _learn(self, root: SignChoice) -> None:
        """Strike out choices before the norms of all of them are computed."""
        rng = torch.Generator().manual_seed(0)
        hits = 0
        while hits < _HITS and self.left > 0 and len(root.codes):
            drawn = torch.randint(len(root.codes), (_TRIES,), generator=rng)
            code = next((c for c in root.codes[drawn].tolist() if c not in root.known), None)
            if code is None:
                return
            proof = self._look(root, code)
            if isinstance(proof, Empty):
                root.strike(self._struck(root, code, proof))
                hits = 0
            else:
                hits += 1

    def _advance(self, choice: SignChoice, values: Float[Tensor, " codes"]) -> None:
        """Look at the signs with the largest norm, of those that are left of a choice."""
        index = int(values.argmax())
        code = int(choice.codes[index])
        proof = self._look(choice, code)
        if isinstance(proof, Empty):
            keep = ~choice.have(self._struck(choice, code, proof))
            choice.codes, values = choice.codes[keep], values[keep]
        else:
            values[index] = -1.0
            subregion = choice.subregion(code, proof)
            if subregion.is_leaf:
                self._reached(subregion)
            else:
                inner = SignChoice(self.regions, subregion)
                self._put(inner, inner.norms())
        self._put(choice, values)

    def _look(self, choice: SignChoice, code: int) -> Interior | Empty | None:
        """Look whether any input has the signs of a code: one node less, and a point is kept.

        Returns:
            A proof that some inputs have these signs, or that none have; None if there is neither.
        """
        self.left -= 1
        inequalities = choice.inequalities(choice.signs(code))
        point = choice.known.get(code)
        if point is not None and holds(inequalities, point):
            return Interior(point)
        proof = self.regions.interior(inequalities, anywhere=not choice.is_last)
        if isinstance(proof, Interior):
            choice.known[code] = proof.point
        elif proof is not None and max(proof.support) < len(choice.region.inequalities):
            return None  # then the region is empty, which was not known before
        return proof

    def _struck(self, choice: SignChoice, code: int, proof: Empty) -> tuple[Decision, ...]:
        """Keep a proof that a choice is empty.

        Returns:
            The signs that it shows cannot be together.
        """
        signs, reduced = choice.conflict(code, proof)
        self.empty.append(((*choice.region.path, *signs), reduced))
        return signs

    def _reached(self, leaf: Region) -> None:
        self.settled = max(self.settled, self.regions.bound(leaf))
        if isinstance(leaf.proof, Interior):
            self._leaves.append(leaf.proof.point)
            self._raise(self.regions.least(leaf), leaf.proof.point)

    def _raise(self, least: float, point: Point) -> None:
        if least > self.lower:
            self.lower, self.point = least, point

    def _put(self, choice: SignChoice, values: Tensor) -> None:
        largest = float(values.max()) if len(values) else -1.0
        if largest >= 0:
            heapq.heappush(self.queue, _Entry(-largest, next(self._order), choice, values))
