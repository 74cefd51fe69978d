"""Gradient ascent on the norm of the Jacobian: points climb to where a network is steep.

The slope of a piecewise linear network does not change with the input, but at its kinks, so that
its gradient is 0 and shows no way up. It has one if each derivative s' of a neuron's function is
taken to change evenly over a reach around every place: (s'(z + r) - s'(z - r)) / 2r stands for s''.
Values and slopes stay those of the network.

Source:
    Neftci, Mostafa, Zenke, Surrogate Gradient Learning in Spiking Neural Networks (2019),
    https://arxiv.org/abs/1901.09948, for gradients of steps that look as if they were slopes; that
    a Lipschitz constant is climbed to with them is this project's.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.layers.elementwise import Elementwise
from lipbench.lipschitz.lower_bounds.jacobian_products import split
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    AFFINE,
    Contraction,
    ConvContraction,
    GroupSort,
    MaxPool,
    Sandwich,
    Slope,
    Softmax,
    Step,
    refuse_kind,
)
from lipbench.norm import Norm, steepest, support
from lipbench.threat import Box

_LENGTHS = (0.4, 0.04)
"""Of the first step and of the last, as shares of how far inputs are apart."""
_REACHES = (0.5, 0.05)
"""Of the first step and of the last, as shares of the size of the pre-activations."""


@torch.enable_grad()
def climb(
    network: Network,
    points: Float[Tensor, "points *shape"],
    directions: Float[Tensor, "points *shape"],
    norm: Norm,
    domain: Box | None,
    steps: int,
    spread: float,
) -> tuple[
    Float[Tensor, " points"], Float[Tensor, "points *shape"], Float[Tensor, "points *shape"]
]:
    """Return for each climb the largest ‖Jv‖ on the way, and where and in which direction v it was.

    Each step moves the points along the gradient of w·Jv, and turns v and w once by power
    iteration. Kinks of maxima over windows count as none.

    Args:
        network: The network.
        points: Where the climbs begin, in the domain.
        directions: Unit vectors v, best those that the network expands most there.
        norm: Norm of inputs and outputs.
        domain: What holds the points.
        steps: How many steps each climb has, of which the later ones are shorter.
        spread: How far inputs are apart, in l2; the first step is a good part of it.

    Raises:
        Refused: If a step is of a kind that has no rule.
    """
    batches = zip(split(network, points), split(network, directions), strict=True)
    climbs = [_climbed(network, *batch, norm, domain, steps, spread) for batch in batches]
    values, where, along = (torch.cat(each) for each in zip(*climbs, strict=True))
    return values, where, along


def _climbed(
    network: Network,
    points: Tensor,
    directions: Tensor,
    norm: Norm,
    domain: Box | None,
    steps: int,
    spread: float,
) -> tuple[Tensor, Tensor, Tensor]:
    best = torch.full_like(points.flatten(1)[:, 0], -math.inf)
    where, along = points, directions
    weights: Tensor | None = None
    for number in range(steps + 1):
        share = number / max(steps, 1)
        here = points.detach().requires_grad_()
        outputs = _bent(network, _between(_REACHES, share))(here).flatten(1)
        pull = (torch.zeros_like(outputs) if weights is None else weights).detach()
        (pulled,) = torch.autograd.grad(outputs, here, pull.requires_grad_(), create_graph=True)
        if weights is not None:
            directions = steepest(pulled.detach().flatten(1), norm).view_as(points)
        # In w this is linear with the slope Jv; its gradient in x is where w·Jv grows.
        slope = (pulled * directions).sum()
        images, uphill = torch.autograd.grad(slope, (pull, here), materialize_grads=True)
        values, weights = norm.length(images), support(images, norm)
        better = values > best
        best = torch.where(better, values, best)
        rows = better.view(-1, *[1] * (points.ndim - 1))
        where, along = torch.where(rows, points, where), torch.where(rows, directions, along)
        towards = steepest(uphill.flatten(1), Norm(2)).view_as(points)
        points = points + spread * _between(_LENGTHS, share) * towards
        if domain is not None:
            points = points.clamp(*domain)
    return best, where, along


def _between(ends: tuple[float, float], share: float) -> float:
    return math.exp((1 - share) * math.log(ends[0]) + share * math.log(ends[1]))


def _bent(network: Network, reach: float) -> Network:
    """Return a network with the same values and slopes, whose slopes have a gradient.

    Raises:
        Refused: If a step is of a kind that has no rule.
    """

    def bend(function: Elementwise) -> Elementwise:
        return lambda inputs: _Bent.apply(inputs, function, reach)

    def bent(step: Step) -> Step:
        if isinstance(step, Slope | Contraction | ConvContraction | Sandwich):
            return replace(step, function=bend(step.function))
        if isinstance(step, GroupSort):
            attributes = {field.name: getattr(step, field.name) for field in fields(step)}
            return _Sorted(**attributes, relu=bend(torch.relu))
        if isinstance(step, _UNCHANGED):
            return step
        refuse_kind(step, "has slopes whose gradient is not known", __name__)

    return replace(network, steps=tuple(map(bent, network.steps)))


_UNCHANGED = (
    *AFFINE,
    Softmax,  # which is smooth
    MaxPool,  # whose kinks count as none
)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sorted(GroupSort):
    """Sorted groups, by relu of the differences of neighbours."""

    relu: Elementwise

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        members = list(inputs.unflatten(1, (-1, self.group)).unbind(dim=2))
        for last in range(self.group - 1, 0, -1):  # bubbles, the smallest to the end
            for index in range(last):
                left, right = members[index : index + 2]
                rise = self.relu(right - left)
                members[index : index + 2] = left + rise, right - rise
        return torch.stack(members, dim=2).flatten(1, 2)


class _Bent(torch.autograd.Function):
    """An elementwise function, whose derivative is `_Turning`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, function: Elementwise, reach: float) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.function, ctx.reach = function, reach
        return function(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        return gradients[0] * _Turning.apply(inputs, ctx.function, ctx.reach), None, None


class _Turning(torch.autograd.Function):
    """The derivative of an elementwise function, which changes evenly over its reach."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, function: Elementwise, reach: float) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.function, ctx.reach = function, reach
        return _derivative(function, inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        size = float(inputs.square().mean().sqrt())
        reach = ctx.reach * (size or 1.0)
        after, before = (_derivative(ctx.function, inputs + side) for side in (reach, -reach))
        return gradients[0] * (after - before) / (2 * reach), None, None


def _derivative(function: Elementwise, inputs: Tensor) -> Tensor:
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        outputs = function(inputs)
        return torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))[0]
