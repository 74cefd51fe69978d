"""Linear regions: where a piecewise linear network is one matrix, in rational numbers.

A neuron that is linear on both sides of 0 splits the inputs into two half-spaces, of the region in
which all neurons of the blocks before it are on a known side.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lipbench.lipschitz.exact.dyadic import Dyadic
from lipbench.lipschitz.exact.exact_matrix import plain, very
from lipbench.lipschitz.exact.polyhedra import (
    Empty,
    HalfSpace,
    Interior,
    excludes,
    holds,
    interior,
)
from lipbench.lipschitz.exact.vertices import corners_fit, norm_of_corners
from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.decisions import Decision
from lipbench.lipschitz.relaxations.loop_transformation import (
    LoopTransformation,
    loop_transformation,
)
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

Proof = Interior | Empty | None
_Reads = tuple[dict[int, Dyadic], Dyadic]
"""Matrices by source, and a column that is added."""
_SLACK = 1e-14
"""Share of a norm, for each row or column, that entries rounded once and its own rounding are off.

Some fifty units: more than sums or a singular value decomposition lose.
"""
_CLOSE = 1e-3
"""How close to its optimum the sharp bound of a region is brought."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """Inputs for which some neurons are on known sides: those of a block before any of the next."""

    path: tuple[Decision, ...]
    """Neurons, and whether they are right of 0."""
    inequalities: tuple[HalfSpace, ...]
    known: tuple[Dyadic, ...]
    """The input, and the neurons of each decided block, as affine functions of the input."""
    ahead: Dyadic | None
    """The pre-activations of the block whose neurons come next; None where all are decided."""
    proof: Proof
    """That it has an interior, or none; None if neither is known."""

    @property
    def is_leaf(self) -> bool:
        """Return whether all neurons are decided."""
        return self.ahead is None


class Regions:
    """The regions of one network in one domain."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box | None) -> None:
        """Read the network exactly.

        Raises:
            Refused: If that is not possible.
        """
        self.norm, self._domain = norm, domain
        self.starts = [0]
        self._sides: list[tuple[Dyadic, Dyadic]] = []
        for block in network.blocks:
            if block.sides is None:
                raise Refused(f"step {block.name!r} is not linear on both sides of 0.")
            left, right = (Dyadic.of(side.unsqueeze(1)) for side in block.sides)
            self._sides.append((left, right))
            self.starts.append(self.starts[-1] + len(block))
        self._reads = [_exact(block.reads, block.name) for block in network.blocks]
        self._output = _exact(network.output, "the output")
        self.network = network = plain(network)
        self._influence = _influence(loop_transformation(network))
        self._box = () if domain is None else tuple(_box_faces(network.inputs, domain))

    def root(self) -> Region:
        """Return the domain, in which nothing is decided."""
        size = self.network.inputs
        first = Dyadic.of(torch.eye(size, size + 1, dtype=torch.float64))
        return self._region((), self._box, (first,), interior(self._box, size, self._box))

    def children(self, region: Region) -> Iterator[Region]:
        """Yield the two halves of a region, split by the neuron that is likely to matter most.

        A neuron that does not depend on the input splits nothing: any side of it will do.
        """
        neuron = self._next_neuron(region)
        for right, face in self._faces(region, neuron):
            proof = region.proof
            if face is not None and not (
                isinstance(proof, Interior) and holds([face], proof.point)
            ):
                faces = [*region.inequalities, face]
                proof = interior(faces, self.network.inputs, self._box)
            yield self._child(region, (neuron, right), face, proof)

    def halves(self, region: Region) -> Iterator[Region]:
        """Yield what `children` does, without proofs about their interiors."""
        neuron = self._next_neuron(region)
        for right, face in self._faces(region, neuron):
            yield self._child(region, (neuron, right), face, None)

    def region_at(self, point: Sequence[Fraction]) -> Region | None:
        """Return the decided region that holds a point, None if the point is on a face of it."""
        region = self.root()
        if not holds(region.inequalities, point):
            return None
        while not region.is_leaf:
            neuron = self._next_neuron(region)
            sides = [
                (right, face)
                for right, face in self._faces(region, neuron)
                if face is None or holds([face], point)
            ]
            if not sides:
                return None
            region = self._child(region, (neuron, sides[0][0]), sides[0][1], None)
        return region

    def region_of_sides(self, sides: Sequence[bool]) -> Region:
        """Return the decided region whose neurons are on these sides.

        Args:
            sides: Whether each neuron is right of 0; of one that splits nothing it does not matter.
        """
        region = self.root()
        while not region.is_leaf:
            neuron = self._next_neuron(region)
            halves = {half.path[-1]: half for half in self.halves(region)}
            region = halves.get((neuron, sides[neuron])) or halves[neuron, True]
        return region

    def subregion_with_signs(
        self,
        region: Region,
        signs: Mapping[int, bool],
        inequalities: tuple[HalfSpace, ...],
        proof: Proof,
    ) -> Region:
        """Return the part of a region where the neurons of the next block have these signs.

        Args:
            region: The region.
            signs: Whether a neuron is right of 0; for those left out it does not matter.
            inequalities: What holds there.
            proof: That it has an interior, if that is known.
        """
        start, end = self.starts[len(region.known) - 1 : len(region.known) + 1]
        sides = ((neuron, signs.get(neuron, True)) for neuron in range(start, end))
        return self._block_decided(region, (*region.path, *sides), inequalities, proof)

    def faces_ahead(self, region: Region) -> list[tuple[HalfSpace, HalfSpace] | None]:
        """Return where each neuron of the next block is left of 0, and where right of it.

        None stands for a neuron that does not depend on the input.
        """
        assert region.ahead is not None
        rows = [HalfSpace(row) if any(row[:-1]) else None for row in region.ahead.numerators]
        return [None if face is None else (face, face.reverse) for face in rows]

    def bound(self, region: Region, sharp: bool = False) -> float:
        """Return an upper bound of the constant on a region, rounding accounted for.

        Args:
            region: The region.
            sharp: Whether it is worth more: in l2 a semidefinite program, in the other norms a
                look at all sides that undecided neurons may be on, where these are few.
        """
        if region.is_leaf:
            matrix = self.matrix(region)
            return _norm(matrix, self.norm) * (1 + _SLACK * max(matrix.shape))
        if sharp and self.norm != 2.0 and self.has_sharp_bound(region):
            return norm_of_corners(self.network, self.slopes(region), self.norm)
        loops = loop_transformation(self.network, self.slopes(region)).bent
        if sharp and self.norm == 2.0 and loops.neurons:
            with suppress(Refused):  # nothing better is known then
                proposal = propose(loops, tolerance=_CLOSE)
                return certify(loops, proposal.multipliers, proposal.square)[0]
        return min(loops.reach(self.norm)[-1], loops.entrywise(self.norm))

    def has_sharp_bound(self, region: Region) -> bool:
        """Return whether there is a better bound of a region than the first one."""
        if region.is_leaf:
            return False
        return self.norm == 2.0 or corners_fit(self.network, self._undecided(region))

    def least(self, region: Region) -> float:
        """Return the norm of the matrix of a decided region, rounded down."""
        matrix = self.matrix(region)
        return _norm(matrix, self.norm) * (1 - _SLACK * max(matrix.shape))

    def matrix(self, region: Region) -> Tensor:
        """Return the matrix of a decided region, its entries rounded once."""
        output = self._affine(self._output, region.known)
        unit = 1 << output.exponent
        rows = [[float(Fraction(int(x), unit)) for x in row[:-1]] for row in output.numerators]
        return torch.tensor(rows, dtype=torch.float64)

    def slopes(self, region: Region) -> list[tuple[Tensor, Tensor]]:
        """Return the least and the largest slope of each block's neurons in a region."""
        blocks = self.network.blocks
        sides = [block.sides or (block.lo, block.hi) for block in blocks]
        lo, hi = (torch.cat([getattr(block, end) for block in blocks]) for end in ("lo", "hi"))
        left, right = (torch.cat([pair[index] for pair in sides]) for index in (0, 1))
        for neuron, side in region.path:
            lo[neuron] = hi[neuron] = (right if side else left)[neuron]
        sizes = [len(block) for block in self.network.blocks]
        return list(zip(lo.split(sizes), hi.split(sizes), strict=True))

    def with_proof(self, region: Region) -> Region:
        """Return the region with a proof that it has an interior, or none, if one is found."""
        return replace(region, proof=self.interior(region.inequalities))

    def interior(self, inequalities: Sequence[HalfSpace], *, anywhere: bool = False) -> Proof:
        """Return a proof that inequalities have an interior in the domain, or none.

        Args:
            inequalities: Those of the domain, and others.
            anywhere: Any point will do, which is faster to find than the centre of a ball.
        """
        return interior(inequalities, self.network.inputs, self._box, anywhere=anywhere)

    def excludes(self, region: Region, proof: Empty) -> bool:
        """Return whether a proof shows that a region has no interior."""
        return self.cannot_all_hold(region.inequalities, proof)

    def cannot_all_hold(self, inequalities: Sequence[HalfSpace], proof: Empty) -> bool:
        """Return whether a proof shows that inequalities cannot all hold in the domain."""
        if not all(0 <= number < len(inequalities) for number in proof.support):
            return False
        if len(proof.weights) != len(proof.support) or not all(map(math.isfinite, proof.weights)):
            return False
        faces = [inequalities[number] for number in proof.support]
        return excludes(faces, proof.weights, self._box)

    def sampled(self, number: int, scale: float, rng: torch.Generator) -> Tensor:
        """Return random points of the domain, normal ones times `scale` where it has no ends."""
        size = (number, self.network.inputs)
        if self._domain is None:
            return scale * torch.randn(size, generator=rng, dtype=torch.float64)
        low, high = self._domain
        return low + (high - low) * torch.rand(size, generator=rng, dtype=torch.float64)

    def _next_neuron(self, region: Region) -> int:
        """Return the undecided neuron of the next block with the longest gradient."""
        assert region.ahead is not None
        gradients = region.ahead.numerators[:, :-1]
        start = self.starts[len(region.known) - 1]
        decided = {neuron for neuron, _ in region.path}
        left = [n for n in range(start, start + len(gradients)) if n not in decided]
        exponent = region.ahead.exponent

        def matters(neuron: int) -> float:
            length = float(Fraction(int(sum(map(abs, gradients[neuron - start]))), 1 << exponent))
            return length * self._influence[neuron]

        return max(left, key=matters)

    def _faces(self, region: Region, neuron: int) -> Iterator[tuple[bool, HalfSpace | None]]:
        """Yield the sides of a neuron of the next block, and what holds on each of them.

        A neuron that does not depend on the input has one side only, which asks for nothing (None).
        """
        assert region.ahead is not None
        row = region.ahead.numerators[neuron - self.starts[len(region.known) - 1]]
        if any(row[:-1]):
            face = HalfSpace(row)
            yield True, face.reverse
            yield False, face
        else:
            yield True, None

    def _child(
        self, region: Region, decision: Decision, face: HalfSpace | None, proof: Proof
    ) -> Region:
        """Return the part of a region with one more neuron decided."""
        path = (*region.path, decision)
        faces = region.inequalities if face is None else (*region.inequalities, face)
        if len(path) < self.starts[len(region.known)]:
            return replace(region, path=path, inequalities=faces, proof=proof)
        return self._block_decided(region, path, faces, proof)

    def _block_decided(
        self,
        region: Region,
        path: tuple[Decision, ...],
        faces: tuple[HalfSpace, ...],
        proof: Proof,
    ) -> Region:
        """Return the part of a region in which all neurons of the next block are decided."""
        assert region.ahead is not None
        number = len(region.known) - 1
        sides, start, slopes = dict(path), self.starts[number], []
        for index, row in enumerate(region.ahead.numerators):
            # What does not depend on the input has no sides, but it has a value.
            right = sides[start + index] if any(row[:-1]) else row[-1] > 0
            slopes.append(self._sides[number][right].entry(index))
        neurons = region.ahead.scaled(Dyadic.column(slopes))
        return self._region(path, faces, (*region.known, neurons), proof)

    def _region(
        self,
        path: tuple[Decision, ...],
        inequalities: tuple[HalfSpace, ...],
        known: tuple[Dyadic, ...],
        proof: Proof,
    ) -> Region:
        """Return a region, with the pre-activations of its next block."""
        number, ahead = len(known) - 1, None
        if number < len(self._reads):
            ahead = self._affine(self._reads[number], known)
        return Region(path=path, inequalities=inequalities, known=known, ahead=ahead, proof=proof)

    def _affine(self, reads: _Reads, known: Sequence[Dyadic]) -> Dyadic:
        """Return what a block, or the output, reads as an affine function of the input."""
        matrices, offset = reads
        column = np.zeros((len(offset.numerators), self.network.inputs + 1), dtype=object)
        column[:, -1] = offset.numerators[:, 0]
        total = Dyadic(column, offset.exponent)
        for source, matrix in matrices.items():
            total = total.plus(matrix.times(known[source]))
        return total

    def _undecided(self, region: Region) -> int:
        """Return how many neurons may have several slopes in a region."""
        return sum(int((lo < hi).sum()) for lo, hi in self.slopes(region))


def _exact(affine: Affine, name: str) -> _Reads:
    """Return an affine map in rational numbers.

    Raises:
        Refused: If it is known up to rounding only.
    """

    def known(matrix: Matrix) -> Dyadic:
        dyadic = very(matrix)
        if dyadic is None:
            raise Refused(f"{name!r} is known up to rounding only: layers had to be multiplied.")
        return dyadic

    matrices = {source: known(matrix) for source, matrix in affine.matrices.items()}
    return matrices, known(affine.offset)


def _box_faces(dimension: int, domain: Box) -> Iterator[HalfSpace]:
    """Yield the faces of a box, exactly."""
    (lo, below), (hi, above) = (float(end).as_integer_ratio() for end in domain)
    for coordinate in range(dimension):
        for factor, end in ((above, -hi), (-below, lo)):
            row = np.zeros(dimension + 1, dtype=object)
            row[coordinate], row[-1] = factor, end
            yield HalfSpace(row)


def _influence(network: LoopTransformation) -> list[float]:
    """Return roughly how much the outputs may change with each neuron."""
    absolute = network.matrix.values.abs()[:, network.inputs :]
    influence = absolute[network.neurons :].sum(dim=0)
    for rows, _ in reversed(list(network.blocks())):
        influence = influence + influence[rows] @ absolute[rows]
    return [float(entry) for entry in influence]


def _norm(matrix: Tensor, norm: Norm) -> float:
    return float(torch.linalg.matrix_norm(matrix, float(norm)))
