"""Enclosure of a network's outputs: float64, and no larger an error than certified norms allow.

Entry by entry an error grows by |W| in each layer, which in wide layers is many times ‖W‖: behind
twenty layers that is all there is. In l2 it grows by ‖W‖.
"""

import math
from collections.abc import MutableMapping
from dataclasses import replace
from functools import singledispatch
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import upper_norm
from lipbench.lipschitz.relaxations.rounding import (
    LEAST,
    Enclosed,
    enclose_values,
    rounding_error,
)
from lipbench.networks.network import Network
from lipbench.networks.steps import Concatenation, Linear, Step, Sum
from lipbench.norm import Norm
from lipbench.refused import Refused

_L2 = Norm(2)
_SMALL = 1e-7
"""Share of the largest output below which an error needs no second look."""
_ROUNDING = 1 + 1e-12
_LARGE = 2**21
"""Weights of a layer from which on its singular values take too long."""
_NORMS: MutableMapping[Step, float] = WeakKeyDictionary()
"""The constants of steps that were asked for, as long as the steps live."""


def enclose(network: Network, inputs: Float[Tensor, "batch *shape"]) -> Enclosed:
    """Return a network's outputs at float64 inputs, taken as exact, with their error bounds.

    Raises:
        ValueError: If the inputs are not float64.
        Refused: If a step is of a kind that has no analysis of its rounding.
    """
    known = enclose_values(network, inputs)
    output = known[network.output]
    if _is_small(output):
        return output
    try:
        most = _errors(network, known)[network.output]
    except Refused:  # a step without a constant in l2
        return output
    lengths = most.reshape(-1, *[1] * (output.values.ndim - 1))
    return replace(output, radius=torch.fmin(output.radius, lengths.expand_as(output.radius)))


def _is_small(output: Enclosed) -> bool:
    if not output.values.numel():
        return True
    return bool(output.radius.max() <= _SMALL * output.values.abs().max())


def _errors(network: Network, known: list[Enclosed]) -> list[Float[Tensor, " batch"]]:
    """Return how far each value may be from the exact one in l2, of the input and all steps."""
    exact = [replace(value, radius=torch.zeros_like(value.values)) for value in known]
    errors = [known[0].values.new_zeros(len(known[0].values))]
    for step in network.steps:
        own = rounding_error(step, *[exact[i] for i in step.inputs])
        length = _L2.scaled_length(own) * (1 + 1e-12 * max(own[0].numel(), 1)) + LEAST
        carried = _carried(step, *[errors[i] for i in step.inputs])
        errors.append((carried + length) * _ROUNDING + LEAST)
    return errors


@singledispatch
def _carried(step: Step, *errors: Tensor) -> Tensor:
    """Return what a step makes of the errors of what it reads."""
    (error,) = errors
    factor = _NORMS.get(step)
    if factor is None:
        factor = _NORMS[step] = _norm(step)
    # Errors of 0 stay, even where the constant is infinite.
    return torch.where(error > 0, error * factor, 0.0)


def _norm(step: Step) -> float:
    """Return an upper bound of the step's constant in l2, a cheap one of a large layer."""
    if isinstance(step, Linear) and step.weight.numel() > _LARGE:
        # The largest singular value squared is no more than the product of both sums.
        return math.sqrt(upper_norm(step, Norm(1)) * upper_norm(step, Norm(math.inf))) * _ROUNDING
    return constant(step, _L2)


@_carried.register(Sum)
def _(step: Sum, *errors: Tensor) -> Tensor:
    terms = zip(step.coefficients, errors, strict=True)
    return sum(
        (abs(coefficient) * error * _ROUNDING for coefficient, error in terms), 0 * errors[0]
    )


@_carried.register(Concatenation)
def _(step: Concatenation, *errors: Tensor) -> Tensor:
    return _L2.scaled_length(torch.stack(errors, dim=1))
