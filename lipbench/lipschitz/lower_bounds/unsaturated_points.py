"""Unsaturated points: inputs at which neurons read about 0, and inputs of several sizes.

A sigmoid far from 0 is flat, and says nothing of where it is steep. Where its neuron reads 0 it is
steepest, and so are most activations near it, or they bend there.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.networks.network import Network
from lipbench.networks.steps import Slope
from lipbench.threat import Box

_LAYERS = 3
_ITERATIONS = 3
_NEAR = 0.1
_SIZES = (0.1, 100.0)
"""Half lengths of boxes, from which inputs are drawn where all of space is asked about."""


@torch.enable_grad()
def unsaturated(
    network: Network, points: Float[Tensor, "points *shape"], rng: torch.Generator
) -> Float[Tensor, "points *shape"]:
    """Return points moved to where one neuron, another one for each, reads about 0.

    By the step of Newton's method along the gradient, which is exact in front of a first layer of
    activations; of later layers only the first few are tried. A point from which that leads nowhere
    stays.
    """
    values = [step.inputs[0] for step in network.steps if isinstance(step, Slope)][:_LAYERS]
    if not values or not len(points):
        return points
    moved = points.clone()
    for number, value in enumerate(values):
        mine = slice(number, None, len(values))
        moved[mine] = _towards_zero(network, value, points[mine], rng)
    # What is far beyond where first neurons bend was not found, but missed.
    lengths = moved.flatten(1).norm(dim=1)
    first = lengths[:: len(values)]
    is_far = lengths > 10 * (1 + first[first.isfinite()].max() if len(first) else 1)
    lost = is_far | ~lengths.isfinite()
    return torch.where(lost.view(-1, *[1] * (points.ndim - 1)), points, moved).detach()


def of_several_sizes(
    points: Float[Tensor, "points *shape"], rng: torch.Generator
) -> Float[Tensor, "points *shape"]:
    """Return as many inputs, each drawn from a box around 0 of a size of its own."""
    low, high = map(math.log, _SIZES)
    share = torch.rand(len(points), generator=rng, dtype=torch.float64)
    sizes = (low + (high - low) * share).exp().view(-1, *[1] * (points.ndim - 1))
    return sizes * (2 * torch.rand(points.shape, generator=rng, dtype=torch.float64) - 1)


def mixed(
    network: Network,
    points: Float[Tensor, "points *shape"],
    domain: Box | None,
    rng: torch.Generator,
) -> Float[Tensor, "points *shape"]:
    """Return samples of a domain, of which every fourth was moved to where a neuron reads about 0.

    On all of space every fourth is one of several sizes. No point leaves a box.
    """
    points = points.clone()
    points[1::4] = unsaturated(network, points[1::4], rng)
    if domain is not None:
        return points.clamp(*domain)
    points[3::4] = of_several_sizes(points[3::4], rng)
    return points


def _towards_zero(
    network: Network, value: int, points: Float[Tensor, "points *shape"], rng: torch.Generator
) -> Float[Tensor, "points *shape"]:
    neurons = torch.rand(len(points), generator=rng, dtype=torch.float64)
    aims = _NEAR * torch.randn(len(points), generator=rng, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        here = points.detach().requires_grad_()
        reads = _value(network, value, here).flatten(1)
        chosen = (neurons * reads.shape[1]).long()
        read = reads.gather(1, chosen.unsqueeze(1)).squeeze(1)
        (slopes,) = torch.autograd.grad(read.sum(), here, materialize_grads=True)
        steepness = slopes.flatten(1).square().sum(dim=1)
        steps = torch.where(steepness > 0, (aims - read) / steepness, 0.0)
        points = here + steps.view(-1, *[1] * (points.ndim - 1)) * slopes
    return points.detach()


def _value(network: Network, value: int, inputs: Tensor) -> Tensor:
    """Return one of the values of a network, of which the input is value 0."""
    values = [inputs]
    for step in network.steps[:value]:
        values.append(step(*[values[read] for read in step.inputs]))
    return values[value]
