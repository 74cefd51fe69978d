"""LipSDP by an interior-point method: multipliers that make the certified l2 bound small.

The inequality is linear in ρ and μ, so the smallest ρ is a semidefinite program. Its matrices have
rank two, one pair of vectors for each neuron, so that Newton's equations of the barrier t·ρ -
log det P are made of a few products of matrices; a solver for general programs does not see that.
What is returned lies strictly inside, and is only a proposal.

Source:
    Boyd, Vandenberghe, Convex Optimization (2004), sections 9.6 and 11.3, for the barrier method;
    Newton's equations for this program are this project's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Matrix
from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.norm import Norm
from lipbench.refused import Refused

_GROWTH = 8.0
_CENTRED = 0.2
"""Newton decrement below which a point counts as central."""
_NEGLIGIBLE = 1e-13
_ROOM = 1.1
_LEAST = 1e-6
"""Weight of neurons that nothing reads."""
_TRACE = 1e-9
_NotSolved: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
_HALVINGS = 30


class Proposal(NamedTuple):
    """Multipliers, and the square of the bound that they promise."""

    multipliers: Float[Tensor, " neurons"]
    square: float
    gap: float
    """The share of the square by which a smaller one may exist; infinite if unknown."""


def propose(
    network: LoopTransformation,
    groups: Int[Tensor, " neurons"] | None = None,
    tolerance: float = 1e-6,
    iterations: int = 200,
) -> Proposal:
    """Return multipliers close to the best ones.

    Args:
        network: The network; it has neurons.
        groups: Number of the group of each neuron, whose members share a multiplier; None gives
            each its own.
        tolerance: Gap at which to stop.
        iterations: Most Newton steps.

    Raises:
        Refused: If the network is constant, or its numbers are beyond what float64 can solve.
    """
    if not network.reach(Norm(2.0))[-1] > 0:
        raise Refused("the outputs do not depend on the inputs: the network is constant.")
    network = _reading(network)
    try:
        return _solved(network, groups, tolerance, iterations)
    except _NotSolved:
        pass
    # Blocks whose constants differ by many orders: in units of their own they are alike.
    units = network.reach(Norm(2.0))
    try:
        proposal = _solved(_in_units(network, units), groups, tolerance, iterations)
    except _NotSolved as error:
        raise Refused(f"its multipliers are beyond float64: {error}") from error
    each = _each(network.sizes, units)
    scale = units[-1] ** 2
    return Proposal(
        proposal.multipliers * scale / each.square(), proposal.square * scale, proposal.gap
    )


def _solved(
    network: LoopTransformation,
    groups: Int[Tensor, " neurons"] | None,
    tolerance: float,
    iterations: int,
) -> Proposal:
    program = _Program.of(network, groups)
    point = program.start()
    decrement, t = torch.inf, program.balance(point)
    for _ in range(iterations):
        if decrement < _CENTRED:
            if program.size / t <= tolerance * point.square:
                break
            t *= _GROWTH
        point, decrement = program.newton(point, t)
    gap = program.size / (t * point.square) if decrement < _CENTRED else torch.inf
    scale = program.scale**2
    return Proposal(program.spread(point.weights) * scale, point.square * scale, float(gap))


def _reading(network: LoopTransformation) -> LoopTransformation:
    """Return the network with neurons that read nothing made to read a trace of an input.

    Their multipliers may be as large as one likes, so that without it the barrier has no minimum.
    """
    values = network.matrix.values
    idle = ~(values[: network.neurons] != 0).any(dim=1)
    if not network.inputs or not bool(idle.any()):
        return network
    units = _each(network.sizes, network.reach(Norm(2.0)))
    values = values.clone()
    values[: network.neurons, 0] += _TRACE * units * idle
    return replace(network, matrix=Matrix(values=values, radius=network.matrix.radius))


def _in_units(network: LoopTransformation, units: Sequence[float]) -> LoopTransformation:
    """Return the network whose neurons and outputs are divided by those of their block."""
    each = _each(network.sizes, units)
    rows = torch.cat([each, each.new_full((network.outputs,), units[-1])]).unsqueeze(1)
    columns = torch.cat([each.new_ones(network.inputs), each])
    values, radius = (
        matrix / rows * columns for matrix in (network.matrix.values, network.matrix.radius)
    )
    return replace(network, matrix=Matrix(values=values, radius=radius))


def _each(sizes: Sequence[int], units: Sequence[float]) -> Float[Tensor, " neurons"]:
    repeated = [unit or 1.0 for unit, size in zip(units, sizes, strict=False) for _ in range(size)]
    return torch.tensor(repeated, dtype=torch.float64)


class _Point(NamedTuple):
    square: float
    weights: Float[Tensor, " groups"]


@dataclass(frozen=True, kw_only=True)
class _Program:
    """P(ρ, w) = ρE + Σ μ(ss' - zz') - F'F, with E the projection on the inputs that are read."""

    rows: Float[Tensor, "neurons columns"]
    """The z of each neuron."""
    outputs: Float[Tensor, "outputs columns"]
    inputs: int
    blocks: tuple[slice, ...]
    """The neurons of each block."""
    reach: tuple[float, ...]
    """Certified Lipschitz constants of each block's neurons."""
    groups: Int[Tensor, " neurons"] | None
    count: int
    """Number of weights."""
    scale: float

    @classmethod
    def of(cls, network: LoopTransformation, groups: Tensor | None) -> "_Program":
        matrix = network.matrix.values
        first, rest = matrix[:, : network.inputs], matrix[:, network.inputs :]
        # Only the part of the inputs that is read counts, in whatever orthogonal coordinates.
        left, values, _ = torch.linalg.svd(first, full_matrices=False)
        some = values > _NEGLIGIBLE * values[:1]
        rows = torch.cat([left[:, some] * values[some], rest], dim=1)
        *reach, scale = network.reach(Norm(2.0))
        return cls(
            rows=rows[: network.neurons],
            outputs=rows[network.neurons :] / scale,
            inputs=int(some.sum()),
            blocks=tuple(block for block, _ in network.blocks()),
            groups=groups,
            reach=tuple(reach),
            count=network.neurons if groups is None else int(groups.max()) + 1,
            scale=scale,
        )

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    def spread(self, weights: Tensor) -> Tensor:
        return weights if self.groups is None else weights[self.groups]

    def gather(self, values: Tensor) -> Tensor:
        """Return the sums over groups along the first axis."""
        if self.groups is None:
            return values
        return values.new_zeros(self.count, *values.shape[1:]).index_add(0, self.groups, values)

    def matrix(self, point: _Point) -> Float[Tensor, "columns columns"]:
        weights = self.spread(point.weights)
        diagonal = torch.cat([weights.new_full((self.inputs,), point.square), weights])
        drop = self.rows.T @ (weights.unsqueeze(1) * self.rows) + self.outputs.T @ self.outputs
        return diagonal.diag() - drop

    def start(self) -> _Point:
        """Return a point inside; its square is a little more than `LoopTransformation.reach` has.

        With a_j the norm of what a row reads of block j, and K_j, K the certified constants of
        that block and of the row, (Σ a_j‖ψ_j‖)² is at most K Σ a_j‖ψ_j‖²/K_j: so much weight
        does block j need.
        """
        columns = [slice(0, self.inputs)]
        columns += [
            slice(self.inputs + block.start, self.inputs + block.stop) for block in self.blocks
        ]
        rows = [self.rows[block] for block in self.blocks] + [self.outputs]
        constants, needed = [1.0, *self.reach, 1.0], [_LEAST] * (len(columns) + 1)
        needed[-1] = 1.0
        for reader in range(len(columns), 0, -1):
            for earlier in range(reader):
                norm = float(torch.linalg.matrix_norm(rows[reader - 1][:, columns[earlier]], 2))
                share = constants[reader] * norm / max(constants[earlier], _LEAST)
                needed[earlier] += needed[reader] * share
            needed[reader - 1] *= _ROOM
        weights = self.rows.new_ones(len(self.rows))
        for block, weight in zip(self.blocks, needed[1:-1], strict=True):
            weights[block] = weight
        if self.groups is not None:
            weights = weights.new_zeros(self.count).scatter(0, self.groups, weights)
        return _Point(needed[0], weights)

    def balance(self, point: _Point) -> float:
        """Return the t at which a point is closest to central."""
        gradient, curvature = self._expansion(point, 0.0)
        towards = torch.zeros_like(gradient)
        towards[0] = 1.0
        solved = _solve(curvature, towards)
        return max(float(-(solved @ gradient) / solved[0]), self.size / point.square)

    def newton(self, point: _Point, t: float) -> tuple[_Point, float]:
        """Return the point after one step on t·ρ - log det P, and the decrement before it."""
        gradient, curvature = self._expansion(point, t)
        step = -_solve(curvature, gradient)
        decrement = float((-gradient @ step).clamp_min(0).sqrt())
        return self._along(point, step, t, decrement), decrement

    def _expansion(self, point: _Point, t: float) -> tuple[Tensor, Tensor]:
        """Return gradient and second derivatives of the barrier in ρ and the weights."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix(point)))
        n = self.inputs
        read = self.rows @ inverse
        inner, crossed, both = inverse[n:, n:], read[:, n:], read @ self.rows.T
        slope = self.gather(both.diagonal() - inner.diagonal())
        hessian = inner.square() - crossed.square() - crossed.T.square() + both.square()
        hessian = self.gather(self.gather(hessian).T)
        mixed = self.gather(inverse[n:, :n].square().sum(dim=1) - read[:, :n].square().sum(dim=1))
        corner = inverse[:n, :n]
        gradient = torch.cat([(t - corner.trace()).reshape(1), slope])
        first = torch.cat([corner.square().sum().reshape(1), mixed])
        return gradient, torch.cat(
            [first.unsqueeze(0), torch.cat([mixed.unsqueeze(1), hessian], dim=1)]
        )

    def _along(self, point: _Point, step: Tensor, t: float, decrement: float) -> _Point:
        """Return the first point along the step, halved in turn, that lies inside and lower."""
        before, length = self._barrier(point, t), 1.0
        for _ in range(_HALVINGS):
            moved = _Point(
                point.square + length * float(step[0]), point.weights + length * step[1:]
            )
            if self._barrier(moved, t) <= before - 0.1 * length * decrement**2:
                return moved
            length /= 2
        return point

    def _barrier(self, point: _Point, t: float) -> float:
        factor, info = torch.linalg.cholesky_ex(self.matrix(point))
        if int(info) or not bool((point.weights > 0).all()):
            return float("inf")
        return t * point.square - 2 * float(factor.diagonal().log().sum())


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    # In units in which the diagonal is 1: those of weights may differ by many orders.
    units = matrix.diagonal().rsqrt()
    solution: Tensor = torch.linalg.solve(matrix * units * units.unsqueeze(1), units * vector)
    return units * solution
