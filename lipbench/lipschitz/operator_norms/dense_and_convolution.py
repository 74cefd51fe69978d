"""Operator norms of linear steps: certified upper bounds, and power iteration from below.

Upper bounds are float64 and allow for rounding: a computed singular value or sum of absolute
values is multiplied by 1 + 1e-12·n, n the longest sum in it, which is thousands of times what
LAPACK, an FFT or a plain sum can be wrong by.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.symbol import largest_symbol_norm
from lipbench.lipschitz.operator_norms.unit_scale import at_scale, at_unit_scale
from lipbench.networks.steps import Convolution, Dense, Linear, TransposedConvolution, refuse_kind
from lipbench.norm import Norm


class NotConverged(Exception):
    """An iteration has not reached its tolerance; the message says how far it came."""

    def __init__(self, message: str, value: float = 0.0) -> None:
        """Keep what was reached.

        Args:
            message: What is to be done.
            value: The norm from below, as far as it is known.
        """
        super().__init__(message)
        self.value = value


class Singular(NamedTuple):
    """A singular value from below, and its vectors."""

    value: Float[Tensor, ""]
    right: Float[Tensor, "*input"]
    """A unit vector v."""
    left: Float[Tensor, "*output"]
    """The direction of Wv, a unit vector."""


def upper_norm(step: Linear, norm: Norm) -> float:
    """Return an upper bound of ‖W‖, biases apart, with rounding accounted for.

    For dense steps it is exact up to rounding, and so it is in norms 1 and infinity where no output
    of a convolution reads an entry through several taps, as it may beside copied padding: there the
    absolute values of its taps are added. For convolutions in l2 it is the norm of a periodic
    convolution that contains the step, times that of the padding where it copies entries.
    """
    step, unit = at_unit_scale(step)
    if norm == 2.0:
        return at_scale(_spectral(step) * _slack(max(step.weight.shape[0], step.fan_in)), unit)
    like = step.weight.new_ones
    absolute = step.absolute()
    if norm == 1.0:  # The largest column sum of absolute values; for infinity the largest row sum.
        sums = absolute.adjoint(like(1, *step.output_shape))
    else:
        sums = absolute.apply(like(1, *step.input_shape))
    return at_scale(float(sums.amax()) * _slack(step.weight.numel()), unit)


def power_iteration(step: Linear, start: Float[Tensor, "*input"], iterations: int = 1) -> Singular:
    """Return a lower value of ‖W‖₂ in l2 after some steps of power iteration.

    This is pure tensor code for use inside `torch.func.vmap`. The vectors carry no gradient, so
    that the gradient of the value with respect to W is left·rightᵀ.

    Args:
        step: A linear step, whose parameters may be stacked.
        start: Any non-zero vector of the input's shape, such as the last result's `right`.
        iterations: How many products with WᵀW come before the value is taken; 0 takes ‖Wv‖.
    """
    fixed = step.detach()
    right = _unit(start.detach(), start.detach())
    for _ in range(iterations):
        right = _unit(fixed.adjoint(fixed.apply(right.unsqueeze(0)))[0], right)
    image = step.apply(right.unsqueeze(0))[0]
    return Singular(torch.linalg.vector_norm(image), right, _unit(image.detach(), image.detach()))


def converged_norm(
    step: Linear, tolerance: float = 1e-9, iterations: int = 500, seed: int = 0
) -> Singular:
    """Return ‖W‖₂ from below, converged, with its singular vectors, all in float64.

    For methods that divide by the norm. Dense steps take an exact SVD; others a Lanczos
    iteration on WᵀW, which stops when ‖Wᵀu - σv‖ ≤ tolerance·σ.

    Args:
        step: A linear step with plain, not stacked, parameters.
        tolerance: Relative residual at which the value counts as converged.
        iterations: Most products with WᵀW.
        seed: Of the random start.

    Raises:
        NotConverged: If the tolerance is not reached.
    """
    step = replace(step.detach(), weight=step.weight.detach().double())
    if isinstance(step, Dense) and len(step.input_shape) == 1:
        left, values, right = torch.linalg.svd(step.weight, full_matrices=False)
        return Singular(values[0], right[0], left[:, 0])
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(step.input_shape, generator=rng, dtype=torch.float64)
    basis: list[Tensor] = [_unit(start, start).to(step.weight.device).flatten()]
    rows: list[Tensor] = []
    residual = torch.inf
    for count in range(1, min(iterations, basis[0].numel()) + 1):
        image = _gram(step, basis[-1])
        vectors = torch.stack(basis)
        rows.append(vectors @ image)
        # Twice is enough for orthogonality to rounding.
        rest = image - vectors.T @ rows[-1]
        rest = rest - vectors.T @ (vectors @ rest)
        beta = float(torch.linalg.vector_norm(rest))
        small = torch.zeros(count, count, dtype=torch.float64, device=image.device)
        for column, entries in enumerate(rows):
            small[: len(entries), column] = entries
        values, coordinates = torch.linalg.eigh(small, UPLO="U")
        top = float(values[-1].clamp_min(0))
        residual = beta * abs(float(coordinates[-1, -1]))
        if residual <= tolerance * top or top == 0:
            right = (vectors.T @ coordinates[:, -1]).reshape(step.input_shape)
            return power_iteration(step, right, 0)
        basis.append(rest / beta)
    raise NotConverged(
        f"the norm of {step.name!r} has relative residual {residual / top:.2g} after "
        f"{count} products, more than {tolerance:.2g}: raise iterations or the tolerance.",
        math.sqrt(top),
    )


def _spectral(step: Linear) -> float:
    if isinstance(step, TransposedConvolution):
        return largest_symbol_norm(step.mirror)  # A matrix and its transpose have one norm.
    if isinstance(step, Convolution):
        return largest_symbol_norm(step)
    if isinstance(step, Dense):
        return float(torch.linalg.matrix_norm(step.weight, ord=2))
    refuse_kind(step, "has no norm in l2", __name__)


def _slack(terms: int) -> float:
    return 1 + 1e-12 * terms


def _gram(step: Linear, vector: Tensor) -> Tensor:
    return step.adjoint(step.apply(vector.reshape(1, *step.input_shape))).flatten()


def _unit(vector: Tensor, fallback: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vector)
    scaled = vector / length.clamp_min(torch.finfo(vector.dtype).tiny)
    return torch.where(length > 0, scaled, fallback)
