"""Product bounds with another norm for linear layers."""

from collections.abc import Callable
from dataclasses import replace

import torch

from lipbench.bound import Lipschitz
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
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


def layerwise(
    network: Network, domain: Box | None, layer_norm: Callable[[Linear], float]
) -> Lipschitz:
    """Return the l2 bound that upper bounds of the layers' norms make; they are its certificate.

    Args:
        network: The network.
        domain: What the bound is told of; it holds everywhere.
        layer_norm: An upper bound of the norm of a linear step, up to rounding.
    """
    constants = [
        layer_norm(_float64(step)) * (1 + _ROUNDING * max(step.weight.shape[0], step.fan_in))
        if isinstance(step, Linear)
        else constant(step, Norm(2))
        for step in network.steps
    ]
    return Lipschitz(
        value=composed(network, constants, Norm(2)),
        side="upper",
        norm=Norm(2),
        domain=domain,
        proof={"constants": torch.tensor(constants, dtype=torch.float64)},
        flags=network.flags,
    )


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


def _float64(step: Linear) -> Linear:
    return replace(step.detach(), weight=step.weight.detach().double())
