"""Leading singular directions of Jacobians at points, and pairs of points along them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from lipbench.networks.network import Network
from lipbench.norm import Norm, steepest, support
from lipbench.threat import Box

_CHUNK = 2**24
_DISTANCES = (2e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CLOSER = (1e-12, 1e-10, 1e-8)
"""Distances at which mostly rounding is seen, unless a function varies on such a scale."""


def most_expanded(
    network: Network, points: Float[Tensor, "points *shape"], norm: Norm
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points *shape"]]:
    """Return the norm of the Jacobian at each point, and a unit direction that attains it.

    At a kink autograd's Jacobian may be that of no side, and its norm larger than the Lipschitz
    constant: a direction is worth what a pair of points along it proves.
    """

    def outputs(point: Tensor) -> Tensor:
        return network(point.unsqueeze(0))[0].flatten()

    size = points[0].numel() * network.output_size
    values, directions = [], []
    for chunk in torch.split(points, max(1, _CHUNK // size)):
        jacobian = vmap(jacrev(outputs))(chunk).flatten(2).detach()
        value, direction = operator_norms(jacobian, norm)
        values.append(value)
        directions.append(direction.reshape(chunk.shape))
    return torch.cat(values), torch.cat(directions)


def operator_norms(
    matrices: Float[Tensor, "batch out in"], norm: Norm
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch in"]]:
    """Return the norms of matrices, as computed, and unit vectors that attain them."""
    if norm == 2.0:
        _, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return values[:, 0], right[:, 0]
    if norm == 1.0:
        sums = matrices.abs().sum(dim=1)
        return sums.amax(dim=1), steepest(sums, norm)
    sums = matrices.abs().sum(dim=2)
    row = torch.einsum("boi,bo->bi", matrices, support(sums, norm))
    return sums.amax(dim=1), steepest(row, norm)


def pairs_along(
    points: Float[Tensor, "points *shape"],
    directions: Float[Tensor, "points *shape"],
    domain: Box | None,
    distances: tuple[float, ...] = _DISTANCES,
) -> tuple[Float[Tensor, "pairs *shape"], Float[Tensor, "pairs *shape"]]:
    """Return pairs of inputs around points in their directions, at several distances."""
    u, v = [], []
    for distance in distances:
        reach, centre = distance / 2, points
        if domain is not None:
            # A point on the boundary moves inwards, so that the pair keeps its direction.
            reach = min(reach, (domain[1] - domain[0]) / 2)
            centre = points.clamp(domain[0] + reach, domain[1] - reach)
        ends = centre - reach * directions, centre + reach * directions
        u.append(ends[0] if domain is None else ends[0].clamp(*domain))
        v.append(ends[1] if domain is None else ends[1].clamp(*domain))
    return torch.cat(u), torch.cat(v)
