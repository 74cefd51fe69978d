"""Certification kernel of LipSDP: any multipliers become a certified l2 bound.

Along any two inputs, Δψ_j² ≤ Δz_j² for every neuron. So if numbers μ_j > 0 and ρ > 0 make
ρ‖x‖² + Σ μ_j (ψ_j² - z_j²) - ‖y‖² non-negative for all vectors (x, ψ), with z and y the rows of the
network's matrix, then ‖Δy‖² ≤ ρ‖Δx‖². With the matrix G scaled by D_out = diag(μ, 1) from the left
and D_in = diag(ρ, μ) from the right that is ‖D_out^½ G D_in^-½‖ ≤ 1: one singular value decides.

Source:
    Fazlyab, Robey, Hassani, Morari, Pappas, Efficient and Accurate Estimation of Lipschitz
    Constants for Deep Neural Networks (NeurIPS 2019), https://arxiv.org/abs/1906.04893, Theorem 2,
    with diagonal multipliers alone: those that couple neurons are not valid.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.relaxations.loop_transformation import LoopTransformation
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.norm import Norm

_WIDENINGS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
"""By how much ρ is raised until the inequality holds in spite of rounding."""


def certify(
    network: LoopTransformation, multipliers: Float[Tensor, " neurons"], square: float
) -> tuple[float, float]:
    """Return a certified l2 Lipschitz constant, and the ρ with which it was proved.

    It is never rejected: where the inequality fails by a share δ of its own scale, rounding
    included, it still holds with ρ + δ(ρ + Σ max(μ)·K²), K the certified constants of the blocks'
    neurons. Multipliers that are no good give a large value, and ones that are not positive and
    finite an infinite one.

    Args:
        network: The network.
        multipliers: μ, one for each neuron.
        square: ρ, the square of the value that is to be proved.
    """
    if not (bool(((multipliers > 0) & multipliers.isfinite()).all()) and 0 < square < math.inf):
        return math.inf, square
    reach = network.reach(Norm(2.0))[:-1]
    largest = [
        float(multipliers[rows].max()) if rows.stop > rows.start else 0.0
        for rows, _ in network.blocks()
    ]
    spread = math.fsum(most * constant**2 for most, constant in zip(largest, reach, strict=True))
    best = math.inf, square
    for widening in _WIDENINGS:
        wide = square * (1 + widening)
        missing = _excess(network, multipliers, wide)
        value = math.sqrt((wide + missing * (wide + spread)) * (1 + 32 * UNIT)) * (1 + UNIT)
        best = min(best, (value, wide))
        if missing == 0:
            break
    return best


def _excess(
    network: LoopTransformation, multipliers: Float[Tensor, " neurons"], square: float
) -> float:
    """Return an upper bound of ‖D_out^½ G D_in^-½‖² - 1, or 0 if it is below."""
    ones = multipliers.new_ones
    right = torch.cat([ones(network.inputs) * square, multipliers]).rsqrt()
    left = torch.cat([multipliers, ones(network.outputs)]).sqrt().unsqueeze(1)
    exact = network.matrix
    scaled, radius = (left * matrix * right for matrix in (exact.values, exact.radius))
    norm = float(torch.linalg.matrix_norm(scaled, 2)) * (1 + 1e-12 * max(scaled.shape))
    # Scaling rounds each entry a few times.
    error = float(torch.linalg.matrix_norm(radius + 8 * UNIT * scaled.abs()))
    return max(0.0, (norm + error * (1 + 1e-9)) ** 2 * (1 + 4 * UNIT) - 1)
