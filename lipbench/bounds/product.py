"""The product of layer norms."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.constants import constant, product_of
from lipbench.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Product(Bound):
    """Multiply certified constants of all steps: valid on all of space, cheap, and loose.

    Source:
        Szegedy et al., Intriguing properties of neural networks (ICLR 2014),
        https://arxiv.org/abs/1312.6199, section 4.3.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset(map(Norm, (1.0, 2.0, float("inf"))))

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there is no product: the steps must form a chain."""
        return None if network.is_chain else "the network branches; a product needs a chain."

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the singular values take."""
        return 1e-3 + 1e-7 * sum(layer.weight.numel() for layer in network.layers)

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
        return Lipschitz(
            value=product_of(constants),
            side="upper",
            norm=norm,
            domain=domain,
            proof={"constants": torch.tensor(constants, dtype=torch.float64)},
            flags=network.flags,
        )
