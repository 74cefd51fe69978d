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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbench.lipschitz.semidefinite.barrier import BarrierProgram, WeightBlock
from lipbench.lipschitz.semidefinite.dense_layers import Multipliers, Weights, reduced


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
        program = self._program(cores, square, price)
        point = program.solve(tolerance)
        sizes = [core.numel() for core in cores]
        vectors = point.weights.split(sizes)
        weights = [vector.view_as(core) for vector, core in zip(vectors, cores, strict=True)]
        return restore(weights), square * point.square

    def _program(
        self, targets: Sequence[Tensor], square: float, price: float | None
    ) -> BarrierProgram:
        blocks, size = _weight_blocks(self, targets, square)
        return BarrierProgram(
            target=torch.cat([target.flatten() for target in targets]),
            shapes=tuple((target.shape[0], target.shape[1]) for target in targets),
            blocks=blocks,
            size=size,
            inputs=targets[0].shape[1],
            price=None if price is None else price * square,
        )


def rescaled(multipliers: Multipliers, ratio: float) -> Multipliers:
    """Return the multipliers of a network all of whose layers are scaled by one number.

    Args:
        multipliers: Those of the network.
        ratio: By what its constant is multiplied, so each of k layers by ratio^(1/k).
    """
    count = len(multipliers)
    share = ratio ** (2 / (count + 1))
    return tuple(
        multiplier * share ** (count - index) for index, multiplier in enumerate(multipliers)
    )


def _weight_blocks(
    inequality: Inequality, targets: Sequence[Tensor], square: float
) -> tuple[tuple[WeightBlock, ...], int]:
    """Return the blocks of all layers' weights, and the size of N.

    Its rows are the inputs, the neurons of each layer and the outputs, then a second copy of the
    neurons of layers whose slopes have both signs.
    """
    blocks: list[WeightBlock] = []
    size = targets[0].shape[1] + sum(len(target) for target in targets)
    before = targets[0].new_full((targets[0].shape[1],), square).sqrt()
    start = 0
    for layer, target in enumerate(targets):
        count, reads = target.shape
        columns, rows = slice(start, start + reads), slice(start + reads, start + reads + count)
        if layer == len(targets) - 1:
            blocks.append(WeightBlock(layer, rows, columns, before.new_ones(count, 1), 1 / before))
            break
        (lo, hi), multiplier = inequality.slopes[layer], inequality.multipliers[layer]
        after = (2 * multiplier).sqrt()
        share = (lo + hi) * multiplier / after
        blocks.append(WeightBlock(layer, rows, columns, share.unsqueeze(1), 1 / before))
        if bool((lo < 0).any()):
            both = (-2 * lo * hi * multiplier).sqrt().unsqueeze(1)
            blocks.append(WeightBlock(layer, slice(size, size + count), columns, both, 1 / before))
            size += count
        start, before = start + reads, after
    return tuple(blocks), size
