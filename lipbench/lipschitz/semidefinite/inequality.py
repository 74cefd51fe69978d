"""The matrix inequality of LipSDP as a constraint on weights, its multipliers held fixed.

For a chain of dense layers W_1, ..., W_k with neurons between them, whose slopes lie in [a, b] with
a ≤ 0 ≤ b, and multipliers T_i > 0 of the neurons behind W_i, the constant is at most √ρ if

    ρ‖x_0‖² - ‖W_k x_(k-1)‖² - 2 Σ T_i (x_i - a z_i)(b z_i - x_i) ≥ 0,  z_i = W_i x_(i-1),

for all vectors x_0, ..., x_(k-1). That is quadratic in the weights, with products -a·b·z_i² and
‖W_k x‖² of the sign that a Schur complement takes away: what is left is a matrix N that is linear
in all weights and in ρ, and positive semidefinite where the inequality holds. For one layer of
neurons with slopes in [0, 1] it is

    [[ρ, W_1'T, 0], [T W_1, 2T, W_2'], [0, W_2, 1]].

In coordinates in which its diagonal blocks are 1, the neurons' scaled by (2T)^-½, its blocks couple
only to the next one. So N ≥ 0 says that one matrix, with scaled weights as its blocks, has a norm
of at most 1: for [0, 1] that is ‖[(T/2ρ)^½ W_1, (2T)^-½ W_2']‖ ≤ 1.

Weights nearest to given ones are found by a barrier method on N; slopes with a > 0 count as [0, b].

Source:
    Pauli, Koch, Berberich, Kohler, Allgöwer, Training Robust Neural Networks Using Lipschitz
    Bounds (2022), https://arxiv.org/abs/2005.02929, and its public code: one layer of neurons with
    slopes in [0, 1]. More layers, other slopes, the norm and the solver are this project's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.relaxations.loop_transformation import Centred, centre
from lipbench.lipschitz.relaxations.neuron_blocks import unroll
from lipbench.lipschitz.semidefinite.certify import certify
from lipbench.lipschitz.semidefinite.interior_point import propose
from lipbench.networks.network import Network
from lipbench.networks.steps import Dense, Linear, Rearrange, Scale, Slope, Step
from lipbench.norm import Norm
from lipbench.refused import Refused

Weights = tuple[Tensor, ...]
"""The matrices of a chain in order, in float64."""
Multipliers = tuple[Tensor, ...]
"""The T of each layer of neurons in order, in float64."""

_GROWTH = 10.0
_CENTRED = 0.25
"""Newton decrement below which a point counts as central."""
_HALVINGS = 40
_GAIN = 0.02
"""Share of b'x that the last products of conjugate gradients must gain for more of them."""
_WINDOW = 4
_NEGLIGIBLE = 1e-28
_PRODUCTS = 200


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The dense layers of a network, and what stands between and around them."""

    names: tuple[str, ...]
    """Names of the weights among the network's parameters."""
    weights: Weights
    slopes: tuple[tuple[Tensor, Tensor], ...]
    """Least and largest slope of the neurons behind each layer but the last, 0 between them."""
    factor: float
    """The constant of what stands before the first layer times that of what follows the last."""
    core: Network
    """The network from the first layer to the last."""

    @classmethod
    def of(cls, network: Network) -> "Layers":
        """Return the layers of a float64 network.

        Raises:
            Refused: If it is no chain of dense layers on vectors, with neurons between them.
        """
        steps = network.steps
        places = [place for place, step in enumerate(steps) if isinstance(step, Dense)]
        if not network.is_chain or len(places) < 2:
            raise Refused("it needs a chain of two dense layers or more.")
        slopes = []
        for one, other in pairwise(places):
            between = [step for step in steps[one + 1 : other] if not isinstance(step, Rearrange)]
            if len(between) != 1 or not isinstance(between[0], Slope):
                raise Refused(
                    "it needs one layer of neurons, and nothing else, between "
                    f"{steps[one].name!r} and {steps[other].name!r}."
                )
            slopes.append(_slopes(between[0]))
        for place in places:
            if len(steps[place].input_shape) != 1:
                raise Refused(f"layer {steps[place].name!r} does not read a vector.")
        around = steps[: places[0]] + steps[places[-1] + 1 :]
        for step in around:
            if isinstance(step, Linear) or (isinstance(step, Scale) and step.weight_name):
                raise Refused(f"step {step.name!r} is trained, too, and is no dense layer.")
        factor = math.prod(constant(step, Norm(2)) for step in around) * (1 + 1e-12)
        if not 0 < factor < math.inf:
            raise Refused(f"what stands around its dense layers has the constant {factor}.")
        inside = steps[places[0] : places[-1] + 1]
        core = Network(
            input_shape=inside[0].input_shape,
            steps=tuple(replace(step, inputs=(place,)) for place, step in enumerate(inside)),
            output=len(inside),
        )
        return cls(
            names=tuple(layer.weight_name for layer in core.layers),
            weights=tuple(layer.weight for layer in core.layers),
            slopes=tuple(slopes),
            factor=factor,
            core=core,
        )

    @property
    def size(self) -> int:
        """Return how many numbers the constrained weights are, in the coordinates that count."""
        return sum(map(torch.numel, reduced(self.weights)[0]))

    def best(self) -> tuple[Multipliers, float]:
        """Return the multipliers that prove the least constant, and its square.

        Where the network is constant, all multipliers are 1.
        """
        centred = self._centred(self.weights)
        ones = tuple(torch.ones_like(hi) for _, hi in self.slopes)
        if not 0 < centred.reach(Norm(2))[-1] < math.inf:
            return ones, 0.0
        found = propose(centred)
        if not bool((found.multipliers > 0).all()):
            return ones, found.square
        parts = found.multipliers.split(list(centred.sizes))
        halves = [(hi - lo) / 2 for lo, hi in self.slopes]
        pairs = zip(parts, halves, strict=True)
        return tuple(part / (2 * half**2) for part, half in pairs), found.square

    def proved(self, weights: Weights, multipliers: Multipliers, square: float) -> float:
        """Return the certified constant of the core with other weights, from these multipliers."""
        halves = [(hi - lo) / 2 for lo, hi in self.slopes]
        pairs = zip(multipliers, halves, strict=True)
        own = torch.cat([2 * part * half**2 for part, half in pairs])
        return certify(self._centred(weights), own, square)[0]

    def _centred(self, weights: Weights) -> Centred:
        left = iter(weights)
        steps: tuple[Step, ...] = tuple(
            replace(step, weight=next(left)) if isinstance(step, Dense) else step
            for step in self.core.steps
        )
        return centre(unroll(replace(self.core, steps=steps)), self.slopes)


def rescaled(multipliers: Multipliers, ratio: float) -> Multipliers:
    """Return the multipliers of a network all of whose layers are scaled by one number.

    Args:
        multipliers: Those of the network.
        ratio: By what its constant is multiplied, so each of k layers by ratio^(1/k).
    """
    count = len(multipliers)
    share = ratio ** (2 / (count + 1))
    return tuple(part * share ** (count - place) for place, part in enumerate(multipliers))


@dataclass(frozen=True, kw_only=True)
class Inequality:
    """N for fixed multipliers."""

    slopes: tuple[tuple[Tensor, Tensor], ...]
    multipliers: Multipliers

    def nearest(
        self, targets: Weights, square: float, tolerance: float = 1e-5
    ) -> tuple[Weights, float]:
        """Return the weights with N ≥ 0 for ρ = `square` that are nearest to others.

        Args:
            targets: The others.
            square: ρ.
            tolerance: How far ½ Σ‖W - V‖² may be from its least value, as a share of ½ Σ‖V‖².

        Returns:
            Weights that lie strictly inside, and `square`.
        """
        return self._solve(targets, square, None, tolerance)

    def cheapest(
        self, targets: Weights, price: float, square: float, tolerance: float = 1e-5
    ) -> tuple[Weights, float]:
        """Return the weights and the ρ with N ≥ 0 that minimise ½ Σ‖W - V‖² + price·ρ.

        Args:
            targets: The V.
            price: What ρ costs; positive.
            square: A ρ to start from, whose size decides nothing.
            tolerance: How far the objective may be from its least value, as a share of its
                value for W = 0 and that ρ.

        Returns:
            Weights that lie strictly inside, and ρ.
        """
        return self._solve(targets, square, price, tolerance)

    def _solve(
        self, targets: Weights, square: float, price: float | None, tolerance: float
    ) -> tuple[Weights, float]:
        cores, restore = reduced(targets)
        program = _Program.of(self, cores, square, price)
        point = program.solve(tolerance)
        sizes = [core.numel() for core in cores]
        parts = point.weights.split(sizes)
        found = [part.view_as(core) for part, core in zip(parts, cores, strict=True)]
        return restore(found), square * point.square


class _Point(NamedTuple):
    weights: Float[Tensor, " weights"]
    square: float
    """ρ, in units of the first one."""


class _Place(NamedTuple):
    """Where a layer's weights stand in N above its diagonal, and what they are multiplied by."""

    layer: int
    rows: slice
    columns: slice
    left: Float[Tensor, "out 1"]
    right: Float[Tensor, " in"]


@dataclass(frozen=True, kw_only=True)
class _Program:
    """Minimise ½‖w - v‖² + price·q subject to N(w, q) ≥ 0, by Newton's method on a barrier.

    Newton's equations are solved by conjugate gradients: a product with the second derivatives
    takes two products of matrices of the size of N, and without the terms that couple layers, and
    those that are small where N is far from singular, they are Kronecker products.
    """

    target: Float[Tensor, " weights"]
    shapes: tuple[tuple[int, int], ...]
    places: tuple[_Place, ...]
    size: int
    """Rows of N."""
    inputs: int
    """The first of them, whose diagonal is q."""
    price: float | None
    """None keeps q at 1."""

    @classmethod
    def of(
        cls, inequality: Inequality, targets: Sequence[Tensor], square: float, price: float | None
    ) -> "_Program":
        places, size = _places(inequality, targets, square)
        return cls(
            target=torch.cat([target.flatten() for target in targets]),
            shapes=tuple((target.shape[0], target.shape[1]) for target in targets),
            places=places,
            size=size,
            inputs=targets[0].shape[1],
            price=None if price is None else price * square,
        )

    def solve(self, tolerance: float) -> _Point:
        """Return a point inside, with an objective close to the least."""
        if self.price is None and self.barrier(own := _Point(self.target, 1.0), 0.0) < math.inf:
            return own
        point = _Point(torch.zeros_like(self.target), 1.0)
        first = self.objective(point)
        t = self.size / first
        while True:
            point = self.centred(point, t)
            if self.size / t <= tolerance * first:
                return point
            t *= _GROWTH

    def centred(self, point: _Point, t: float) -> _Point:
        """Return a point close to the minimum of t·objective - log det N."""
        for _ in range(_HALVINGS):
            step, slope = self.newton(point, t)
            before, length = self.barrier(point, t), 1.0
            if -slope < _CENTRED**2:
                break
            for _ in range(_HALVINGS):
                moved = _Point(
                    point.weights + length * step[: len(self.target)],
                    point.square + (length * float(step[-1]) if self.price else 0.0),
                )
                if self.barrier(moved, t) <= before + 0.1 * length * slope:
                    break
                length /= 2
            else:
                break
            point = moved
        return point

    def newton(self, point: _Point, t: float) -> tuple[Tensor, float]:
        """Return about the Newton step, and the barrier's slope along it."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix(point)))
        gradient = -self.pulled(inverse)
        count = len(self.target)
        gradient[:count] += t * (point.weights - self.target)
        if self.price:
            gradient[count] += t * self.price

        def curved(vector: Tensor) -> Tensor:
            found = self.pulled(inverse @ self.spread(vector) @ inverse)
            found[:count] += t * vector[:count]
            return found

        step = -_conjugate(curved, self.preconditioner(inverse, t), gradient)
        return step, float(gradient @ step)

    def objective(self, point: _Point) -> float:
        distance = 0.5 * float((point.weights - self.target).square().sum())
        return distance + (self.price or 0.0) * point.square

    def matrix(self, point: _Point) -> Float[Tensor, "size size"]:
        diagonal = point.weights.new_ones(self.size)
        diagonal[: self.inputs] = point.square
        return self.spread(point.weights) + diagonal.diag()

    def barrier(self, point: _Point, t: float) -> float:
        if not point.square > 0:
            return math.inf
        factor, info = torch.linalg.cholesky_ex(self.matrix(point))
        if int(info):
            return math.inf
        return t * self.objective(point) - 2 * float(factor.diagonal().log().sum())

    def spread(self, vector: Tensor) -> Float[Tensor, "size size"]:
        """Return N without the parts that do not change, for weights and perhaps a q."""
        found = vector.new_zeros(self.size, self.size)
        parts = self.parts(vector)
        for place in self.places:
            scaled = place.left * parts[place.layer] * place.right
            found[place.rows, place.columns] = scaled
            found[place.columns, place.rows] = scaled.T
        if len(vector) > len(self.target):
            found.diagonal()[: self.inputs] = vector[-1]
        return found

    def pulled(self, matrix: Float[Tensor, "size size"]) -> Tensor:
        """Return the adjoint of `spread`, of a symmetric matrix."""
        sums: list[Tensor] = [matrix.new_zeros(shape) for shape in self.shapes]
        for place in self.places:
            sums[place.layer] += 2 * place.left * matrix[place.rows, place.columns] * place.right
        flat = [part.flatten() for part in sums]
        if self.price:
            flat.append(matrix.diagonal()[: self.inputs].sum().reshape(1))
        return torch.cat(flat)

    def preconditioner(self, inverse: Tensor, t: float) -> Callable[[Tensor], Tensor]:
        """Return the solution of 2·A ⊗ B + t = · for each layer, as a function."""
        bases = []
        for layer in range(len(self.shapes)):
            own = [place for place in self.places if place.layer == layer]
            left = sum(p.left * inverse[p.rows, p.rows] * p.left.T for p in own)
            right = own[0].right.unsqueeze(1) * inverse[own[0].columns, own[0].columns]
            one, other = torch.linalg.eigh(left), torch.linalg.eigh(right * own[0].right)
            bases.append((one[1], other[1], 1 / (2 * one[0].unsqueeze(1) * other[0] + t)))
        corner = inverse[: self.inputs, : self.inputs].square().sum().reshape(1)

        def solution(vector: Tensor) -> Tensor:
            parts = zip(bases, self.parts(vector), strict=True)
            flat = [
                (left @ (left.T @ part @ right * shrunk) @ right.T).flatten()
                for (left, right, shrunk), part in parts
            ]
            if self.price:
                flat.append(vector[-1:] / corner)
            return torch.cat(flat)

        return solution

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Return the matrices of a vector of all weights."""
        sizes = [out * reads for out, reads in self.shapes]
        split = vector[: len(self.target)].split(sizes)
        return [part.view(shape) for part, shape in zip(split, self.shapes, strict=True)]


def _places(
    inequality: Inequality, targets: Sequence[Tensor], square: float
) -> tuple[tuple[_Place, ...], int]:
    """Return the places of all layers, and the size of N.

    Its rows are the inputs, the neurons of each layer and the outputs, then a second copy of the
    neurons of layers whose slopes have both signs.
    """
    found: list[_Place] = []
    size = targets[0].shape[1] + sum(len(target) for target in targets)
    before = targets[0].new_full((targets[0].shape[1],), square).sqrt()
    start = 0
    for layer, target in enumerate(targets):
        count, reads = target.shape
        columns, rows = slice(start, start + reads), slice(start + reads, start + reads + count)
        if layer == len(targets) - 1:
            found.append(_Place(layer, rows, columns, before.new_ones(count, 1), 1 / before))
            break
        (lo, hi), own = inequality.slopes[layer], inequality.multipliers[layer]
        after = (2 * own).sqrt()
        share = (lo + hi) * own / after
        found.append(_Place(layer, rows, columns, share.unsqueeze(1), 1 / before))
        if bool((lo < 0).any()):
            both = (-2 * lo * hi * own).sqrt().unsqueeze(1)
            found.append(_Place(layer, slice(size, size + count), columns, both, 1 / before))
            size += count
        start, before = start + reads, after
    return tuple(found), size


def reduced(
    weights: Sequence[Tensor],
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Weights]]:
    """Return smaller matrices in the place of the first and the last, and the way back.

    What the first layer does not read, and the last one does not write, stays 0 in the nearest
    weights, so that only coordinates in the span of its rows, or columns, count.
    """
    first, *middle, last = weights
    wide, tall = first.shape[1] > first.shape[0], last.shape[0] > last.shape[1]
    right = left = None
    if wide:
        right, corner = torch.linalg.qr(first.T)
        first = corner.T
    if tall:
        left, last = torch.linalg.qr(last)

    def restore(found: Sequence[Tensor]) -> Weights:
        one, *others, other = found
        one = one if right is None else one @ right.T
        return one, *others, other if left is None else left @ other

    return [first, *middle, last], restore


def _slopes(step: Slope) -> tuple[Tensor, Tensor]:
    ends = (torch.as_tensor(end, dtype=torch.float64) for end in (step.lo, step.hi))
    lo, hi = (end.expand(step.input_shape).flatten() for end in ends)
    if not bool((lo.isfinite() & hi.isfinite() & (lo < hi)).all()):
        raise Refused(f"step {step.name!r} has slopes that are not bounded, or are one number.")
    return lo.clamp_max(0), hi.clamp_min(0)


def _conjugate(
    product: Callable[[Tensor], Tensor], solution: Callable[[Tensor], Tensor], right: Tensor
) -> Tensor:
    """Return about the x with Hx = b by conjugate gradients; whatever it is, b'x > 0.

    It stops by what the last products gained in b'x. The residual would not do: in directions along
    the border of the inequality the preconditioner is far too large.
    """
    found, rest = torch.zeros_like(right), right
    direction = close = solution(rest)
    energy = first = float(rest @ close)
    gains: list[float] = []
    while len(gains) < _PRODUCTS and energy > _NEGLIGIBLE * first:
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:  # rounding has the better of it
            break
        length = energy / curvature
        found, rest = found + length * direction, rest - length * image
        gains.append(length * energy)
        if math.fsum(gains[-_WINDOW:]) <= _GAIN * math.fsum(gains) and len(gains) > _WINDOW:
            break
        close = solution(rest)
        energy, before = float(rest @ close), energy
        direction = close + energy / before * direction
    return found
