"""Differentiable l2 constant: a product of layer norms that training follows.

Norms of linear steps come from power iteration on the operators themselves, whose vectors are kept
from step to step; all other steps have the constants that bounds use. Values lie below the product
bound and approach it. They are tensors with gradients, made for training: nothing is certified.
"""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce, singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.constants import constant as certified_constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import power_iteration
from lipbench.networks.net import Skeleton
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    AveragePool,
    Concatenation,
    Copy,
    Dense,
    GroupSort,
    Linear,
    MaxPool,
    Rearrange,
    Scale,
    Shape,
    Slope,
    Step,
    Sum,
    refuse_kind,
)
from lipbench.norm import Norm
from lipbench.refused import Refused

Vectors = dict[str, Tensor]
"""What is kept from step to step, ready to be a part of a method's state."""

_FIXED = (MaxPool, AveragePool, Copy, GroupSort)
"""Steps without numbers that training moves."""
_MOVING = (Linear, Slope, Scale, Rearrange, Sum, Concatenation)


def read(model: nn.Module, input_shape: Shape) -> Network:
    """Return a network that is not trained yet as steps, in evaluation mode.

    Raises:
        Refused: If a layer is neither primitive nor explained; the message names it.
    """
    tensors = dict(model.named_parameters()), dict(model.named_buffers())
    return Skeleton(model, input_shape).graph.bind(*tensors)


def why_not(model: nn.Module, input_shape: Shape) -> str | None:
    """Return why the constant before a network's last layer cannot be followed, or None."""
    try:
        network = read(model, input_shape)
        steps = split(network)[0].steps
    except Refused as error:
        return str(error).rstrip(".")
    for step in steps:
        if not isinstance(step, (*_FIXED, *_MOVING)):
            kind = type(step).__name__
            return f"step {step.name!r} ({kind}) has no constant that gradients can follow"
    return None


def split(network: Network) -> tuple[Network, Dense]:
    """Return the network up to its last layer, and that layer.

    Raises:
        Refused: If it does not end with a dense layer that reads vectors.
    """
    *before, last = network.steps or (None,)
    is_last = network.output == len(network.steps)
    if not (is_last and isinstance(last, Dense) and len(last.input_shape) == 1):
        raise Refused("the network must end with a dense layer, whose rows are its classes.")
    return replace(network, steps=tuple(before), output=last.inputs[0]), last


def start(network: Network, rng: torch.Generator) -> Vectors:
    """Return vectors that have converged from random ones, and constants of what does not move."""
    vectors = {}
    for number, step in enumerate(network.steps):
        if isinstance(step, Linear):
            vectors[_right(number)] = torch.randn(step.input_shape, generator=rng).to(step.weight)
        elif isinstance(step, _FIXED):
            vectors[_fixed(number)] = torch.tensor(certified_constant(step, Norm(2)))
    like = next((step.weight for step in network.steps if isinstance(step, Linear)), None)
    if like is not None:
        vectors = {key: vector.to(like) for key, vector in vectors.items()}
    return {**vectors, **converged(network, vectors)}


def converged(network: Network, vectors: Mapping[str, Any]) -> Vectors:
    """Return the vectors after as many iterations as it takes; not for use in a step."""
    return {
        _right(number): settled(step, vectors[_right(number)]) for number, step in _linear(network)
    }


def settled(
    step: Linear, start: Float[Tensor, "*input"], tolerance: float = 1e-5
) -> Float[Tensor, "*input"]:
    """Return a right singular vector of the largest singular value, by power iteration.

    Args:
        step: A linear step with plain, not stacked, parameters.
        start: Any vector.
        tolerance: Relative gain of the norm in ten iterations at which it counts as converged;
            after a thousand it does in any case.
    """
    right, before = start, -math.inf
    for _ in range(100):
        sigma = power_iteration(step, right, 10)
        right, value = sigma.right, float(sigma.value)
        if not value - before > tolerance * value:
            break
        before = value
    return right


def constant(
    network: Network, vectors: Mapping[str, Any], iterations: int = 1
) -> tuple[Float[Tensor, ""], Vectors]:
    """Return the constant as it is seen from the vectors, and the vectors moved on.

    This is pure tensor code for use inside `torch.func.vmap`. Branches are composed as the product
    bound composes them.

    Args:
        network: The network, with its current parameters.
        vectors: Those of `start`, or the last result's beside them.
        iterations: Steps of power iteration before a norm is taken.
    """
    moved: Vectors = {}
    known: list[Tensor | float] = [1.0]
    for number, step in enumerate(network.steps):
        if isinstance(step, Linear):
            sigma = power_iteration(step, vectors[_right(number)], iterations)
            moved[_right(number)] = sigma.right
            factor: Tensor | float = sigma.value
        elif isinstance(step, _FIXED):
            factor = vectors[_fixed(number)]
        else:
            factor = _step_constant(step)
        known.append(_behind(step, factor, [known[i] for i in step.inputs]))
    value = known[network.output]
    if isinstance(value, Tensor):
        like = next((step.weight for _, step in _linear(network)), value)
        return value.to(like), moved
    return torch.full((), value), moved


def gaps(
    network: Network, vectors: Mapping[str, Any], iterations: int = 1, *, by_rows: bool = True
) -> tuple[Float[Tensor, "classes classes"], Vectors]:
    """Return for each two outputs the constant of their difference, and the vectors moved on.

    Args:
        network: A network that `split` takes apart, with its current parameters.
        vectors: As for `constant`.
        iterations: Steps of power iteration before a norm is taken.
        by_rows: Whether it is ‖w_i - w_j‖ times the constant before the last layer, or √2 times
            the constant of the whole network, which is never less.
    """
    if not by_rows:
        whole, moved = constant(network, vectors, iterations)
        off_diagonal = 1 - torch.eye(
            network.output_shape[0], dtype=whole.dtype, device=whole.device
        )
        return math.sqrt(2) * whole * off_diagonal, moved
    trunk, last = split(network)
    before, moved = constant(trunk, vectors, iterations)
    return before * row_distances(last), moved


def row_distances(layer: Dense) -> Float[Tensor, "classes classes"]:
    """Return ‖w_i - w_j‖ for all pairs of rows, with gradient 0 where it is 0."""
    squares = (layer.weight.unsqueeze(1) - layer.weight).square().sum(dim=2)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def _linear(network: Network) -> Iterator[tuple[int, Linear]]:
    for number, step in enumerate(network.steps):
        if isinstance(step, Linear):
            yield number, step


def _right(number: int) -> str:
    return f"right_{number}"


def _fixed(number: int) -> str:
    return f"fixed_{number}"


def _step_constant(step: Step) -> Tensor | float:
    if isinstance(step, Slope):
        return step.constant
    if isinstance(step, Scale):
        return step.factor.abs().amax()
    if isinstance(step, Rearrange | Sum | Concatenation):
        return 1.0
    refuse_kind(step, "has no constant that gradients can follow", __name__)


@singledispatch
def _behind(step: Step, factor: Tensor | float, before: list[Tensor | float]) -> Tensor | float:
    if len(before) != 1:
        refuse_kind(step, "merges values", __name__)
    return factor * before[0]


@_behind.register(Sum)
def _(step: Sum, factor: Tensor | float, before: list[Tensor | float]) -> Tensor | float:
    terms = zip(step.coefficients, before, strict=True)
    return reduce(operator.add, [abs(coefficient) * value for coefficient, value in terms])


@_behind.register(Concatenation)
def _(step: Concatenation, factor: Tensor | float, before: list[Tensor | float]) -> Tensor | float:
    return reduce(operator.add, [value**2 for value in before]) ** 0.5
