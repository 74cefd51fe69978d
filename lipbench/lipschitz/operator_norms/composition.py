"""Composition of Lipschitz constants: that of a network from those of its steps."""

import math
from collections.abc import Sequence
from functools import reduce, singledispatch

from lipbench.lipschitz.operator_norms.rounding_up import plus, raised, times
from lipbench.networks.network import Network
from lipbench.networks.steps import Concatenation, Step, Sum, refuse_kind
from lipbench.norm import Norm

_ROUNDING = 1 + 1e-12


def composed(network: Network, constants: Sequence[float], norm: Norm) -> float:
    """Return an upper bound of the network's constant, rounded upwards.

    Every value is a function of the input with a constant of its own: 1 for the input itself,
    and for the result of a step what the step makes of the constants of what it reads. In a
    chain that is their product.

    Args:
        network: The network, which may branch.
        constants: Those of its steps, in order.
        norm: Norm of them all.
    """
    known = [1.0]
    for step, constant in zip(network.steps, constants, strict=True):
        known.append(_behind(step, constant, [known[i] for i in step.inputs], norm))
    return known[network.output]


@singledispatch
def _behind(step: Step, constant: float, before: list[float], norm: Norm) -> float:
    if len(before) != 1:
        refuse_kind(step, "merges values", __name__)
    return times(before[0], constant)


@_behind.register(Sum)
def _(step: Sum, constant: float, before: list[float], norm: Norm) -> float:
    """Return the sum of |a|·c over the inputs, by the triangle inequality."""
    sizes = [raised(abs(coefficient)) for coefficient in step.coefficients]
    return reduce(plus, map(times, before, sizes))


@_behind.register(Concatenation)
def _(step: Concatenation, constant: float, before: list[float], norm: Norm) -> float:
    """Return the norm of the constants: the moves of all inputs are blocks of one vector."""
    if norm == math.inf:
        return max(before)
    return reduce(plus, before) if norm == 1.0 else math.hypot(*before) * _ROUNDING
