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


class Place(NamedTuple):
    """Where a layer's weights stand in N above its diagonal, and what they are multiplied by."""

    layer: int
    rows: slice
    columns: slice
    left: Float[Tensor, "out 1"]
    right: Float[Tensor, " in"]


class Point(NamedTuple):
    """Weights in a row, and q."""

    weights: Float[Tensor, " weights"]
    square: float
    """q: the ρ of the inequality, in units of the first one."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """Minimise ½‖w - v‖² + price·q subject to N(w, q) ≥ 0, by Newton's method on a barrier.

    Newton's equations are solved by conjugate gradients: a product with the second derivatives
    takes two products of matrices of the size of N, and without the terms that couple layers, and
    those that are small where N is far from singular, they are Kronecker products.
    """

    target: Float[Tensor, " weights"]
    shapes: tuple[tuple[int, int], ...]
    places: tuple[Place, ...]
    size: int
    """Rows of N."""
    inputs: int
    """The first of them, whose diagonal is q."""
    price: float | None
    """None keeps q at 1."""

    def solve(self, tolerance: float) -> Point:
        """Return a point inside, with an objective close to the least."""
        if self.price is None and self.barrier(own := Point(self.target, 1.0), 0.0) < math.inf:
            return own
        point = Point(torch.zeros_like(self.target), 1.0)
        first = self.objective(point)
        t = self.size / first
        while True:
            point = self.centred(point, t)
            if self.size / t <= tolerance * first:
                return point
            t *= _GROWTH

    def centred(self, point: Point, t: float) -> Point:
        """Return a point close to the minimum of t·objective - log det N."""
        for _ in range(_HALVINGS):
            step, slope = self.newton(point, t)
            before, length = self.barrier(point, t), 1.0
            if -slope < _CENTRED**2:
                break
            for _ in range(_HALVINGS):
                moved = Point(
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

    def newton(self, point: Point, t: float) -> tuple[Tensor, float]:
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

    def objective(self, point: Point) -> float:
        """Return what is minimised."""
        distance = 0.5 * float((point.weights - self.target).square().sum())
        return distance + (self.price or 0.0) * point.square

    def matrix(self, point: Point) -> Float[Tensor, "size size"]:
        """Return N."""
        diagonal = point.weights.new_ones(self.size)
        diagonal[: self.inputs] = point.square
        return self.spread(point.weights) + diagonal.diag()

    def barrier(self, point: Point, t: float) -> float:
        """Return t·objective - log det N, infinite outside."""
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
