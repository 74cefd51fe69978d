"""Jacobian bounds by linear relaxation, and branch and bound over neurons."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.jacobian_cases import jacobian_bound
from lipbench.lipschitz.relaxations.jacobians import jacobian_work
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.ranges import at_least, positive, require
from lipbench.threat import Box

_SECONDS_PER_PRODUCT = 2e-10
_SECONDS_PER_CASE = 2e-3


@dataclass(frozen=True, kw_only=True)
class JacobianBound(Bound):
    """Follow lines around products of slopes and adjoints back to where they come from.

    The absolute values of a row, or in the norm 1 of a column, are bounded by their sum and not
    each at its worst; in the norm 2 each derivative is bounded. Slopes of neurons that stay open
    are then decided in turn, unless the norm is 2. It is never worse than intervals of derivatives.
    On all of space every slope is taken to be possible.

    Source:
        Shi, Wang, Zhang, Kolter, Hsieh, Efficiently Computing Local Lipschitz Constants of Neural
        Networks via Bound Propagation (NeurIPS 2022), https://arxiv.org/abs/2210.07394. There
        is no branching on the signs of derivatives here.
    """

    nodes: int = 100
    """Most cases, a row or column with some slopes decided, that are looked at beside the first."""
    most_products: float = 1e11
    """Most products of numbers that the first bounds may take, and again all cases beside them."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        require(
            at_least("nodes", self.nodes, 0),
            positive("most_products", self.most_products),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why the network is too large, or None."""
        whole, _ = jacobian_work(network, norm, domain)
        if whole <= self.most_products:
            return None
        return (
            f"its first bounds take about {whole:.2g} products of numbers, more than the "
            f"{self.most_products:.2g} of most_products."
        )

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the first bounds take, and the cases beside them."""
        first, each = self._seconds(network, norm, domain)
        return first + each * self._most(network, norm, domain)

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "JacobianBound | None":
        """Return the bound with fewer cases, None if there is no time for the first."""
        first, each = self._seconds(network, norm, domain)
        if first > seconds:
            return None
        return replace(self, nodes=min(self.nodes, int((seconds - first) / each)))

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the cases that are left of the search."""
        return jacobian_bound(network, norm, domain, self._most(network, norm, domain))

    def _most(self, network: Network, norm: Norm, domain: Box | None) -> int:
        """Return how many cases there may be beside the first."""
        if norm == 2.0:
            return 0
        _, each = jacobian_work(network, norm, domain)
        return min(self.nodes, int(self.most_products / max(each, 1.0)))

    def _seconds(self, network: Network, norm: Norm, domain: Box | None) -> tuple[float, float]:
        whole, each = jacobian_work(network, norm, domain)
        return 1e-2 + _SECONDS_PER_PRODUCT * whole, _SECONDS_PER_CASE + _SECONDS_PER_PRODUCT * each
