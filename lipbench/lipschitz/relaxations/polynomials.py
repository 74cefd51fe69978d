"""Derivatives of a network as polynomials in the slopes of its neurons.

Along any two inputs, Δy = J·Δx, where J sums the products of weights and slopes along all paths.
After the loop transformation slopes are numbers in [-1, 1], of which a path has one for each neuron
on it. A neuron is one level above the highest that it reads, so no path has two neurons of one
level, and the polynomials are linear in each level, and in each single number.

Source:
    Latorre, Rolland, Cevher, Lipschitz constant estimation of Neural Networks via sparse polynomial
    optimization (ICLR 2020), https://arxiv.org/abs/2004.08688, for chains of layers and slopes in
    [0, 1]; the loop transformation, and levels for any architecture, are this project's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.lipschitz.relaxations.rounding import UNIT

_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """A sum of products of numbers in [-1, 1], one of the first group and at most one of others.

    Axes are groups; from the second on, index 0 is for products that have no number of the group.
    """

    values: Float[Tensor, "first *others"]
    radius: Float[Tensor, "first *others"]
    """How far each coefficient may be from that of the exact network."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many numbers each group has."""
        first, *others = self.values.shape
        return first, *(size - 1 for size in others)

    def vertex(self, starts: int) -> float:
        """Return the largest value that is found at corners of the cube, rounding aside.

        Each group in turn takes the best signs for those of the others.

        Args:
            starts: Number of corners to climb from.
        """
        generator = torch.Generator().manual_seed(0)
        signs = [
            2.0 * torch.randint(2, (starts, size), generator=generator).double() - 1
            for size in self.sizes
        ]
        best = -math.inf
        for _ in range(_STEPS):
            for group in range(len(signs)):
                slopes = self._given(signs, group)
                # Index 0 is what there is without the group.
                coefficients = slopes if group == 0 else slopes[:, 1:]
                signs[group] = torch.where(coefficients < 0, -1.0, 1.0).double()
            reached = float((self._given(signs, 0) * signs[0]).sum(dim=1).max())
            if reached <= best:
                break
            best = reached
        return best

    def _given(self, signs: Sequence[Tensor], free: int) -> Float[Tensor, "starts coefficients"]:
        """Return the coefficients of one group when all others are known."""
        known = torch.ones(len(signs[0]), 1, dtype=torch.float64)
        for group, chosen in enumerate(signs):
            if group != free:
                factors = torch.cat([chosen.new_ones(len(chosen), min(group, 1)), chosen], dim=1)
                known = (known.unsqueeze(2) * factors.unsqueeze(1)).flatten(1)
        return known @ self.values.movedim(free, -1).reshape(known.shape[1], -1)


@dataclass(frozen=True, kw_only=True)
class Derivatives:
    """All derivatives of the outputs: inputs × levels × outputs, in the manner of `Polynomial`."""

    values: Float[Tensor, "inputs *levels outputs"]
    radius: Float[Tensor, "inputs *levels outputs"]

    def row(self, output: int, weights: Float[Tensor, " inputs"]) -> Polynomial:
        """Return Σ x_i·J_i of one output, whose maximum is Σ |J_i|, with weights for inputs."""
        return _weighted(self.values[..., output], self.radius[..., output], weights)

    def column(self, given: int, weights: Float[Tensor, " outputs"]) -> Polynomial:
        """Return Σ x_j·J_j of one input, j the outputs, with weights for outputs."""
        values, radius = (tensor[given].movedim(-1, 0) for tensor in (self.values, self.radius))
        return _weighted(values, radius, weights)


def derivative_polynomials(network: LoopTransformation) -> Derivatives:
    """Return the derivatives of a network, rounding accounted for."""
    groups = levels(network)
    outputs = torch.arange(network.neurons, network.neurons + network.outputs)
    absolute = network.matrix.values.abs() + network.matrix.radius
    values, most = (
        _multiplied(matrix, network.inputs, [*groups, outputs])
        for matrix in (network.matrix.values, absolute)
    )
    rounding = 4 * (len(groups) + 2) * UNIT * most
    return Derivatives(values=values, radius=(most - values.abs()).clamp_min(0) + rounding)


def levels(network: LoopTransformation) -> list[Int[Tensor, " _"]]:
    """Return the neurons that read inputs alone, those that read these, and so on."""
    matrix = network.matrix
    reads = ((matrix.values != 0) | (matrix.radius != 0))[:, network.inputs :]
    level = torch.zeros(network.neurons, dtype=torch.int64)
    for neuron in range(network.neurons):
        read = level[reads[neuron]]
        level[neuron] = 1 + int(read.max()) if len(read) else 0
    count = int(level.max()) + 1 if network.neurons else 0
    return [(level == number).nonzero().squeeze(1) for number in range(count)]


def _multiplied(matrix: Tensor, inputs: int, rows: Sequence[Tensor]) -> Tensor:
    """Return the products along all paths to the last rows, which no others read."""
    products: list[Tensor] = []
    for number, level in enumerate(rows):
        reads = matrix.new_zeros(inputs, *(1 + len(lower) for lower in rows[:number]), len(level))
        index: list[slice | int] = [slice(None), *[0] * number]
        reads[tuple(index)] = matrix[level, :inputs].T
        for source, below in enumerate(products):
            weights = matrix[level][:, inputs + rows[source]].T
            index[source + 1] = slice(1, None)
            reads[tuple(index)] = below.unsqueeze(-1) * weights
            index[source + 1] = slice(None)
        products.append(reads)
    return products[-1]


def _weighted(values: Tensor, radius: Tensor, weights: Tensor) -> Polynomial:
    factor = weights.reshape(-1, *[1] * (values.ndim - 1))
    # A factor is a quotient, and rounded itself.
    spread = (radius + 4 * UNIT * values.abs()) * factor.abs() * (1 + 4 * UNIT)
    return Polynomial(values=values * factor, radius=spread)
