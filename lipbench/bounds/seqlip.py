"""SeqLip: layers cut in two by their singular values, with the worst slopes between them."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.chain import refusal
from lipbench.lipschitz.semidefinite.singular_factors import seqlip_bound, seqlip_cost
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.ranges import at_least, require
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class SeqLip(Bound):
    """Multiply factors around each layer of neurons, each the largest over all of its slopes.

    Each largest norm is found by branch and bound, as an upper bound: what a greedy or a gradient
    search finds bounds nothing, and is not offered. With one layer of neurons nothing is cut, and
    the value is the best that is true for all slopes; the more layers there are, the looser it is.

    Source:
        Scaman, Virmaux, Lipschitz regularity of deep neural networks: analysis and efficient
        estimation (NeurIPS 2018), https://arxiv.org/abs/1805.10965, SeqLip, whose published code
        took a matrix of singular vectors for its transpose.
    """

    nodes: int = 10_000
    """Most nodes of the search in one factor; what is left then counts with its bounds."""
    most_neurons: int = 64
    """Networks with a wider layer are refused."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        require(
            at_least("nodes", self.nodes, 1),
            at_least("most_neurons", self.most_neurons, 1),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there are no factors, or too wide ones."""
        return refusal(network, self.most_neurons)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the searches take if they do not end before."""
        return seqlip_cost(network, self.nodes)

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "SeqLip | None":
        """Return the bound with shorter searches, None if not even one node can be looked at."""
        if self.cost(network, norm, domain) <= seconds:
            return self
        start, first = seqlip_cost(network, 0), seqlip_cost(network, 1)
        nodes = int((seconds - start) / (first - start)) if first > start else 0
        return replace(self, nodes=min(nodes, self.nodes)) if nodes > 0 else None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the largest norm of each factor."""
        return seqlip_bound(network, domain, self.nodes)
