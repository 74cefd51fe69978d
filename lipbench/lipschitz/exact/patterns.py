"""The exact Lipschitz constant of a small piecewise linear network, by the signs that cannot be.

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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.lipschitz.exact.branching import SAME, Explored
from lipbench.lipschitz.exact.polyhedra import Empty, Inequality, Interior, holds
from lipbench.lipschitz.exact.regions import Region, Regions
from lipbench.lipschitz.exact.vertices import Corners, all_corners_fit
from lipbench.lipschitz.relaxations.decisions import Decision

Point = tuple[Fraction, ...]
_SAMPLES = 50_000
"""Random points of the domain, in whose regions no linear program is needed."""
_NUMBERS = 2_000_000
"""Most coordinates of them together."""
_TRIES = 64
"""Choices that are drawn to find one of which nothing is known."""
_HITS = 6
"""Choices in a row that are possible, after which it no longer pays to look for others."""
_MET = 100
"""Points of parts that are left when a search ends early."""
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


def proved(
    regions: Regions, value: float, empty: Sequence[tuple[tuple[Decision, ...], Empty]]
) -> bool:
    """Return whether the signs that cannot be together prove that no slope exceeds a value.

    All is computed anew: that they cannot be, and the norms of all other choices.
    """
    if not fits(regions):
        return False
    cuts: dict[tuple[Decision, ...], list[tuple[tuple[Decision, ...], Empty]]] = defaultdict(list)
    for path, proof in empty:
        if not path or path[-1][0] < 0:
            return False
        start = max(start for start in regions.starts if start <= path[-1][0])
        cuts[path[:start]].append((path[start:], proof))
    left = [regions.root()]
    while left:
        choice = _Choice(regions, left.pop())
        for signs, proof in cuts.get(choice.region.path, ()):
            if not choice.excludes(signs, proof):
                return False
            choice.strike(signs)
        norms = choice.norms()
        for code in choice.codes[~(norms <= value)].tolist():
            part = choice.part(code)
            if part.is_leaf:
                if not regions.bound(part) <= value:
                    return False
            else:
                left.append(part)
    return True


class _Choice:
    """The signs that the neurons of one block may have, those of all blocks before it given."""

    def __init__(self, regions: Regions, region: Region) -> None:
        self.regions, self.region = regions, region
        self.corners = Corners(
            regions.network, regions.slopes(region), regions.norm, len(region.known) - 1
        )
        self.start = regions.starts[len(region.known) - 1]
        self.faces = regions.faces_ahead(region)
        # What does not depend on the input needs no sign.
        self.places = [place for place, face in enumerate(self.faces) if face is not None]
        self.neurons = [self.start + place for place in self.places]
        self.codes = torch.arange(2 ** len(self.places))
        self.known: dict[int, Point] = {}
        """A point for some choices, which rounding may have put there."""
        if isinstance(region.proof, Interior):
            self.meet([region.proof.point])

    def meet(self, points: Sequence[Point]) -> None:
        """Remember which choices have a point."""
        places = torch.tensor([list(map(float, point)) for point in points], dtype=torch.float64)
        self.known |= dict(zip(self.at(places).tolist(), points, strict=True))

    @property
    def is_last(self) -> bool:
        """Return whether no block follows."""
        return len(self.region.known) == len(self.regions.network.blocks)

    def norms(self) -> Float[Tensor, " codes"]:
        """Return the largest norm of each choice that is left, rounded upwards."""
        return self.corners.largest(self.places, self.codes)

    def strike(self, signs: Sequence[Decision]) -> None:
        """Leave out all choices with these signs."""
        self.codes = self.codes[~self.have(signs)]

    def have(self, signs: Sequence[Decision]) -> Bool[Tensor, " codes"]:
        """Return which choices that are left have these signs."""
        mask = value = 0
        for neuron, right in signs:
            place = self.neurons.index(neuron)
            mask |= 1 << place
            value |= right << place
        return (self.codes & mask) == value

    def signs(self, code: int) -> tuple[Decision, ...]:
        """Return the signs of one choice."""
        return tuple((n, bool(code >> place & 1)) for place, n in enumerate(self.neurons))

    def inequalities(self, signs: Sequence[Decision]) -> tuple[Inequality, ...]:
        """Return what holds for the inputs of the region with these signs."""
        faces = [self._face(neuron - self.start, right) for neuron, right in signs]
        return (*self.region.inequalities, *faces)

    def part(self, code: int, proof: Interior | None = None) -> Region:
        """Return the inputs with these signs."""
        signs = self.signs(code)
        inequalities = self.inequalities(signs)
        return self.regions.part_with_signs(self.region, dict(signs), inequalities, proof)

    def excludes(self, signs: Sequence[Decision], proof: Empty) -> bool:
        """Return whether a proof shows that no inputs of the region have these signs."""
        own = {neuron for neuron, _ in signs}
        if len(own) < len(signs) or not own <= set(self.neurons):
            return False
        return self.regions.cannot_all_hold(self.inequalities(signs), proof)

    def at(self, points: Float[Tensor, "points inputs"]) -> Int[Tensor, " points"]:
        """Return the choice at each point, where rounding decides right."""
        units = np.array([self._face(place, False).unit for place in self.places])
        rows = torch.from_numpy(units.reshape(len(self.places), points.shape[1] + 1))
        right = points @ rows[:, :-1].T + rows[:, -1] > 0
        return (right * 2 ** torch.arange(len(self.places))).sum(dim=1)

    def _face(self, place: int, right: bool) -> Inequality:
        faces = self.faces[place]
        assert faces is not None
        return faces[right]

    def conflict(self, code: int, proof: Empty) -> tuple[tuple[Decision, ...], Empty]:
        """Return the signs that a proof needs, and the proof for them alone."""
        before = len(self.region.inequalities)
        signs = self.signs(code)
        needed = [number - before for number in proof.support if number >= before]
        numbers = [n if n < before else before + needed.index(n - before) for n in proof.support]
        return tuple(signs[n] for n in needed), Empty(tuple(numbers), proof.weights)


@dataclass(order=True)
class _Entry:
    negative: float
    order: int
    choice: _Choice = field(compare=False)
    values: Float[Tensor, " codes"] = field(compare=False)


class _Search:
    """The choices that are left, those with the largest norm first."""

    def __init__(self, regions: Regions, nodes: int) -> None:
        self.regions, self.left = regions, nodes
        self.queue: list[_Entry] = []
        self.empty: list[tuple[tuple[Decision, ...], Empty]] = []
        self.lower, self.settled = 0.0, 0.0
        self.point: Point | None = None
        self._leaves: list[Point] = []
        self._order = count()

    @property
    def upper(self) -> float:
        """Return the largest norm of what is left."""
        return -self.queue[0].negative if self.queue else 0.0

    def inside(self) -> list[Point]:
        """Return points in parts that were met, first those that have the largest norms left."""
        proofs = [entry.choice.region.proof for entry in heapq.nsmallest(_MET, self.queue)]
        return [*self._leaves, *(proof.point for proof in proofs if isinstance(proof, Interior))]

    def visit(self, point: Point) -> None:
        """Raise the lower bound to the slope at a point, if that is larger."""
        region = self.regions.region_at(point)
        if region is not None:
            self._raise(self.regions.least(region), point)

    def run(self) -> None:
        """Search until nothing is left that is larger than what was found."""
        whole = self.regions.root()
        root = _Choice(self.regions, whole)
        count = min(_SAMPLES, _NUMBERS // self.regions.network.inputs)
        points = self.regions.sampled(count, _SCALE, torch.Generator().manual_seed(0))
        _, rows = np.unique(root.at(points), return_index=True)
        root.meet([tuple(map(Fraction, points[row].tolist())) for row in rows.tolist()])
        self._learn(root)
        self._put(root, root.norms())
        while self.queue and self.left > 0 and self.upper > self.lower * (1 + SAME / 2):
            entry = heapq.heappop(self.queue)
            self._advance(entry.choice, entry.values)

    def _advance(self, choice: _Choice, values: Float[Tensor, " codes"]) -> None:
        place = int(values.argmax())
        code = int(choice.codes[place])
        proof = self._looked_at(choice, code)
        if isinstance(proof, Empty):
            keep = ~choice.have(self._struck(choice, code, proof))
            choice.codes, values = choice.codes[keep], values[keep]
        else:
            values[place] = -1.0
            part = choice.part(code, proof)
            if part.is_leaf:
                self._reached(part)
            else:
                inner = _Choice(self.regions, part)
                self._put(inner, inner.norms())
        self._put(choice, values)

    def _learn(self, root: _Choice) -> None:
        """Strike out choices before the norms of all of them are computed."""
        rng = torch.Generator().manual_seed(0)
        hits = 0
        while hits < _HITS and self.left > 0 and len(root.codes):
            some = torch.randint(len(root.codes), (_TRIES,), generator=rng)
            code = next((c for c in root.codes[some].tolist() if c not in root.known), None)
            if code is None:
                return
            proof = self._looked_at(root, code)
            if isinstance(proof, Empty):
                root.strike(self._struck(root, code, proof))
                hits = 0
            else:
                hits += 1

    def _looked_at(self, choice: _Choice, code: int) -> Interior | Empty | None:
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

    def _struck(self, choice: _Choice, code: int, proof: Empty) -> tuple[Decision, ...]:
        signs, own = choice.conflict(code, proof)
        self.empty.append(((*choice.region.path, *signs), own))
        return signs

    def _reached(self, leaf: Region) -> None:
        self.settled = max(self.settled, self.regions.bound(leaf))
        if isinstance(leaf.proof, Interior):
            self._leaves.append(leaf.proof.point)
            self._raise(self.regions.least(leaf), leaf.proof.point)

    def _raise(self, least: float, point: Point) -> None:
        if least > self.lower:
            self.lower, self.point = least, point

    def _put(self, choice: _Choice, values: Tensor) -> None:
        largest = float(values.max()) if len(values) else -1.0
        if largest >= 0:
            heapq.heappush(self.queue, _Entry(-largest, next(self._order), choice, values))
