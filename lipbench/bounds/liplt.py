"""LipLT: the loop transformation, each activation as half linear and half residual."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.intervals import loop_transformation_on
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LipLT(Bound):
    """Bound the linear share of the network as a whole, and only the rest layer by layer.

    For slopes in [0, 1] it equals the bound of Combettes and Pesquet, which is a sum over all ways
    to cut the network. It is never worse than the product of dense layers' norms. On a box,
    neurons have the slopes that they can have there.

    Source:
        Fazlyab, Entesari, Roy, Chellappa, Certified Robustness via Dynamic Margin Maximization
        and Improved Lipschitz Regularization (NeurIPS 2023), https://arxiv.org/abs/2310.00116.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the norms take."""
        return 2e-3 + 1e-7 * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the constant of each block of neurons."""
        reach = loop_transformation_on(as_neuron_blocks(network), domain).reach(norm)
        value = above_underflow(network, reach[-1])
        return Lipschitz.upper(
            network, value, norm, domain, reach=torch.tensor(reach, dtype=torch.float64)
        )
