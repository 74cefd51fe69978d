"""LipSDP with one multiplier for each layer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.semidefinite.lipsdp import lipsdp_bound, lipsdp_cost
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LipSDPLayer(Bound):
    """The form of LipSDP with few multipliers: looser than one for each neuron.

    Source:
        Fazlyab, Robey, Hassani, Morari, Pappas, Efficient and Accurate Estimation of Lipschitz
        Constants for Deep Neural Networks (NeurIPS 2019), https://arxiv.org/abs/1906.04893,
        LipSDP-Layer.
    """

    iterations: int = 200
    """Most Newton steps."""
    tolerance: float = 1e-6
    """How close to the optimum the square of the bound is brought, as a share of it."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the program takes."""
        return 0.5 * lipsdp_cost(network)

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the multipliers."""
        return lipsdp_bound(
            network, domain, tolerance=self.tolerance, iterations=self.iterations, by_block=True
        )
