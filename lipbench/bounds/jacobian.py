"""Sampled Jacobians: the largest norm, confirmed by a difference quotient."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.lower_bounds.expansion import most_expanded, pairs_along
from lipbench.lipschitz.lower_bounds.witness import known_pairs, starting_points, witness
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


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
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the Jacobians take."""
        weights = network.weights
        outputs = network.output_size
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
        values, directions = most_expanded(network, points, norm)
        best = values.topk(min(8, len(values))).indices
        u, v = pairs_along(points[best], directions[best], domain)
        return witness(network, u, v, norm, domain)
