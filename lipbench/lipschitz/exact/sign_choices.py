"""Sign choices: the sides that neurons of one block may be on, and the largest norm of each."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.lipschitz.exact.polyhedra import Empty, HalfSpace, Interior
from lipbench.lipschitz.exact.regions import Region, Regions
from lipbench.lipschitz.exact.vertices import Corners
from lipbench.lipschitz.relaxations.decisions import Decision

Point = tuple[Fraction, ...]
Conflict = tuple[tuple[Decision, ...], Empty]
"""Signs that cannot be together, and the proof of it."""


class SignChoice:
    """The signs that the neurons of one block may have, those of all blocks before it given."""

    def __init__(self, regions: Regions, region: Region) -> None:
        self.regions, self.region = regions, region
        self.corners = Corners(
            regions.network, regions.slopes(region), regions.norm, len(region.known) - 1
        )
        self.start = regions.starts[len(region.known) - 1]
        self.faces = regions.faces_ahead(region)
        # What does not depend on the input needs no sign.
        self.indices = [index for index, face in enumerate(self.faces) if face is not None]
        self.neurons = [self.start + index for index in self.indices]
        self.codes = torch.arange(2 ** len(self.indices))
        self.known: dict[int, Point] = {}
        """A point for some choices, which rounding may have put there."""
        if isinstance(region.proof, Interior):
            self.meet([region.proof.point])

    @property
    def is_last(self) -> bool:
        """Return whether no block follows."""
        return len(self.region.known) == len(self.regions.network.blocks)

    def meet(self, points: Sequence[Point]) -> None:
        """Remember which choices have a point."""
        rows = torch.tensor([list(map(float, point)) for point in points], dtype=torch.float64)
        self.known |= dict(zip(self.at(rows).tolist(), points, strict=True))

    def at(self, points: Float[Tensor, "points inputs"]) -> Int[Tensor, " points"]:
        """Return the choice at each point, where rounding decides right."""
        units = np.array([self._face(index, False).unit for index in self.indices])
        rows = torch.from_numpy(units.reshape(len(self.indices), points.shape[1] + 1))
        right = points @ rows[:, :-1].T + rows[:, -1] > 0
        return (right * 2 ** torch.arange(len(self.indices))).sum(dim=1)

    def norms(self) -> Float[Tensor, " codes"]:
        """Return the largest norm of each choice that is left, rounded upwards."""
        return self.corners.largest(self.indices, self.codes)

    def signs(self, code: int) -> tuple[Decision, ...]:
        """Return the signs of one choice."""
        return tuple((n, bool(code >> bit & 1)) for bit, n in enumerate(self.neurons))

    def inequalities(self, signs: Sequence[Decision]) -> tuple[HalfSpace, ...]:
        """Return what holds for the inputs of the region with these signs."""
        faces = [self._face(neuron - self.start, right) for neuron, right in signs]
        return (*self.region.inequalities, *faces)

    def subregion(self, code: int, proof: Interior | None = None) -> Region:
        """Return the part of the region that has these signs."""
        signs = self.signs(code)
        inequalities = self.inequalities(signs)
        return self.regions.subregion_with_signs(self.region, dict(signs), inequalities, proof)

    def conflict(self, code: int, proof: Empty) -> Conflict:
        """Return the signs that a proof needs, and the proof for them alone."""
        before = len(self.region.inequalities)
        signs = self.signs(code)
        needed = [number - before for number in proof.support if number >= before]
        numbers = [n if n < before else before + needed.index(n - before) for n in proof.support]
        return tuple(signs[n] for n in needed), Empty(tuple(numbers), proof.weights)

    def excludes(self, signs: Sequence[Decision], proof: Empty) -> bool:
        """Return whether a proof shows that no inputs of the region have these signs."""
        neurons = {neuron for neuron, _ in signs}
        if len(neurons) < len(signs) or not neurons <= set(self.neurons):
            return False
        return self.regions.cannot_all_hold(self.inequalities(signs), proof)

    def strike(self, signs: Sequence[Decision]) -> None:
        """Leave out all choices with these signs."""
        self.codes = self.codes[~self.have(signs)]

    def have(self, signs: Sequence[Decision]) -> Bool[Tensor, " codes"]:
        """Return which choices that are left have these signs."""
        mask = value = 0
        for neuron, right in signs:
            bit = self.neurons.index(neuron)
            mask |= 1 << bit
            value |= right << bit
        return (self.codes & mask) == value

    def _face(self, index: int, right: bool) -> HalfSpace:
        faces = self.faces[index]
        assert faces is not None
        return faces[right]
