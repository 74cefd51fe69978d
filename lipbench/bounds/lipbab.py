"""LipBaB: the exact constant of a small piecewise linear network, by branch and bound."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.exact.region_search import lipbab_bound
from lipbench.lipschitz.exact.vertices import all_corners_fit
from lipbench.lipschitz.lower_bounds.witness import known_pairs
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, neurons
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.refused import Refused, too_many
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LipBaB(Bound):
    """Split the inputs by the signs of neurons until one linear region has the largest slope.

    The value is exact if the search ends, else an upper bound. Regions are dropped with a proof in
    rational numbers that they have no interior: one that is thin counts, one that is flat does not.
    With few neurons the norms of all choices of signs are computed first, and those are looked at
    that are larger than the constant.
    Layers that follow each other are multiplied exactly. A normalisation counts with the factors
    and offsets that it has in float64, and the value is flagged: those of its statistics may be
    roots, which no rational number is.

    Source:
        Bhowmick, D'Souza, Raghavan, LipBaB: Computing Exact Lipschitz Constant of ReLU Networks
        (ICANN 2021), https://arxiv.org/abs/2105.05495.
    """

    nodes: int = 20_000
    """Most regions that are looked at: a look takes 1 ms with few neurons, else 5 to 12."""
    most_neurons: int = 48
    """Networks with more neurons are refused."""
    programs: int = 200
    """Most linear programs that look for a steep region if the search does not end."""

    side: ClassVar[Side] = "exact"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why the network has too many neurons, or None."""
        return too_many(neurons(network), "neurons", self.most_neurons)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the search takes if it does not end before."""
        return _seconds(network, norm) * min(self.nodes, 2 ** min(neurons(network), 30))

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "LipBaB | None":
        """Return the search with fewer regions, None if not even one can be looked at."""
        nodes = min(self.nodes, int(seconds / _seconds(network, norm))) if seconds > 0 else 0
        return replace(self, nodes=nodes) if nodes else None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the constant; its proof is a point of the steepest region, and all regions."""
        u, v = known_pairs(known, network, domain)
        starts = torch.cat([(u + v) / 2, u, v])
        return lipbab_bound(network, norm, domain, self.nodes, self.programs, starts)


def _seconds(network: Network, norm: Norm) -> float:
    with suppress(Refused):
        if all_corners_fit(as_neuron_blocks(network), norm):
            return 2e-3  # a linear program at most, and no semidefinite one
    return 1.2e-2 if norm == 2.0 else 5e-3
