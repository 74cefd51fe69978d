"""ECLipsE: LipSDP layer by layer, each layer's multipliers the best for the next."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.chain import refusal
from lipbench.lipschitz.semidefinite.layer_by_layer import eclipse_bound, eclipse_cost
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.ranges import at_least, between, require
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class ECLipsE(Bound):
    """A point of LipSDP that takes one small program for each layer, certified by the core.

    It lies between LipSDP-Neuron, whose time grows with the cube of all neurons, and ECLipsE-Fast,
    whose multipliers it tries as well. Slopes of both signs count with their product, which the
    published code, in version 0.1.7, computes and drops.

    Source:
        Xu, Sivaranjani, ECLipsE: Efficient Compositional Lipschitz Constant Estimation for Deep
        Neural Networks (NeurIPS 2024), https://arxiv.org/abs/2404.04375, ECLipsE.
    """

    iterations: int = 200
    """Most Newton steps for each layer."""
    tolerance: float = 1e-6
    """How close to its optimum each layer is brought, as a share of the square."""
    most_neurons: int = 256
    """Networks with a wider layer are refused."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        require(
            at_least("iterations", self.iterations, 1),
            at_least("most_neurons", self.most_neurons, 1),
            between("tolerance", self.tolerance, 0, 1, without_low=True, without_high=True),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there are no stages, or too wide ones."""
        return refusal(network, self.most_neurons)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the programs take."""
        return eclipse_cost(network, self.iterations)

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "ECLipsE | None":
        """Return the bound with fewer Newton steps, None if less than ten fit."""
        for iterations in (self.iterations, 20, 10):
            if eclipse_cost(network, iterations) <= seconds:
                return replace(self, iterations=min(iterations, self.iterations))
        return None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the multipliers."""
        return eclipse_bound(network, domain, tolerance=self.tolerance, iterations=self.iterations)
