"""Loop transformation: a network as one matrix around neurons that do not expand distances.

A neuron with slopes in [m - h, m + h] is m·z + h·ψ(z), where ψ changes by no more than z does. With
the linear share multiplied out, all pre-activations z and outputs y are rows of one matrix G that
acts on (x, ψ). A global bound may know G of a network, and that |Δψ| ≤ |Δz| for each neuron.

Source:
    Fazlyab, Entesari, Roy, Chellappa, Certified Robustness via Dynamic Margin Maximization and
    Improved Lipschitz Regularization (NeurIPS 2023), https://arxiv.org/abs/2310.00116, for the
    split of an activation; one matrix for any architecture is this project's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.norm import Norm
from lipbench.refused import Refused

SlopeBounds = Sequence[tuple[Float[Tensor, " _"], Float[Tensor, " _"]]]
"""Least and largest slope of the neurons of each block."""


@dataclass(frozen=True, kw_only=True)
class LoopTransformation:
    """Changes of pre-activations and outputs as a matrix times those of inputs and neurons."""

    matrix: Matrix
    """Rows: neurons, then outputs; columns: inputs, then neurons. A neuron reads earlier ones."""
    inputs: int
    sizes: tuple[int, ...]
    """Neurons of each block."""

    @property
    def neurons(self) -> int:
        """Return the number of neurons."""
        return sum(self.sizes)

    @property
    def outputs(self) -> int:
        """Return the number of outputs."""
        return len(self.matrix.values) - self.neurons

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield the rows of each block, and its columns."""
        start = 0
        for size in self.sizes:
            yield (
                slice(start, start + size),
                slice(self.inputs + start, self.inputs + start + size),
            )
            start += size

    def reach(self, norm: Norm) -> tuple[float, ...]:
        """Return certified Lipschitz constants in x: of each block's neurons, then of the outputs.

        Each is at most that of the input's own share, plus for each earlier block the norm of its
        share times that block's constant.
        """
        constants: list[float] = []
        columns = [slice(0, self.inputs), *(block for _, block in self.blocks())]
        rows = [*(block for block, _ in self.blocks()), slice(self.neurons, None)]
        for number, block in enumerate(rows):
            terms = [
                _norm(self.matrix, block, read, norm) * constant
                for read, constant in zip(columns, [1.0, *constants], strict=False)
            ]
            total = math.fsum(terms)
            constants.append(total * (1 + 4 * UNIT) if number or total else total)
        return tuple(constants)

    def entrywise(self, norm: Norm) -> float:
        """Return a certified constant of the outputs from bounds of all their derivatives.

        Where `reach` multiplies norms, absolute values of matrices are multiplied here: that is
        better in the norms 1 and infinity.
        """
        known = torch.eye(self.inputs, dtype=torch.float64)
        absolute = self.matrix.values.abs() + self.matrix.radius
        terms = absolute.shape[1] * UNIT
        for block in [*(block for block, _ in self.blocks()), slice(self.neurons, None)]:
            rows = absolute[block, : len(known)] @ known * (1 + 2 * terms)
            known = torch.cat([known, rows])
        outputs = known[self.inputs + self.neurons :]
        value = torch.linalg.matrix_norm(outputs, float(norm)) if outputs.numel() else 0.0
        return float(value) * (1 + 1e-12 * max(outputs.shape))

    @property
    def is_read(self) -> Bool[Tensor, " neurons"]:
        """Return which neurons anything reads: not those whose slopes are one number."""
        read = (self.matrix.values != 0) | (self.matrix.radius != 0)
        return read[:, self.inputs :].any(dim=0)

    @property
    def bent(self) -> "LoopTransformation":
        """Return the same without the neurons that nothing reads."""
        kept = self.is_read
        rows = torch.cat([kept, kept.new_ones(self.outputs)])
        columns = torch.cat([kept.new_ones(self.inputs), kept])
        return LoopTransformation(
            matrix=Matrix(
                values=self.matrix.values[rows][:, columns],
                radius=self.matrix.radius[rows][:, columns],
            ),
            inputs=self.inputs,
            sizes=tuple(int(kept[block].sum()) for block, _ in self.blocks()),
        )


def loop_transformation(
    network: NeuronBlocks, slopes: SlopeBounds | None = None
) -> LoopTransformation:
    """Return the matrix of a network.

    Args:
        network: The network.
        slopes: Slopes of each neuron that hold on the domain; None takes those that always hold.

    Raises:
        Refused: If slopes are not bounded.
    """
    columns = network.inputs + sum(map(len, network.blocks))
    known = [Matrix.exact(torch.eye(network.inputs, columns, dtype=torch.float64))]
    rows, start = [], network.inputs
    for number, block in enumerate(network.blocks):
        lo, hi = (block.lo, block.hi) if slopes is None else slopes[number]
        if not bool((lo.isfinite() & hi.isfinite()).all()):
            raise Refused(f"step {block.name!r} has slopes that are not bounded.")
        rows.append(_multiplied(block.reads, known))
        middle = (lo + hi) / 2
        # Rounded so that no slope is left out.
        half = torch.maximum(hi - middle, middle - lo) * (1 + UNIT)
        nonlinear = torch.zeros(len(block), columns, dtype=torch.float64)
        nonlinear[:, start : start + len(block)] = half.diag()
        share = rows[-1].scaled(middle.unsqueeze(1))
        known.append(share.plus(Matrix.exact(nonlinear)))
        start += len(block)
    rows.append(_multiplied(network.output, known))
    return LoopTransformation(
        matrix=Matrix(
            values=torch.cat([row.values for row in rows]),
            radius=torch.cat([row.radius for row in rows]),
        ),
        inputs=network.inputs,
        sizes=tuple(map(len, network.blocks)),
    )


def _multiplied(affine: Affine, known: Sequence[Matrix]) -> Matrix:
    """Return the rows of numbers that are affine in what is known already."""
    shape = len(affine), known[0].values.shape[1]
    total = Matrix.exact(torch.zeros(shape, dtype=torch.float64))
    for source, matrix in affine.matrices.items():
        product = known[source].times(matrix.values)
        spread = matrix.radius @ (known[source].values.abs() + known[source].radius)
        total = total.plus(Matrix(values=product.values, radius=product.radius + spread))
    return total


def _norm(matrix: Matrix, rows: slice, columns: slice, norm: Norm) -> float:
    """Return an upper bound of the norm of a block of the exact matrix."""
    values, radius = matrix.values[rows, columns], matrix.radius[rows, columns]
    if not values.numel():
        return 0.0
    if norm == 2.0:
        value, error = torch.linalg.matrix_norm(values, 2), torch.linalg.matrix_norm(radius)
    else:
        value, error = (
            torch.linalg.matrix_norm(entries, float(norm)) for entries in (values, radius)
        )
    return float(value + error) * (1 + 1e-12 * max(values.shape))
