"""The largest Jacobian norm at sampled points, confirmed by a difference quotient."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.duality import steepest, support
from lipbench.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box
from lipbench.witness import known_pairs, starting_points, witness

_CHUNK = 2**24
_DISTANCES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Jacobian(Bound):
    """Search data and nearby samples for the steepest Jacobian, then step along its direction.

    Autograd's Jacobian at a kink may exceed the Lipschitz constant, so its norm is never the
    result: a pair of points along the most expanded direction is, re-evaluated in float64.
    """

    points: int = 64
    """Data points, and as many samples around them."""
    seed: int = 0

    side: ClassVar[Side] = "lower"
    norms: ClassVar[frozenset[Norm]] = frozenset(map(Norm, (1.0, 2.0, float("inf"))))

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the Jacobians take."""
        weights = sum(layer.weight.numel() for layer in network.layers)
        outputs = torch.Size(network.output_shape).numel()
        return 2e-2 + 1e-9 * self.points * outputs * weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the best quotient along the directions of the steepest points."""
        rng = torch.Generator().manual_seed(self.seed)
        data = starting_points(network, domain, inputs, self.points, rng)
        noise = torch.randn(data.shape, generator=rng, dtype=torch.float64)
        points = torch.cat([known_pairs(known, network, domain)[0], data, data + 0.1 * noise])
        if domain is not None:
            points = points.clamp(*domain)
        values, directions = _most_expanded(network, points, norm)
        best = values.topk(min(8, len(values))).indices
        u, v = _pairs(points[best], directions[best], domain)
        return witness(network, u, v, norm, domain)


def _most_expanded(
    network: Network, points: Float[Tensor, "points *shape"], norm: Norm
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points *shape"]]:
    """Return the norm of the Jacobian at each point, and a unit direction that attains it."""

    def outputs(point: Tensor) -> Tensor:
        return network(point.unsqueeze(0))[0].flatten()

    size = points[0].numel() * torch.Size(network.output_shape).numel()
    values, directions = [], []
    for part in torch.split(points, max(1, _CHUNK // size)):
        jacobian = vmap(jacrev(outputs))(part).flatten(2).detach()
        value, direction = _operator_norm(jacobian, norm)
        values.append(value)
        directions.append(direction.reshape(part.shape))
    return torch.cat(values), torch.cat(directions)


def _operator_norm(
    matrices: Float[Tensor, "batch out in"], norm: Norm
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch in"]]:
    if norm == 2.0:
        _, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return values[:, 0], right[:, 0]
    if norm == 1.0:
        sums = matrices.abs().sum(dim=1)
        return sums.amax(dim=1), steepest(sums, norm)
    sums = matrices.abs().sum(dim=2)
    row = torch.einsum("boi,bo->bi", matrices, support(sums, norm))
    return sums.amax(dim=1), steepest(row, norm)


def _pairs(
    points: Float[Tensor, "points *shape"],
    directions: Float[Tensor, "points *shape"],
    domain: Box | None,
) -> tuple[Float[Tensor, "pairs *shape"], Float[Tensor, "pairs *shape"]]:
    u, v = [], []
    for distance in _DISTANCES:
        reach, centre = distance / 2, points
        if domain is not None:
            # A point on the boundary moves inwards, so that the pair keeps its direction.
            reach = min(reach, (domain[1] - domain[0]) / 2)
            centre = points.clamp(domain[0] + reach, domain[1] - reach)
        ends = centre - reach * directions, centre + reach * directions
        u.append(ends[0] if domain is None else ends[0].clamp(*domain))
        v.append(ends[1] if domain is None else ends[1].clamp(*domain))
    return torch.cat(u), torch.cat(v)
