"""Linear region ascent: from one activation pattern to a steeper neighbour."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.lower_bounds.expansion import most_expanded
from lipbench.lipschitz.lower_bounds.linear_regions import LinearRegions
from lipbench.lipschitz.lower_bounds.witness import known_pairs, starting_points, witness
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, neurons
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.ranges import at_least, require
from lipbench.refused import too_many
from lipbench.threat import Box

_BEST = 4
_SPREAD = (0.01, 100.0)


@dataclass(frozen=True, kw_only=True)
class RegionAscent(Bound):
    """Cross the face of a linear region behind which the slope is largest, as long as it grows.

    Gradients say nothing of where a piecewise linear network is steeper: its slope is the same
    everywhere in a region. But one neuron changes sides at each face, so that all slopes of the
    neighbours are known, and a linear program finds the way to one. The value is the quotient of
    two ends of a chord of the steepest region, re-evaluated in float64. The search is this
    project's.
    """

    points: int = 256
    """Data points, and as many samples around them, near and far; the steepest are begun with."""
    programs: int = 400
    """Most linear programs."""
    most_neurons: int = 512
    """Networks with more neurons are refused: their linear programs take seconds each."""
    seed: int = 0

    side: ClassVar[Side] = "lower"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        """Refuse budgets that find nothing.

        Raises:
            ValueError: If there is no point to begin with, or a negative number of programs.
        """
        require(
            at_least("points of region_ascent", self.points, 1),
            at_least("programs of region_ascent", self.programs, 0),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why the network has too many neurons, or None."""
        return too_many(neurons(network), "neurons", self.most_neurons)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the linear programs take."""
        return 0.1 + self.programs * self._seconds(network, domain)

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "RegionAscent | None":
        """Return the search with fewer linear programs, None if not even one fits."""
        programs = int((seconds - 0.1) / self._seconds(network, domain))
        return replace(self, programs=min(self.programs, programs)) if programs > 0 else None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the quotient of the best pair in the steepest regions.

        Raises:
            Refused: If a neuron is not linear on both sides of 0, or the matrices are too large.
        """
        regions = LinearRegions(as_neuron_blocks(network), norm, domain)
        points = self._starts(network, domain, known, inputs)
        steepness, _ = most_expanded(network, points, norm)
        starts = points[steepness.argsort(descending=True)].flatten(1)
        u, v = regions.pairs(regions.climb(starts, self.programs)[:_BEST])
        shape = network.input_shape
        return witness(network, u.reshape(-1, *shape), v.reshape(-1, *shape), norm, domain)

    def _starts(
        self,
        network: Network,
        domain: Box | None,
        known: tuple[Lipschitz, ...],
        inputs: Tensor | None,
    ) -> Float[Tensor, "points *shape"]:
        rng = torch.Generator().manual_seed(self.seed)
        data = starting_points(network, domain, inputs, self.points, rng)
        noise = torch.randn(data.shape, generator=rng, dtype=torch.float64)
        low, high = (torch.tensor(end, dtype=torch.float64).log() for end in _SPREAD)
        share = torch.rand(len(data), generator=rng, dtype=torch.float64)
        spread = (low + (high - low) * share).exp().reshape(-1, *[1] * (data.ndim - 1))
        ends = known_pairs(known, network, domain)
        points = torch.cat([*ends, (ends[0] + ends[1]) / 2, data, data + spread * noise])
        return points if domain is None else points.clamp(*domain)

    def _seconds(self, network: Network, domain: Box | None) -> float:
        count, inputs = neurons(network), network.input_size
        unknowns = min(count, inputs) if domain is None else inputs
        return 2e-3 + 1e-8 * count**2 * unknowns
