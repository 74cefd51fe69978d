"""Affine maps and matrices that carry a bound of their own rounding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.layers.elementwise import Elementwise
from lipbench.lipschitz.relaxations.rounding import UNIT


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A float64 matrix, and how far each entry may be from that of the exact network."""

    values: Float[Tensor, "rows columns"]
    radius: Float[Tensor, "rows columns"]

    @classmethod
    def exact(cls, values: Float[Tensor, "rows columns"]) -> "Matrix":
        """Return a matrix whose entries are exact."""
        return cls(values=values, radius=torch.zeros_like(values))

    @classmethod
    def held(
        cls, values: Float[Tensor, "rows columns"], radius: Float[Tensor, "rows columns"]
    ) -> "Matrix":
        """Return a matrix as a step holds it, and how far that may be from what layers store."""
        return cls(values=values, radius=radius)

    @property
    def negative(self) -> "Matrix":
        """Return the matrix times -1."""
        return Matrix(values=-self.values, radius=self.radius)

    @property
    def transposed(self) -> "Matrix":
        """Return the matrix with rows as columns."""
        return Matrix(values=self.values.T, radius=self.radius.T)

    @property
    def selects(self) -> bool:
        """Return whether columns have one entry at most, and that is 1: products are exact."""
        bits = (self.values == 0) | (self.values == 1)
        return bool(bits.all()) and bool((self.values.sum(dim=0) <= 1).all())

    def plus(self, other: "Matrix") -> "Matrix":
        """Return the sum; adding zeros is exact."""
        values = self.values + other.values
        some = (self.values != 0) & (other.values != 0)
        rounding = torch.where(some, UNIT * values.abs(), 0.0)
        return Matrix(values=values, radius=self.radius + other.radius + rounding)

    def blurred(self, radius: Float[Tensor, "rows columns"]) -> "Matrix":
        """Return the matrix with entries that may be off by as much more."""
        return Matrix(values=self.values, radius=self.radius + radius)

    def scaled(self, factor: Float[Tensor, "rows 1"], *, held: bool = False) -> "Matrix":
        """Return the rows times factors that are off by a few roundings, unless 0, 1 or -1.

        Args:
            factor: The factors.
            held: Whether a step holds them as they are.
        """
        values = self.values * factor
        rounding = torch.where((factor == 0) | (factor.abs() == 1), 0.0, 8 * UNIT * values.abs())
        return Matrix(values=values, radius=self.radius * factor.abs() * (1 + UNIT) + rounding)

    def times(self, matrix: Float[Tensor, "results rows"]) -> "Matrix":
        """Return the product with an exact matrix from the left."""
        terms = 0.0 if self.selects else (matrix.shape[1] + 2) * UNIT
        spread = matrix.abs() @ (self.radius + terms * self.values.abs())
        return Matrix(values=matrix @ self.values, radius=spread * (1 + terms))

    def through(
        self,
        linear: Elementwise,
        absolute: Elementwise,
        shape: tuple[int, ...],
        terms: int,
        *,
        sums: bool = False,
    ) -> "Matrix":
        """Return a linear function of each column.

        Args:
            linear: The function, of samples of a shape.
            absolute: The function with absolute values of its weights.
            shape: The shape of a sample.
            terms: The most products that make up one result.
            sums: Whether the entries of its matrix are sums of weights, and rounded.
        """

        def columnwise(function: Elementwise, matrix: Tensor) -> Tensor:
            return function(matrix.T.reshape(-1, *shape)).flatten(1).T

        values, share = columnwise(linear, self.values), (terms + 2) * UNIT
        spread = (
            self.radius if self.selects and not sums else self.radius + share * self.values.abs()
        )
        return Matrix(values=values, radius=columnwise(absolute, spread) * (1 + share))

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "Matrix":
        """Return some of the rows."""
        return Matrix(values=self.values[chosen], radius=self.radius[chosen])

    def among(self, indices: Int[Tensor, " rows"], count: int) -> "Matrix":
        """Return the matrix with its rows at these indices among `count`, zero elsewhere."""
        values, radius = (
            entries.new_zeros(count, entries.shape[1]).index_copy(0, indices, entries)
            for entries in (self.values, self.radius)
        )
        return Matrix(values=values, radius=radius)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Numbers that are affine in the input (source 0) and in the neurons of blocks (1, 2, ...)."""

    matrices: Mapping[int, Matrix]
    """One matrix for each source that is read."""
    offset: Matrix
    """One column."""

    def __len__(self) -> int:
        return len(self.offset.values)

    def __call__(self, values: Sequence[Tensor]) -> Float[Tensor, "batch numbers"]:
        """Return the numbers for samples of all sources, in their order."""
        total = self.offset.values.T
        for source, matrix in self.matrices.items():
            total = total + values[source] @ matrix.values.T
        return total

    @property
    def negative(self) -> "Affine":
        """Return the numbers times -1."""
        return self.each(lambda matrix: matrix.negative)

    def each(self, function: Callable[[Matrix], Matrix]) -> "Affine":
        """Return the same with every matrix replaced: a linear map of all numbers."""
        matrices = {source: function(matrix) for source, matrix in self.matrices.items()}
        return Affine(matrices=matrices, offset=function(self.offset))

    def plus(self, other: "Affine") -> "Affine":
        """Return the sum, number by number."""
        matrices = dict(self.matrices)
        for source, matrix in other.matrices.items():
            matrices[source] = matrices[source].plus(matrix) if source in matrices else matrix
        return Affine(matrices=matrices, offset=self.offset.plus(other.offset))

    def rows(self, chosen: Tensor) -> "Affine":
        """Return some of the numbers."""
        return self.each(lambda matrix: matrix.rows(chosen))
