"""LipMIP: the exact constant of a small ReLU network on a box, in the norms 1 and infinity."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.exact.gate_search import lipmip_bound
from lipbench.lipschitz.relaxations.neuron_blocks import neurons
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.ranges import at_least, require
from lipbench.refused import Refused, too_many
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LipMIP(Bound):
    """Bound the largest derivatives by linear programs, with gates as integers to branch over.

    The value is exact if a region has it, else an upper bound: where the search was cut, or where
    gates of a face between regions make up more than any region has.

    Source:
        Jordan, Dimakis, Exactly Computing the Local Lipschitz Constant of ReLU Networks (NeurIPS
        2020), https://arxiv.org/abs/2003.01219. The norm 1 of several outputs, a search of its own
        and its proof by duality are this project's.
    """

    nodes: int = 2_000
    """Most linear programs that are solved."""
    most_neurons: int = 60
    """Networks with more neurons are refused."""
    most_inputs: int = 100
    """Networks with more inputs are refused."""

    side: ClassVar[Side] = "exact"
    norms: ClassVar[frozenset[Norm]] = frozenset(map(Norm, (1.0, float("inf"))))

    def __post_init__(self) -> None:
        """Check the budgets.

        Raises:
            ValueError: If a budget is negative.
        """
        require(
            at_least("nodes", self.nodes, 0),
            at_least("most_neurons", self.most_neurons, 0),
            at_least("most_inputs", self.most_inputs, 0),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there is no box, or too many neurons, or None."""
        if domain is None:
            return "it needs a box: all of space has no bounds from which its programs start."
        return too_many(neurons(network), "neurons", self.most_neurons) or too_many(
            network.input_size, "inputs", self.most_inputs
        )

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the search takes if it does not end before."""
        return 0.1 + self._seconds(network) * min(self.nodes, 2 ** min(neurons(network), 30))

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "LipMIP | None":
        """Return the search with fewer nodes, None if there is no time for any."""
        left = int((seconds - 0.1) / self._seconds(network)) if seconds > 0.1 else 0
        return replace(self, nodes=min(self.nodes, left)) if left else None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the constant; its proof is all parts of the search with their multipliers.

        Raises:
            Refused: If there is no box, or a neuron is not piecewise linear.
        """
        if domain is None:
            raise Refused("it needs a box: all of space has no bounds.")
        return lipmip_bound(network, norm, domain, self.nodes, known, inputs)

    def _seconds(self, network: Network) -> float:
        count = neurons(network)
        return 3e-3 + 8e-5 * count + 2.6e-6 * count**2 + 4e-5 * network.input_size
