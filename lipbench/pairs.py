"""The pair ascent: pairs of inputs climb towards the Lipschitz constant from below.

Shared by every method that penalises the quotient at pairs, and by the lower bound. All functions
are pure tensor code, so they run inside `torch.func.vmap`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value

from lipbench.threat import Box

Function = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, "batch outputs"]]

LEAST_DISTANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Closer pairs are not used: rounding of f would be a visible part of their quotient.

In float32 the quotient of an untrained 784-64-64-10 sigmoid network, whose outputs hardly vary, was
up to 1.02 times too large at a distance of 1e-2, 1.3 times at 1e-3, and 3.2 times at 1e-4; of 1,000
random pairs. Lower bounds are therefore computed in float64.
"""


@dataclass(frozen=True)
class Pairs:
    """Pairs (u, v), with the step size that each has reached."""

    u: Float[Tensor, "pairs *shape"]
    v: Float[Tensor, "pairs *shape"]
    step: Float[Tensor, " pairs"]

    def top(self, values: Float[Tensor, " pairs"], count: int) -> "Pairs":
        """Return the `count` pairs with the largest values."""
        rows = values.topk(count).indices
        return Pairs(_rows(self.u, rows), _rows(self.v, rows), _rows(self.step, rows))


def squared_quotients(
    function: Function, u: Float[Tensor, "pairs *shape"], v: Float[Tensor, "pairs *shape"]
) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖² / ‖u - v‖² in Euclidean norms, from one forward pass.

    Pairs closer than `LEAST_DISTANCE` are measured as if they were that far apart, which can
    only make the quotient smaller; at u = v it is 0 up to rounding.
    """
    outputs = function(torch.cat([u, v]))
    rise = (outputs[: len(u)] - outputs[len(u) :]).square().sum(dim=1)
    run = (u - v).flatten(1).square().sum(dim=1)
    return rise / run.clamp_min(LEAST_DISTANCE[u.dtype] ** 2)


def quotients(
    function: Function, u: Float[Tensor, "pairs *shape"], v: Float[Tensor, "pairs *shape"]
) -> Float[Tensor, " pairs"]:
    """Return ‖f(u) - f(v)‖ / ‖u - v‖ in Euclidean norms, with gradient 0 where it is 0."""
    squares = squared_quotients(function, u, v)
    # Not `squares > 0`, which would turn NaN into 0.
    some = squares != 0
    return torch.where(some, torch.where(some, squares, 1.0).sqrt(), 0.0)


def ascend(
    function: Function,
    pairs: Pairs,
    *,
    accept: bool,
    factor: float | Float[Tensor, ""] = 1.3,
    box: Box | None = None,
) -> tuple[Pairs, Float[Tensor, " pairs"]]:
    """Move every pair one step up its quotient L: x ← x + step·L·∇L, that is step/2·∇(L²).

    Args:
        function: The network; its parameters should be detached.
        pairs: The pairs to move.
        accept: Keep a move only where it raised L, and then multiply the pair's step by `factor`,
            else divide it. Without it every pair moves and keeps its step.
        factor: Growth and decay of the step, more than 1.
        box: Clip the moved points to it; None leaves them free, as the paper does.

    Returns:
        The pairs, and the quotient of each: the new one with `accept`, which it takes a second
        forward pass to know; else that before the move.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), Algorithm 1. The accept test and the growing steps are those of the
        authors' code, except that the steps are kept from call to call.
    """

    def total(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        squares = squared_quotients(function, u, v)
        return squares.sum(), squares

    (towards_u, towards_v), (_, squares) = grad_and_value(total, argnums=(0, 1), has_aux=True)(
        pairs.u, pairs.v
    )
    moved = climb(pairs, towards_u, towards_v, box=box)
    if not accept:
        return moved, squares.sqrt()
    after = squared_quotients(function, moved.u, moved.v)
    better = after > squares
    kept = Pairs(
        torch.where(_as_rows(better, moved.u), moved.u, pairs.u),
        torch.where(_as_rows(better, moved.v), moved.v, pairs.v),
        torch.where(better, pairs.step * factor, pairs.step / factor),
    )
    return kept, torch.where(better, after, squares).sqrt()


def climb(
    pairs: Pairs,
    towards_u: Float[Tensor, "pairs *shape"],
    towards_v: Float[Tensor, "pairs *shape"],
    *,
    box: Box | None = None,
) -> Pairs:
    """Return the pairs moved by step/2 along the given gradients of their squared quotients.

    A pair that would come closer than `LEAST_DISTANCE` stays where it is.
    """
    half = pairs.step / 2
    u = pairs.u + _as_rows(half, pairs.u) * towards_u
    v = pairs.v + _as_rows(half, pairs.v) * towards_v
    if box is not None:
        u, v = u.clamp(*box), v.clamp(*box)
    apart = (u - v).flatten(1).square().sum(dim=1) >= LEAST_DISTANCE[u.dtype] ** 2
    return Pairs(
        torch.where(_as_rows(apart, u), u, pairs.u),
        torch.where(_as_rows(apart, v), v, pairs.v),
        pairs.step,
    )


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _rows(values: Tensor, rows: Int[Tensor, " chosen"]) -> Tensor:
    # Not values[rows], which vmap refuses.
    return values.take_along_dim(_as_rows(rows, values), dim=0)
