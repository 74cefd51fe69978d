"""Steps of pair ascent: power iteration turns pairs, gradient steps move them."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.lower_bounds import pairs as engine
from lipbench.norm import Norm, steepest, support

NEAREST = 1e-3
"""How close a turn brings a pair at most."""
_MEASURABLE = 1e-6
_GROWTH = 1.3


def quotients(
    function: engine.Function,
    u: Float[Tensor, "pairs *shape"],
    v: Float[Tensor, "pairs *shape"],
    norm: Norm,
) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ as computed, 0 for pairs that are too close to be chosen."""
    with torch.no_grad():
        images = function(torch.cat([u, v]))
    run = norm.length(u - v)
    rise = norm.length(images[: len(u)] - images[len(u) :])
    # Closer pairs may only be measured, never chosen: their quotient is partly rounding.
    return torch.where(run >= _MEASURABLE, rise / run.clamp_min(_MEASURABLE), 0.0)


@torch.enable_grad()
def turn(
    function: engine.Function,
    pairs: engine.Pairs,
    norm: Norm,
    scale: float,
    nearest: float = NEAREST,
) -> engine.Pairs:
    """Return the pairs after a step of power iteration, where it raised their quotient.

    Args:
        function: What maps samples to vectors.
        pairs: The pairs.
        norm: Norm of inputs and outputs.
        scale: What the distance of each pair is multiplied by.
        nearest: The distance that is not gone below, unless a pair has been closer before.
    """
    ends = torch.cat([pairs.u, pairs.v]).requires_grad_()
    images = function(ends)
    count = len(pairs.step)
    rise = images.detach()[:count] - images.detach()[count:]
    pull = support(rise, norm)
    gradient = torch.autograd.grad((images * torch.cat([pull, pull])).sum(), ends)[0]
    towards = steepest((gradient[:count] + gradient[count:]).flatten(1), norm)
    run = norm.length(pairs.difference)
    reach = (scale * run).clamp_min(torch.minimum(run, torch.full_like(run, nearest)))
    turned = replace(
        pairs, difference=(reach.unsqueeze(1) * towards).reshape(pairs.difference.shape)
    )
    moved = engine.Pairs.of(turned.u, turned.v, pairs.step, pairs.box)
    before = quotients(function, pairs.u, pairs.v, norm)
    return moved.where(quotients(function, moved.u, moved.v, norm) > before, pairs)


@torch.enable_grad()
def move(function: engine.Function, pairs: engine.Pairs, norm: Norm) -> engine.Pairs:
    """Return the pairs after a gradient step of each, where it raised their quotient.

    Where it did, the next step of the pair is longer, elsewhere shorter.
    """
    u, v = pairs.u.detach().requires_grad_(), pairs.v.detach().requires_grad_()
    images = function(torch.cat([u, v]))
    rise = norm.length(images[: len(u)] - images[len(u) :])
    squares = (rise / norm.length(u - v).clamp_min(_MEASURABLE)).square()
    slopes = torch.autograd.grad(squares.sum(), (u, v))
    moved = engine.climb(pairs, (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) / 2)
    before = quotients(function, pairs.u, pairs.v, norm)
    better = quotients(function, moved.u, moved.v, norm) > before
    longer = replace(moved, step=pairs.step * _GROWTH)
    return longer.where(better, replace(pairs, step=pairs.step / _GROWTH))
