"""Product of layer norms (Szegedy), and what takes its place where a network branches."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Product(Bound):
    """Multiply certified constants of all steps: valid on all of space, cheap, and loose.

    Where branches meet, their constants are added, or taken as one vector if they are concatenated.

    Source:
        Szegedy et al., Intriguing properties of neural networks (ICLR 2014),
        https://arxiv.org/abs/1312.6199, section 4.3.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the singular values take."""
        return 1e-3 + 1e-7 * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the product; its certificate is the constant of each step."""
        constants = tuple(constant(step, norm) for step in network.steps)
        return Lipschitz.upper(
            network,
            composed(network, constants, norm),
            norm,
            domain,
            constants=torch.tensor(constants, dtype=torch.float64),
        )
