"""Layer product bounds: products of other norms of linear layers than the exact ones."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.unit_scale import at_scale, at_unit_scale
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    Convolution,
    Dense,
    Linear,
    TransposedConvolution,
    refuse_kind,
)
from lipbench.norm import Norm
from lipbench.threat import Box

_ROUNDING = 1e-12


def largest_singular_value(matrix: Float[Tensor, "out in"]) -> float:
    """Return the l2 norm of a matrix, up to rounding."""
    return float(torch.linalg.matrix_norm(matrix, ord=2))


def layer_product_bound(
    network: Network, domain: Box | None, layer_norm: Callable[[Linear], float]
) -> Lipschitz:
    """Return the l2 bound that upper bounds of the layers' norms make; they are its certificate.

    Args:
        network: The network.
        domain: What the bound is told of; it holds everywhere.
        layer_norm: An upper bound of the norm of a linear step, up to rounding.
    """
    constants = [
        _constant(step, layer_norm) if isinstance(step, Linear) else constant(step, Norm(2))
        for step in network.steps
    ]
    return Lipschitz.upper(
        network,
        composed(network, constants, Norm(2)),
        Norm(2),
        domain,
        constants=torch.tensor(constants, dtype=torch.float64),
    )


def kernel_product_bound(
    network: Network,
    domain: Box | None,
    kernel_norm: Callable[[Convolution], float],
    matrix_norm: Callable[[Tensor], float] = largest_singular_value,
) -> Lipschitz:
    """Return the l2 bound that norms of convolutions and of matrices make.

    Args:
        network: The network.
        domain: What the bound is told of; it holds everywhere.
        kernel_norm: An upper bound of a convolution's norm, up to rounding.
        matrix_norm: The same of a dense layer's weights.
    """

    def layer_norm(step: Linear) -> float:
        kernel = convolution(step)
        return matrix_norm(step.weight) if kernel is None else kernel_norm(kernel)

    return layer_product_bound(network, domain, layer_norm)


def refused_kernel(network: Network, reason: Callable[[Convolution], str | None]) -> str | None:
    """Return why the first convolution that is refused is so, None if none is."""
    kernels = filter(None, map(convolution, network.layers))
    return next(filter(None, map(reason, kernels)), None)


def convolution(step: Linear) -> Convolution | None:
    """Return the convolution whose norm a step has, None if it is a matrix.

    Raises:
        Refused: If it is neither.
    """
    if isinstance(step, TransposedConvolution):
        return step.mirror
    if isinstance(step, Convolution | Dense):
        return step if isinstance(step, Convolution) else None
    refuse_kind(step, "is neither a matrix nor a convolution", __name__)


def _constant(step: Linear, layer_norm: Callable[[Linear], float]) -> float:
    slack = 1 + _ROUNDING * max(step.weight.shape[0], step.fan_in)
    step, unit = at_unit_scale(step)
    return at_scale(layer_norm(step) * slack, unit)
