"""Linear regions of a network in floats, and the way from one to steeper neighbours.

What is found here is proposed only: whoever needs a proof evaluates the points again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linprog
from torch import Tensor

from lipbench.lipschitz.lower_bounds.chords import chords
from lipbench.lipschitz.lower_bounds.expansion import operator_norms
from lipbench.lipschitz.relaxations.affine import Affine
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box

_SAME = 1e-9
"""Relative difference below which two numbers are taken to be one."""
_PARALLEL = 1e-12
_CHUNK = 2**22
_FARTHEST = 1.0
_BEYOND = 1e-3
"""Step behind a face, as a share of the ball around it; gap to the box, as a share of its width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearRegion:
    """The inputs around a point for which every neuron is on the same side of 0 as there."""

    point: Float[Tensor, " inputs"]
    right: Bool[Tensor, " neurons"]
    """Which neurons are right of 0."""
    ahead: Float[Tensor, "neurons inputs_and_one"]
    """Pre-activations, as affine functions of the input."""
    pull: Float[Tensor, "outputs neurons"]
    """Derivatives of the outputs by the activations of the neurons."""
    matrix: Float[Tensor, "outputs inputs"]
    steepness: float
    """The norm of the matrix."""

    @property
    def faces(self) -> Float[Tensor, "neurons inputs_and_one"]:
        """Return rows (a, -b) of the inequalities a·x < b that make up the region."""
        return torch.where(self.right.unsqueeze(1), -self.ahead, self.ahead)


class LinearRegions:
    """The regions of one network in one domain."""

    def __init__(self, network: NeuronBlocks, norm: Norm, domain: Box | None) -> None:
        """Read the network.

        Raises:
            Refused: If a neuron is not linear on both sides of 0.
        """
        self.network, self.norm, self.domain = network, norm, domain
        sides = []
        for block in network.blocks:
            if block.sides is None:
                raise Refused(f"step {block.name!r} is not linear on both sides of 0.")
            sides.append(block.sides)
        none = torch.zeros(0, dtype=torch.float64)
        self._left, self._right = (torch.cat([none, *(pair[k] for pair in sides)]) for k in (0, 1))
        self._sizes = [len(block) for block in network.blocks]

    def at(self, point: Float[Tensor, " inputs"]) -> LinearRegion:
        """Return the region around a point; a neuron at 0 is taken to be left of it."""
        values, ahead, slopes, right = [_identity(len(point))], [], [], []
        ends = zip(self._left.split(self._sizes), self._right.split(self._sizes), strict=True)
        homogeneous = torch.cat([point, point.new_ones(1)])
        for block, (below, above) in zip(self.network.blocks, ends, strict=True):
            ahead.append(_read(block.reads, values))
            right.append(ahead[-1] @ homogeneous > 0)
            slopes.append(torch.where(right[-1], above, below))
            values.append(ahead[-1] * slopes[-1].unsqueeze(1))
        matrix = _read(self.network.output, values)[:, :-1]
        empty = point.new_zeros(0, len(point) + 1)
        return LinearRegion(
            point=point,
            right=torch.cat([torch.zeros(0, dtype=torch.bool), *right]),
            ahead=torch.cat([empty, *ahead]),
            pull=self._pull(slopes),
            matrix=matrix,
            steepness=float(torch.linalg.matrix_norm(matrix, float(self.norm))),
        )

    def climb(
        self, starts: Iterable[Float[Tensor, " inputs"]], programs: int
    ) -> tuple[LinearRegion, ...]:
        """Return where climbs from region to steeper neighbour end, the steepest first.

        Each step crosses the face behind which the matrix has the largest norm. A climb ends where
        no neighbour is steeper, or where an earlier one has been.

        Args:
            starts: Points in the regions to begin with.
            programs: Most linear programs that look for a way through a face, over all climbs.
        """
        seen: set[bytes] = set()
        ends = []
        left = _Count(programs)
        for start in starts:
            if left.is_used_up:
                break
            region: LinearRegion | None = self.at(start)
            last = None
            while region is not None and _key(region) not in seen:
                seen.add(_key(region))
                last, region = region, self._steeper(region, left)
            if last is not None:
                ends.append(last)
        return tuple(sorted(ends, key=lambda end: -end.steepness))

    def pairs(
        self, regions: Sequence[LinearRegion]
    ) -> tuple[Float[Tensor, "pairs inputs"], Float[Tensor, "pairs inputs"]]:
        """Return pairs of inputs in the regions, in the directions that they expand most."""
        u, v = [], []
        for region in regions:
            _, directions = operator_norms(region.matrix.unsqueeze(0), self.norm)
            faces = region.faces[region.faces[:, :-1].any(dim=1)]
            slack = -faces[:, -1] - faces[:, :-1] @ region.point
            ends = chords(faces[:, :-1], slack, region.point, directions[0], self.domain)
            u.append(ends[0])
            v.append(ends[1])
        return torch.cat(u), torch.cat(v)

    def beyond(self, region: LinearRegion) -> Iterator[tuple[float, Tensor]]:
        """Yield which neurons change sides at each face, with the norm behind it, largest first.

        Not every one is a face of the region: others may keep it from being reached. Neurons that
        are 0 at the same inputs change together.
        """
        together = self._together(region)
        change = torch.where(region.right, self._left - self._right, self._right - self._left)
        single = torch.tensor([group[0] for group in together if len(group) == 1])
        neighbours: list[tuple[float, Tensor]] = []
        if len(single):
            values = self._changed(region, change, single)
            neighbours += zip(values.tolist(), single.unsqueeze(1), strict=True)
        for group in (torch.tensor(group) for group in together if len(group) > 1):
            moved = (region.pull[:, group] * change[group]) @ region.ahead[group, :-1]
            norm = torch.linalg.matrix_norm(region.matrix + moved, float(self.norm))
            neighbours.append((float(norm), group))
        yield from sorted(neighbours, key=lambda pair: -pair[0])

    def _pull(self, slopes: Sequence[Tensor]) -> Tensor:
        outputs = len(self.network.output)
        pulls = [torch.zeros(outputs, size, dtype=torch.float64) for size in self._sizes]
        for source, matrix in self.network.output.matrices.items():
            if source:
                pulls[source - 1] += matrix.values
        for number in reversed(range(len(slopes))):
            through = pulls[number] * slopes[number]
            for source, matrix in self.network.blocks[number].reads.matrices.items():
                if source:
                    pulls[source - 1] += through @ matrix.values
        return torch.cat([torch.zeros(outputs, 0, dtype=torch.float64), *pulls], dim=1)

    def _together(self, region: LinearRegion) -> list[list[int]]:
        """Return the neurons that have a face, those of one face together."""
        lengths = torch.linalg.vector_norm(region.ahead[:, :-1], dim=1)
        bent = (self._left != self._right) & (lengths > 0)
        numbers = bent.nonzero().squeeze(1)
        if not len(numbers):
            return []
        rows = region.ahead[numbers] / lengths[numbers].unsqueeze(1)
        lines = torch.nn.functional.normalize(rows)
        same = (lines @ lines.T).abs() >= 1 - _PARALLEL
        first = same.int().argmax(dim=1).tolist()
        groups: dict[int, list[int]] = {}
        for leader, number in zip(first, numbers.tolist(), strict=True):
            groups.setdefault(leader, []).append(number)
        return list(groups.values())

    def _changed(self, region: LinearRegion, change: Tensor, neurons: Tensor) -> Tensor:
        """Return the norm of the matrix after the change of each neuron alone."""
        matrix, pull = region.matrix, (region.pull * change)[:, neurons].T
        ahead = region.ahead[neurons, :-1]
        if self.norm == 2.0:
            # Of M + p·a', the smaller one of the two products with its transpose.
            if len(matrix) > matrix.shape[1]:
                matrix, pull, ahead = matrix.T, ahead, pull
            cross = torch.einsum("ni,nj->nij", pull, ahead @ matrix.T)
            squares = (ahead * ahead).sum(dim=1).reshape(-1, 1, 1)
            grams = matrix @ matrix.T + cross + cross.mT
            grams = grams + squares * torch.einsum("ni,nj->nij", pull, pull)
            return torch.linalg.eigvalsh(grams)[:, -1].clamp_min(0).sqrt()
        size = max(1, _CHUNK // max(1, matrix.numel()))
        norms = [
            torch.linalg.matrix_norm(matrix + torch.einsum("ni,nj->nij", p, a), float(self.norm))
            for p, a in zip(pull.split(size), ahead.split(size), strict=True)
        ]
        return torch.cat(norms)

    def _steeper(self, region: LinearRegion, left: "_Count") -> LinearRegion | None:
        """Look for a steeper neighbour, as long as linear programs are left.

        Returns:
            The steepest to which there is a way, None if there is none.
        """
        ways: _Ways | None = None
        for steepness, neurons in self.beyond(region):
            if steepness <= region.steepness * (1 + _SAME) or not left.take():
                return None
            ways = ways or _Ways(region, self.domain)
            point = ways.through(neurons)
            if point is not None:
                neighbour = self.at(point)
                if neighbour.steepness > region.steepness * (1 + _SAME):
                    return neighbour
        return None


class _Ways:
    """The ways out of a region, through the middle of its faces."""

    def __init__(self, region: LinearRegion, domain: Box | None) -> None:
        faces = region.faces
        lengths = torch.linalg.vector_norm(faces[:, :-1], dim=1)
        self._neurons = (lengths > 0).nonzero().squeeze(1)
        self._rows = faces[self._neurons] / lengths[self._neurons].unsqueeze(1)
        self._box = domain
        self._basis: Tensor | None = None
        if domain is None:
            # Only what the neurons see of an input matters, which may be less than all of it.
            _, values, right = torch.linalg.svd(self._rows[:, :-1], full_matrices=False)
            seen = values > 1e-12 * values.max()
            if int(seen.sum()) < region.point.numel():
                self._basis = right[seen]

    def through(self, neurons: Tensor) -> Tensor | None:
        """Return a point right behind the face at which these change; None if there is none."""
        crossed = torch.isin(self._neurons, neurons)
        line = self._rows[int(crossed.int().argmax())]
        rows, rest = self._rows[:, :-1], ~crossed
        if self._basis is not None:
            rows = rows @ self._basis.T
        size = rows.shape[1]
        left = torch.cat([rows[rest], torch.ones(int(rest.sum()), 1).double()], dim=1)
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * size
        gap = _FARTHEST
        if self._box is not None:
            gap = _BEYOND * (self._box[1] - self._box[0])
            bounds = [(self._box[0] + gap, self._box[1] - gap)] * size
        # The largest ball around a point of the face, in what surrounds the other faces.
        solution = linprog(
            np.append(np.zeros(size), -1.0),
            A_ub=left.numpy(),
            b_ub=-self._rows[rest, -1].numpy(),
            A_eq=torch.cat([rows[crossed][:1], torch.zeros(1, 1).double()], dim=1).numpy(),
            b_eq=-line[-1:].numpy(),
            bounds=[*bounds, (None, _FARTHEST)],
            method="highs",
        )
        if solution.status != 0 or solution.x is None:
            return None
        point, radius = torch.from_numpy(solution.x[:-1]), float(solution.x[-1])
        if not radius > _SAME * (1 + float(point.abs().max())):
            return None
        if self._basis is not None:
            point = point @ self._basis
        return point + _BEYOND * min(radius, gap) * line[:-1]


class _Count:
    """How many linear programs are left."""

    def __init__(self, number: int) -> None:
        self._left = number

    def take(self) -> bool:
        """Use one up.

        Returns:
            Whether there was one.
        """
        self._left -= 1
        return self._left >= 0

    @property
    def is_used_up(self) -> bool:
        """Return whether one was asked for that was not there."""
        return self._left < 0


def _identity(size: int) -> Tensor:
    return torch.eye(size, size + 1, dtype=torch.float64)


def _read(affine: Affine, values: Sequence[Tensor]) -> Tensor:
    """Return an affine map of known affine functions of the input."""
    total = torch.zeros(len(affine), values[0].shape[1], dtype=torch.float64)
    total[:, -1] = affine.offset.values[:, 0]
    for source, matrix in affine.matrices.items():
        total = total + matrix.values @ values[source]
    return total


def _key(region: LinearRegion) -> bytes:
    return region.right.numpy().tobytes()
