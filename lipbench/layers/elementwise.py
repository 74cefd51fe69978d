"""Derivatives of elementwise functions, and their range on an interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]

Formula = Callable[[Any, Any], Any]
"""A function of one number, from a context of mpmath and the number, to its precision."""

Sides = tuple[float | Tensor, float | Tensor] | None
"""Slopes left and right of 0, of a function that is 0 there and linear on both sides."""

_ROUNDING = 64 * torch.finfo(torch.float64).eps
_FAR = 1e300
"""Where derivatives are what they are at infinity."""


@dataclass(frozen=True, kw_only=True)
class Derivative:
    """A derivative that is monotone between certain points, in float64."""

    function: Callable[[Tensor], Tensor]
    """The derivative; where it jumps, any value between those on both sides."""
    turns: tuple[tuple[float, float, float], ...] = ()
    """Where it turns or jumps, and its least and largest value on both sides of that point."""
    stops: tuple[float, ...] = ()
    """Where its sign changes: between these points the function itself is monotone."""
    error: float = _ROUNDING
    """By how much its computed values may be wrong. Points that are rounded do not add to it:
    where it turns, a derivative moves by the square of how far the point is off."""

    def between(
        self, lo: Float[Tensor, "*neurons"], hi: Float[Tensor, "*neurons"]
    ) -> tuple[Float[Tensor, "*neurons"], Float[Tensor, "*neurons"]]:
        """Return numbers between which the derivative lies on [lo, hi], and with it all quotients.

        Ends may be infinite. The numbers are rounded outwards, and are none where the derivative
        cannot be computed.
        """
        at_lo, at_hi = (self.function(_held(end)) for end in (lo, hi))
        least, most = torch.minimum(at_lo, at_hi), torch.maximum(at_lo, at_hi)
        for point, low, high in self.turns:
            inside = (lo <= point) & (point <= hi)
            least = torch.where(inside, least.clamp_max(low), least)
            most = torch.where(inside, most.clamp_min(high), most)
        return least - self.error, most + self.error


def _held(end: Tensor) -> Tensor:
    # Infinite ends are of bounds, which are in float64; training has none.
    return end.clamp(-_FAR, _FAR) if end.dtype == torch.float64 else end
