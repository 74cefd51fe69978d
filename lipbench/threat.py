"""Threat model: a ball around each input, cut by the box of valid inputs."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.norm import Norm

Box = tuple[float | int, float | int]


@dataclass(frozen=True, kw_only=True)
class Threat:
    """All inputs x' with ‖x' - x‖ ≤ epsilon that lie in `domain`.

    Epsilon is in pixel units, like every input, and may differ from sample to sample.
    """

    norm: Norm
    epsilon: Float[Tensor, " batch"]
    domain: Box | None = (0.0, 1.0)
    """Smallest and largest value of every coordinate; None is all of space."""

    def project(
        self, inputs: Float[Tensor, "batch *shape"], centre: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """Return points of the threat model near `inputs`; both parts hold up to rounding.

        For the l-infinity norm this is the Euclidean projection. For the others the offset is
        scaled into the ball first and the point clipped to the box second: clipping moves no
        coordinate away from a centre that lies in the box, so the result stays in the ball.
        Works under vmap.
        """
        # Few passes over the inputs: attacks spend most of their time in them.
        offset = inputs - centre
        radius = self.epsilon.to(offset.dtype).view(-1, *[1] * (inputs.ndim - 1))
        if self.norm == torch.inf:
            moved = offset.clamp(min=-radius, max=radius).add_(centre)
        else:
            length = self.norm.length(offset).view_as(radius)
            share = (radius / length.clamp_min(torch.finfo(offset.dtype).tiny)).clamp(max=1.0)
            moved = (offset * share).add_(centre)
        return moved if self.domain is None else moved.clamp(*self.domain)

    def corners(
        self, centre: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]] | None:
        """Return the smallest and largest value of every coordinate, where that is all there is.

        None in other norms than the l-infinity norm. Between them lies what `project` returns, up
        to rounding.
        """
        if self.norm != torch.inf:
            return None
        radius = self.epsilon.to(centre.dtype).view(-1, *[1] * (centre.ndim - 1))
        low, high = centre - radius, centre + radius
        return (
            (low, high)
            if self.domain is None
            else (
                low.clamp_(*self.domain),
                high.clamp_(*self.domain),
            )
        )

    def confine(
        self, inputs: Float[Tensor, "batch *shape"], centre: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """Return the projection of `inputs`, none of it outside the ball even by rounding.

        The distance to `centre`, measured in float64, is at most epsilon.
        """
        wide = centre.double()
        moved = self.project(inputs.double(), wide).to(inputs.dtype)
        outside = self.norm.length(moved.double() - wide) > self.epsilon.double()
        outside = outside.view(-1, *[1] * (inputs.ndim - 1))
        # The cast moved each coordinate by at most half a spacing of the floats: one spacing
        # towards the centre makes up for it.
        return torch.where(outside, moved.nextafter(centre), moved)

    def only(self, rows: Tensor) -> "Threat":
        """Return the threat model of the samples that the mask or index `rows` selects."""
        return replace(self, epsilon=self.epsilon[rows])
