"""A barrier method for matrices that are nearest to given ones under a matrix inequality.

The matrix N of the inequality is linear in the weights, which stand in blocks of it above and below
its diagonal, and in q, which stands on its diagonal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_GROWTH = 10.0
_CENTRED = 0.25
"""Newton decrement below which a point counts as central."""
_HALVINGS = 40
_GAIN = 0.02
"""Share of b'x that the last products of conjugate gradients must gain for more of them."""
_WINDOW = 4
_NEGLIGIBLE = 1e-28
_PRODUCTS = 200


class WeightBlock(NamedTuple):
    """A block of N above its diagonal: a layer's weights, times `left` and `right`."""

    layer: int
    rows: slice
    columns: slice
    left: Float[Tensor, "out 1"]
    right: Float[Tensor, " in"]


class BarrierPoint(NamedTuple):
    """Weights in a row, and q."""

    weights: Float[Tensor, " weights"]
    square: float
    """q: the ρ of the inequality, in units of the first one."""


@dataclass(frozen=True, kw_only=True)
class BarrierProgram:
    """Minimise ½‖w - v‖² + price·q subject to N(w, q) ≥ 0, by Newton's method on a barrier.

    Newton's equations are solved by conjugate gradients: a product with the second derivatives
    takes two products of matrices of the size of N, and without the terms that couple layers, and
    those that are small where N is far from singular, they are Kronecker products.
    """

    target: Float[Tensor, " weights"]
    shapes: tuple[tuple[int, int], ...]
    blocks: tuple[WeightBlock, ...]
    size: int
    """Rows of N."""
    inputs: int
    """The first of them, whose diagonal is q."""
    price: float | None
    """None keeps q at 1."""

    def solve(self, tolerance: float) -> BarrierPoint:
        """Return a point inside, with an objective close to the least."""
        if (
            self.price is None
            and self.barrier(target := BarrierPoint(self.target, 1.0), 0.0) < math.inf
        ):
            return target
        point = BarrierPoint(torch.zeros_like(self.target), 1.0)
        first = self.objective(point)
        t = self.size / first
        while True:
            point = self.centred(point, t)
            if self.size / t <= tolerance * first:
                return point
            t *= _GROWTH

    def centred(self, point: BarrierPoint, t: float) -> BarrierPoint:
        """Return a point close to the minimum of t·objective - log det N."""
        for _ in range(_HALVINGS):
            step, slope = self.newton(point, t)
            before, length = self.barrier(point, t), 1.0
            if -slope < _CENTRED**2:
                break
            for _ in range(_HALVINGS):
                moved = BarrierPoint(
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

    def newton(self, point: BarrierPoint, t: float) -> tuple[Tensor, float]:
        """Return an approximate Newton step, and the barrier's slope along it."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix(point)))
        gradient = -self.pulled(inverse)
        count = len(self.target)
        gradient[:count] += t * (point.weights - self.target)
        if self.price:
            gradient[count] += t * self.price

        def curved(vector: Tensor) -> Tensor:
            image = self.pulled(inverse @ self.spread(vector) @ inverse)
            image[:count] += t * vector[:count]
            return image

        step = -_conjugate(curved, self.preconditioner(inverse, t), gradient)
        return step, float(gradient @ step)

    def objective(self, point: BarrierPoint) -> float:
        """Return the objective ½‖w - v‖² + price·q."""
        distance = 0.5 * float((point.weights - self.target).square().sum())
        return distance + (self.price or 0.0) * point.square

    def matrix(self, point: BarrierPoint) -> Float[Tensor, "size size"]:
        """Return N."""
        diagonal = point.weights.new_ones(self.size)
        diagonal[: self.inputs] = point.square
        return self.spread(point.weights) + diagonal.diag()

    def barrier(self, point: BarrierPoint, t: float) -> float:
        """Return t·objective - log det N, infinite outside."""
        if not point.square > 0:
            return math.inf
        factor, info = torch.linalg.cholesky_ex(self.matrix(point))
        if int(info):
            return math.inf
        return t * self.objective(point) - 2 * float(factor.diagonal().log().sum())

    def spread(self, vector: Tensor) -> Float[Tensor, "size size"]:
        """Return N without the blocks that do not change, for weights and perhaps a q."""
        matrix = vector.new_zeros(self.size, self.size)
        layers = self.by_layer(vector)
        for block in self.blocks:
            scaled = block.left * layers[block.layer] * block.right
            matrix[block.rows, block.columns] = scaled
            matrix[block.columns, block.rows] = scaled.T
        if len(vector) > len(self.target):
            matrix.diagonal()[: self.inputs] = vector[-1]
        return matrix

    def pulled(self, matrix: Float[Tensor, "size size"]) -> Tensor:
        """Return the adjoint of `spread`, of a symmetric matrix."""
        sums: list[Tensor] = [matrix.new_zeros(shape) for shape in self.shapes]
        for block in self.blocks:
            sums[block.layer] += 2 * block.left * matrix[block.rows, block.columns] * block.right
        flat = [total.flatten() for total in sums]
        if self.price:
            flat.append(matrix.diagonal()[: self.inputs].sum().reshape(1))
        return torch.cat(flat)

    def preconditioner(self, inverse: Tensor, t: float) -> Callable[[Tensor], Tensor]:
        """Return the solution of 2·A ⊗ B + t = · for each layer, as a function."""
        bases = []
        for layer in range(len(self.shapes)):
            blocks = [block for block in self.blocks if block.layer == layer]
            left = sum(b.left * inverse[b.rows, b.rows] * b.left.T for b in blocks)
            right = blocks[0].right.unsqueeze(1) * inverse[blocks[0].columns, blocks[0].columns]
            rows, columns = torch.linalg.eigh(left), torch.linalg.eigh(right * blocks[0].right)
            bases.append((rows[1], columns[1], 1 / (2 * rows[0].unsqueeze(1) * columns[0] + t)))
        corner = inverse[: self.inputs, : self.inputs].square().sum().reshape(1)

        def solution(vector: Tensor) -> Tensor:
            pairs = zip(bases, self.by_layer(vector), strict=True)
            flat = [
                (left @ (left.T @ matrix @ right * shrunk) @ right.T).flatten()
                for (left, right, shrunk), matrix in pairs
            ]
            if self.price:
                flat.append(vector[-1:] / corner)
            return torch.cat(flat)

        return solution

    def by_layer(self, vector: Tensor) -> list[Tensor]:
        """Return the matrix of each layer, from a vector of all weights."""
        sizes = [out * reads for out, reads in self.shapes]
        split = vector[: len(self.target)].split(sizes)
        return [weights.view(shape) for weights, shape in zip(split, self.shapes, strict=True)]


def _conjugate(
    product: Callable[[Tensor], Tensor], solution: Callable[[Tensor], Tensor], right: Tensor
) -> Tensor:
    """Return an approximate solution x of Hx = b by conjugate gradients; b'x > 0 in any case.

    It stops by what the last products gained in b'x. The residual would not do: in directions along
    the border of the inequality the preconditioner is far too large.
    """
    iterate, rest = torch.zeros_like(right), right
    direction = close = solution(rest)
    energy = first = float(rest @ close)
    gains: list[float] = []
    while len(gains) < _PRODUCTS and energy > _NEGLIGIBLE * first:
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:  # rounding has the better of it
            break
        length = energy / curvature
        iterate, rest = iterate + length * direction, rest - length * image
        gains.append(length * energy)
        if math.fsum(gains[-_WINDOW:]) <= _GAIN * math.fsum(gains) and len(gains) > _WINDOW:
            break
        close = solution(rest)
        energy, before = float(rest @ close), energy
        direction = close + energy / before * direction
    return iterate
