"""Unsaturated points: inputs at which neurons read about 0, and inputs of several sizes.

A sigmoid far from 0 is flat, and says nothing of where it is steep. Where its neuron reads 0 it is
steepest, and so are most activations near it, or they bend there.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.lower_bounds.jacobian_products import products, split
from lipbench.networks.network import Network
from lipbench.networks.steps import Slope
from lipbench.norm import Norm

_LAYERS = 3
_ITERATIONS = 3
_NEAR = 0.1
_ROUNDS = 16
"""Candidates for each point, at most."""
_PRODUCTS = 1e9
"""Multiplications that all candidates may take, of one pass each."""
_SIZES = (0.1, 100.0)
"""Half lengths of boxes, from which inputs are drawn where all of space is asked about."""


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
    first = lengths[:: len(values)].nan_to_num(posinf=0.0)
    lost = ~(lengths <= 10 * (1 + first.max()))
    return torch.where(lost.view(-1, *[1] * (points.ndim - 1)), points, moved)


def of_several_sizes(
    points: Float[Tensor, "points *shape"], rng: torch.Generator
) -> Float[Tensor, "points *shape"]:
    """Return as many inputs, each drawn from a box around 0 of a size of its own."""
    low, high = map(math.log, _SIZES)
    share = torch.rand(len(points), generator=rng, dtype=torch.float64)
    sizes = (low + (high - low) * share).exp().view(-1, *[1] * (points.ndim - 1))
    return sizes * (2 * torch.rand(points.shape, generator=rng, dtype=torch.float64) - 1)


def mixed(
    network: Network, points: Float[Tensor, "points *shape"], rng: torch.Generator
) -> Float[Tensor, "points *shape"]:
    """Return samples of all of space, of which every other is replaced by one that is steeper.

    Those are the steepest of many candidates: half of them were moved to where a neuron reads about
    0, and half are of several sizes.
    """
    points, replaced = points.clone(), points[1::2]
    if not len(replaced):
        return points
    share = int(_PRODUCTS / max(1, products(network) * len(replaced)))
    rounds = max(1, min(_ROUNDS, share))
    normal = torch.randn(rounds, *replaced.shape, generator=rng, dtype=torch.float64).flatten(0, 1)
    half = len(normal) // 2
    candidates = torch.cat(
        [unsaturated(network, normal[:half], rng), of_several_sizes(normal[half:], rng)]
    )
    points[1::2] = _steepest(network, candidates, len(replaced), rng)
    return points


@torch.enable_grad()
def _steepest(
    network: Network,
    candidates: Float[Tensor, "candidates *shape"],
    count: int,
    rng: torch.Generator,
) -> Float[Tensor, "count *shape"]:
    """Return the candidates with the largest gradients of random sums of outputs."""
    lengths = []
    for batch in split(network, candidates):
        here = batch.detach().requires_grad_()
        outputs = network(here).flatten(1)
        weights = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
        sums = (weights * outputs).sum(dim=1) / Norm(2).length(weights)
        lengths.append(Norm(2).length(_gradient(sums, here)))
    return candidates[torch.cat(lengths).topk(count).indices].detach()


@torch.enable_grad()
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
        slopes = _gradient(read, here)
        steepness = slopes.flatten(1).square().sum(dim=1)
        steps = torch.where(steepness > 0, (aims - read) / steepness, 0.0)
        points = here + steps.view(-1, *[1] * (points.ndim - 1)) * slopes
    return points.detach()


def _gradient(
    numbers: Float[Tensor, " points"], points: Float[Tensor, "points *shape"]
) -> Float[Tensor, "points *shape"]:
    """Return the gradient of one number of each point, 0 where it does not depend on it."""
    if not numbers.requires_grad:
        return torch.zeros_like(points)
    return torch.autograd.grad(numbers.sum(), points, materialize_grads=True)[0].detach()


def _value(network: Network, value: int, inputs: Tensor) -> Tensor:
    """Return one of the values of a network, of which the input is value 0."""
    values = [inputs]
    for step in network.steps[:value]:
        values.append(step(*[values[read] for read in step.inputs]))
    return values[value]
