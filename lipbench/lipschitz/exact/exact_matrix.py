"""Exact matrix products: matrices that carry rational numbers beside the rounded ones."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.layers.elementwise import Elementwise
from lipbench.lipschitz.exact.dyadic import Dyadic
from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks


@dataclass(frozen=True, kw_only=True)
class ExactMatrix(Matrix):
    """A matrix that knows its very numbers where these are sums of products of float64 numbers.

    Scales count with the factors and offsets that their steps hold. Python's integers are slow:
    this is for networks of a few dozen neurons.
    """

    dyadic: Dyadic | None
    """The numbers; None if they are known up to rounding only."""

    @classmethod
    def exact(cls, values: Float[Tensor, "rows columns"]) -> "ExactMatrix":
        """Return a matrix whose float64 entries are exact."""
        return cls.held(values, torch.zeros_like(values))

    @classmethod
    def held(
        cls, values: Float[Tensor, "rows columns"], radius: Float[Tensor, "rows columns"]
    ) -> "ExactMatrix":
        """Return a matrix whose entries count as exact, as a step holds them."""
        return cls(values=values, radius=radius, dyadic=Dyadic.of(values))

    @property
    def negative(self) -> "ExactMatrix":
        """Return the matrix times -1."""
        return self._with(super().negative, self.dyadic and self.dyadic.negative)

    def plus(self, other: Matrix) -> "ExactMatrix":
        """Return the sum."""
        left, right = self.dyadic, very(other)
        return self._with(super().plus(other), left.plus(right) if left and right else None)

    def blurred(self, radius: Float[Tensor, "rows columns"]) -> "ExactMatrix":
        """Return the matrix with entries that may be farther off, so that they are not known."""
        return self._with(super().blurred(radius), None)

    def scaled(self, factor: Float[Tensor, "rows 1"], *, held: bool = False) -> "ExactMatrix":
        """Return the rows times factors; they are known if these are held, or 0, 1 or -1."""
        held = held or bool(((factor == 0) | (factor.abs() == 1)).all())
        known = self.dyadic.scaled(Dyadic.of(factor)) if held and self.dyadic else None
        return self._with(super().scaled(factor), known)

    def times(self, matrix: Float[Tensor, "results rows"]) -> "ExactMatrix":
        """Return the product with an exact matrix from the left."""
        known = self.dyadic and Dyadic.of(matrix).times(self.dyadic)
        return self._with(super().times(matrix), known)

    def through(
        self,
        linear: Elementwise,
        absolute: Elementwise,
        shape: tuple[int, ...],
        terms: int,
        *,
        sums: bool = False,
    ) -> "ExactMatrix":
        """Return a linear function of each column, whose matrix is what it makes of units."""
        known = None
        if self.dyadic and not sums:
            units = torch.eye(len(self.values), dtype=self.values.dtype)
            matrix = linear(units.reshape(-1, *shape)).flatten(1).T
            known = Dyadic.of(matrix).times(self.dyadic)
        return self._with(super().through(linear, absolute, shape, terms, sums=sums), known)

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "ExactMatrix":
        """Return some of the rows."""
        known = self.dyadic and replace(
            self.dyadic, numerators=self.dyadic.numerators[chosen.numpy()]
        )
        return self._with(super().rows(chosen), known)

    def among(self, indices: Int[Tensor, " rows"], count: int) -> "ExactMatrix":
        """Return the matrix with its rows at these indices among `count`, zero elsewhere."""
        known = self.dyadic
        if known:
            whole = np.zeros((count, known.numerators.shape[1]), dtype=object)
            whole[indices.numpy()] = known.numerators
            known = replace(known, numerators=whole)
        return self._with(super().among(indices, count), known)

    def _with(self, rounded: Matrix, dyadic: Dyadic | None) -> "ExactMatrix":
        return ExactMatrix(values=rounded.values, radius=rounded.radius, dyadic=dyadic)


def very(matrix: Matrix) -> Dyadic | None:
    """Return the very numbers of a matrix, None if they are known up to rounding only."""
    if isinstance(matrix, ExactMatrix):
        return matrix.dyadic
    return None if bool(matrix.radius.any()) else Dyadic.of(matrix.values)


def plain(network: NeuronBlocks) -> NeuronBlocks:
    """Return the same network with the rounded matrices alone."""

    def bare(affine: Affine) -> Affine:
        return affine.each(lambda matrix: Matrix(values=matrix.values, radius=matrix.radius))

    blocks = tuple(replace(block, reads=bare(block.reads)) for block in network.blocks)
    return replace(network, blocks=blocks, output=bare(network.output))
