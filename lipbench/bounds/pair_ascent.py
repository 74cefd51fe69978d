"""Pair ascent: pairs of inputs that climb to the largest difference quotient (CLIP)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.lower_bounds import pairs as engine
from lipbench.lipschitz.lower_bounds.pair_steps import quotients, turn
from lipbench.lipschitz.lower_bounds.witness import known_pairs, starting_points, witness
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class PairAscent(Bound):
    """Ascend from data points, pairs of them, and earlier witnesses, keeping what improves.

    Two moves alternate: a gradient step with a step size per pair (l2 only), and a step of power
    iteration, which turns the pair into the direction that the network expands most between its
    points. The value is the best pair's quotient, re-evaluated in float64.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), https://arxiv.org/abs/2103.12531, Algorithm 1, for the gradient step;
        the other move is this project's.
    """

    points: int = 128
    """Data points from which candidate pairs are formed."""
    pairs: int = 12
    """Candidates with the largest quotients, which ascend."""
    steps: int = 40
    """Most moves of each kind."""
    seed: int = 0

    side: ClassVar[Side] = "lower"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the ascent takes; it starts best from other results."""
        weights = network.weights
        return 5e-2 + 1e-8 * self.pairs * self.steps * weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the quotient of the best pair."""

        def outputs(points: Tensor) -> Tensor:
            return network(points).flatten(1)

        climbers = self._start(network, outputs, norm, domain, known, inputs)
        for count in range(self.steps):
            if norm == 2.0:
                climbers, _ = engine.ascend(outputs, climbers, accept=True)
            # Every other move also halves the distance: the steepest slopes are local.
            scale = 1.0 if count % 2 else 0.5
            climbers = turn(outputs, climbers, norm, scale)
        return witness(network, climbers.u, climbers.v, norm, domain)

    def _start(
        self,
        network: Network,
        outputs: engine.Function,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...],
        inputs: Tensor | None,
    ) -> engine.Pairs:
        rng = torch.Generator().manual_seed(self.seed)
        data = starting_points(network, domain, inputs, self.points, rng)
        noise = torch.randn(data.shape, generator=rng, dtype=torch.float64)
        near, known_u_v = data + 0.1 * noise, known_pairs(known, network, domain)
        if domain is not None:
            near = near.clamp(*domain)
        u = torch.cat([known_u_v[0], data, data])
        v = torch.cat([known_u_v[1], near, data.roll(1, dims=0)])
        values = quotients(outputs, u, v, norm)
        best = values.topk(min(self.pairs, len(u))).indices
        apart = norm.length(u - v)[best]
        # A first step of about a tenth of the pair's distance; it adapts.
        step = 0.1 * (apart / values[best].clamp_min(1e-12)) ** 2
        return engine.Pairs.of(u[best], v[best], step, domain)
