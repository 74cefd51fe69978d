"""Jacobian ascent: to where the Jacobian's norm is large, by products with it alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.lower_bounds.decision_boundary import boundary_points
from lipbench.lipschitz.lower_bounds.expansion import pairs_along
from lipbench.lipschitz.lower_bounds.jacobian_products import power_iteration, products
from lipbench.lipschitz.lower_bounds.slope_ascent import climb
from lipbench.lipschitz.lower_bounds.witness import known_pairs, starting_points, witness
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm, steepest
from lipbench.ranges import at_least, require
from lipbench.threat import Box

_SECONDS_PER_PRODUCT = 3e-10
_SECONDS_PER_CALL = 2e-5
_NOISE = 0.1
_BORDER = 0.5
_BEST = 8
_LAST = 20


@dataclass(frozen=True, kw_only=True)
class JacobianAscent(Bound):
    """Climb from data, their noisy neighbours and the borders of classes to steeper points.

    The norm of a Jacobian is found by power iteration, at the cost of a few passes through the
    network however many its outputs are, so that no Jacobian is ever made. The value is that of a
    pair of inputs along the best direction, re-evaluated in float64: at a kink autograd's slope may
    be that of no side.

    Source:
        Boyd, The power method for l^p norms, Linear Algebra and its Applications 9 (1974), 95-101,
        for the iteration. The ascent is this project's.
    """

    points: int = 64
    """Data points; as many near them, and at borders of classes."""
    iterations: int = 5
    """Steps of power iteration at each of them."""
    attack: int = 10
    """Steps of the attack that finds borders."""
    climbers: int = 16
    """The points with the largest slopes, which climb."""
    steps: int = 100
    """Steps of each climb."""
    products: int = 2 * 10**11
    """Most multiplications; of a large network there are fewer points and climbers."""
    seed: int = 0

    side: ClassVar[Side] = "lower"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        """Refuse budgets that find nothing.

        Raises:
            ValueError: If there is no point or no climber, or a negative number of steps.
        """
        require(
            at_least("points of jacobian_ascent", self.points, 1),
            at_least("climbers of jacobian_ascent", self.climbers, 1),
            at_least("iterations of jacobian_ascent", self.iterations, 0),
            at_least("attack of jacobian_ascent", self.attack, 0),
            at_least("steps of jacobian_ascent", self.steps, 0),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why not even one point fits the products, or None."""
        least = replace(self, points=1, climbers=1)._passes * products(network)
        if least <= self.products:
            return None
        return f"one climb takes {least} products, more than the {self.products} of products."

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the products take."""
        calls = replace(self, points=1, climbers=1)._passes * len(network.steps)
        count = min(self.products, self._passes * products(network))
        return 5e-2 + _SECONDS_PER_CALL * calls + _SECONDS_PER_PRODUCT * count

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "JacobianAscent | None":
        """Return the search with fewer products, None if not even one point fits."""
        left = seconds - replace(self, products=0).cost(network, norm, domain)
        fitting = replace(self, products=min(self.products, int(left / _SECONDS_PER_PRODUCT)))
        return None if fitting.refuses(network, norm, domain) else fitting

    @property
    def _passes(self) -> int:
        """Return how often a point passes through the network, in either direction."""
        start = 2 * self.attack + 3 * (4 + 2 * self.iterations)
        return self.points * start + self.climbers * (5 * self.steps + 2 * _LAST)

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the best quotient along the directions of the steepest points."""
        share = min(1.0, self.products / max(1, self._passes * products(network)))
        count, climbers = (max(1, int(share * each)) for each in (self.points, self.climbers))
        rng = torch.Generator().manual_seed(self.seed)
        data = starting_points(network, domain, inputs, self.points, rng)
        spread = float(Norm(2).length(data - data.mean(dim=0)).mean()) or 1.0
        points = self._starts(network, data[:count], spread, domain, known, rng)
        random = torch.randn(points.shape, generator=rng, dtype=torch.float64)
        first = steepest(random.flatten(1), norm).view_as(points)
        values, directions = power_iteration(network, points, first, norm, self.iterations)
        best = values.topk(min(climbers, len(values))).indices
        values, points, directions = climb(
            network,
            points[best],
            directions[best],
            norm=norm,
            domain=domain,
            steps=self.steps,
            spread=spread,
        )
        best = values.topk(min(_BEST, len(values))).indices
        _, directions = power_iteration(network, points[best], directions[best], norm, _LAST)
        u, v = pairs_along(points[best], directions, domain)
        return witness(network, u, v, norm, domain)

    def _starts(
        self,
        network: Network,
        data: Float[Tensor, "points *shape"],
        spread: float,
        domain: Box | None,
        known: tuple[Lipschitz, ...],
        rng: torch.Generator,
    ) -> Float[Tensor, "more *shape"]:
        near = data + _NOISE * torch.randn(data.shape, generator=rng, dtype=torch.float64)
        edge = boundary_points(network, data, _BORDER * spread, domain, self.attack)
        u, v = known_pairs(known, network, domain)
        points = torch.cat([(u + v) / 2, u, v, data, near, edge])
        return points if domain is None else points.clamp(*domain)
