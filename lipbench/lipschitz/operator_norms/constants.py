"""Certified Lipschitz constants of single steps, in norms 1, 2 and infinity."""

import math
from functools import reduce, singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.dense_and_convolution import upper_norm
from lipbench.lipschitz.operator_norms.rounding_up import plus, raised
from lipbench.lipschitz.operator_norms.unit_scale import widened
from lipbench.lipschitz.relaxations.rounding import LEAST
from lipbench.networks.steps import (
    AveragePool,
    Concatenation,
    Contraction,
    ConvContraction,
    Copy,
    GroupSort,
    Linear,
    MaxPool,
    Rearrange,
    Sandwich,
    Scale,
    Slope,
    Softmax,
    Step,
    Sum,
    refuse_kind,
)
from lipbench.norm import Norm
from lipbench.refused import Refused

_SHARE = 1e-12
_ROUNDING = 1 + _SHARE


@singledispatch
def constant(step: Step, norm: Norm) -> float:
    """Return an upper bound of the step's Lipschitz constant on all of space, in float64.

    For a step that merges values: of how far its result moves where each of them moves by 1.

    Raises:
        Refused: If the kind of step has no rule in this norm.
    """
    refuse_kind(step, f"has no constant in norm {norm}", __name__)


@constant.register(Linear)
def _(step: Linear, norm: Norm) -> float:
    return upper_norm(step, norm)


@constant.register(Slope)
def _(step: Slope, norm: Norm) -> float:
    return float(step.constant)


@constant.register(Scale)
def _(step: Scale, norm: Norm) -> float:
    return widened(float(step.factor.abs().max()), _SHARE)


@constant.register(Rearrange)
def _(step: Rearrange, norm: Norm) -> float:
    return 1.0


@constant.register(MaxPool)
def _(step: MaxPool, norm: Norm) -> float:
    """Return m^(1/p) where no entry lies in more than m windows.

    Each output moves by at most the largest move in its window, so the p-th powers of the moves
    of all outputs sum to at most m times those of the inputs.
    """
    if norm == math.inf:
        return 1.0
    most = 1
    for axis, length in enumerate(step.input_shape[1:]):
        covered = [0] * length
        for window in range(step.output_shape[1 + axis]):
            first = window * step.stride[axis] - step.padding[axis]
            for tap in range(step.window[axis]):
                entry = first + tap * step.dilation[axis]
                if 0 <= entry < length:
                    covered[entry] += 1
        most *= max(covered)
    return _repeated(most, norm)


@constant.register(Copy)
def _(step: Copy, norm: Norm) -> float:
    """Return m^(1/p) where no entry is copied to more than m places; it is attained."""
    image = torch.ones(1, *step.input_shape, dtype=torch.float64)
    with torch.enable_grad():
        total = step.copy(image.requires_grad_()).sum()
        copies = torch.autograd.grad(total, image)[0]
    return 1.0 if norm == math.inf else _repeated(int(copies.max()), norm)


def _repeated(most: int, norm: Norm) -> float:
    return 1.0 if most <= 1 else most ** (1 / norm) * _ROUNDING


@constant.register(GroupSort)
def _(step: GroupSort, norm: Norm) -> float:
    return 1.0


@constant.register(Softmax)
def _(step: Softmax, norm: Norm) -> float:
    """Return the least upper bound of the norms of all Jacobians; it holds along any axis.

    That of p is diag(p) - ppᵀ. Its i-th row and column sum to 2p_i(1 - p_i) ≤ 1/2 in absolute
    values, and as it is symmetric its l2 norm is no larger. That of log p is I - 1pᵀ. Rows sum to
    2(1 - p_i) < 2 and columns of n ≥ 2 entries to 1 + (n - 2)p_j < n - 1, or 1 where n is 2. It
    is a projection, for pᵀ1 = 1, and so has the l2 norm of the other one, 1pᵀ: √n·‖p‖ < √n.
    Entries along other places than the axis are functions of their own, side by side.
    """
    count = step.input_shape[step.axis - 1]
    if count == 1:
        return 0.0
    if not step.is_log:
        return 0.5
    bound = {1.0: count - 1.0, math.inf: 2.0}.get(float(norm))
    return math.sqrt(count) * _ROUNDING if bound is None else bound


@constant.register(Sum)
def _(step: Sum, norm: Norm) -> float:
    return reduce(plus, (raised(abs(coefficient)) for coefficient in step.coefficients))


@constant.register(Concatenation)
def _(step: Concatenation, norm: Norm) -> float:
    return 1.0 if norm == math.inf else _repeated(len(step.inputs), norm)


@constant.register(AveragePool)
def _(step: AveragePool, norm: Norm) -> float:
    """Return the largest row or column sum, in l2 the root of their product (Schur's test)."""
    image = torch.ones(1, *step.input_shape, dtype=torch.float64)
    with torch.enable_grad():
        rows = step.pool(image.requires_grad_())
        columns = torch.autograd.grad(rows.sum(), image)[0]
    row, column = float(rows.detach().max()), float(columns.max())
    bound = {1.0: column, math.inf: row}.get(float(norm), math.sqrt(row * column))
    return bound * _ROUNDING


@constant.register(Contraction)
def _(step: Contraction, norm: Norm) -> float:
    # With e the largest eigenvalue of T^(-1/2) WᵀW T^(-1/2) and d = max(0, e - 1), the square of
    # the l2 constant is at most 1 + 4d(1 + d): slopes in [0, 1] give s'T⁻¹s ≤ x'WT⁻¹s ≤ x'WT⁻¹Wᵀx.
    # So it is 1 where T - WᵀW is positive semidefinite.
    weight, diagonal = step.weight.double(), step.diagonal.double()
    if not bool((diagonal > 0).all()):
        raise Refused(
            f"step {step.name!r} (Residual): T must be positive, its smallest entry is "
            f"{float(diagonal.min())}."
        )
    slack = 1 + 1e-12 * max(weight.shape)
    product = _matrix_norm(weight / diagonal, norm) * _matrix_norm(weight.T, norm)
    triangle = (1 + 2 * product) * slack
    if norm != 2.0:
        return triangle
    return min(triangle, _residual(_matrix_norm(weight / diagonal.sqrt(), norm) ** 2 * slack))


@constant.register(ConvContraction)
def _(step: ConvContraction, norm: Norm) -> float:
    # The norm of a transpose is that of the matrix in the dual norm.
    there, back = upper_norm(step.operator, norm), upper_norm(step.operator, norm.dual())
    triangle = (1 + 2 * there * back) * _ROUNDING
    return triangle if norm != 2.0 else min(triangle, _residual(there**2 * _ROUNDING))


def _residual(eigenvalue: float) -> float:
    """Return the l2 constant of a residual step from the e above."""
    excess = max(0.0, eigenvalue - 1)
    return math.sqrt(1 + 4 * excess * (1 + excess)) * _ROUNDING


@constant.register(Sandwich)
def _(step: Sandwich, norm: Norm) -> float:
    # The layer's docstring has the proof that the squared norm of [A B] is a constant in l2.
    product = upper_norm(step.push, norm.dual()) * upper_norm(step.pull, norm)
    triangle = max(product * _ROUNDING, LEAST)
    if norm != 2.0:
        return triangle
    return min(triangle, max(upper_norm(step.both, norm) ** 2 * _ROUNDING, LEAST))


def _matrix_norm(matrix: Float[Tensor, "out in"], norm: Norm) -> float:
    value = float(torch.linalg.matrix_norm(matrix, ord=float(norm)))
    return widened(value, _SHARE * max(matrix.shape))
