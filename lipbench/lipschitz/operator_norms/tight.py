"""Tight layer norms: their products, proposed, proved, and checked again."""

import math

import torch

from lipbench.bound import Lipschitz
from lipbench.lipschitz.operator_norms.cholesky import proved_norm
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import NotConverged, converged_norm
from lipbench.lipschitz.operator_norms.layer_products import convolution
from lipbench.lipschitz.operator_norms.unit_scale import at_unit_scale
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution, Linear, Step
from lipbench.norm import Norm
from lipbench.threat import Box

_L2 = Norm(2)
_WIDENINGS = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3)
"""By how much a norm from below is raised until it can be proved as one from above."""
_RESIDUAL = 1e-6


def tight_bound(
    network: Network, domain: Box | None, *, tolerance: float, iterations: int
) -> Lipschitz:
    """Return the l2 product of layer norms; its certificate is what is claimed of each step.

    Args:
        network: The network.
        domain: What the bound is told of; it holds everywhere.
        tolerance: Share of a convolution's norm within which its cheap upper bound will do.
        iterations: Most products with WᵀW for a norm from below.
    """
    claims, constants = zip(
        *(_claimed(step, tolerance, iterations) for step in network.steps), strict=True
    )
    return Lipschitz.upper(
        network,
        composed(network, constants, _L2),
        _L2,
        domain,
        claims=torch.tensor(claims, dtype=torch.float64),
    )


def proved_by_claims(network: Network, value: Lipschitz) -> float:
    """Return the product of the norms that the stored claims prove, computed anew."""
    claims = value.proof["claims"]
    if claims.shape != (len(network.steps),):
        return math.inf
    constants = map(_proved, network.steps, claims.tolist())
    return composed(network, list(constants), _L2)


def _claimed(step: Step, tolerance: float, iterations: int) -> tuple[float, float]:
    """Return a claim about a step's constant, and the bound that it proves."""
    known, kernel = constant(step, _L2), _kernel(step)
    if kernel is None:
        return known, known
    least = _from_below(kernel, iterations)
    if known > least * (1 + tolerance):
        for widening in _WIDENINGS:
            claim = least * (1 + widening)
            if claim < known and (proved := proved_norm(kernel, claim)) < known:
                return claim, proved
    return known, known


def _proved(step: Step, claim: float) -> float:
    known, kernel = constant(step, _L2), _kernel(step)
    if kernel is None or not claim < known:
        return known
    return min(known, proved_norm(kernel, claim))


def _kernel(step: Step) -> Convolution | None:
    return convolution(step) if isinstance(step, Linear) else None


def _from_below(step: Convolution, iterations: int) -> float:
    step, unit = at_unit_scale(step)
    try:
        return float(converged_norm(step, _RESIDUAL, iterations).value) * unit
    except NotConverged as error:
        return error.value * unit
