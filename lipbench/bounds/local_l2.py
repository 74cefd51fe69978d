"""Local product bound: layer norms without the neurons that cannot vary on a box."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.lipschitz.relaxations.varying_neurons import varying_reach
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LocalL2(Bound):
    """Multiply l2 norms of layers from which neurons that are constant on a box are left out.

    A ReLU that is always off is one of these, and so is a clipped one beyond either bend; of other
    neurons the largest slope on the box counts. It is never worse than the product of dense
    layers' norms, and was made for networks that are trained to have such neurons: on others LipLT,
    which knows of neurons that are always on as well, is far tighter.

    Source:
        Huang, Zhang, Shi, Kolter, Anandkumar, Training Certifiably Robust Neural Networks with
        Efficient Local Lipschitz Bounds (NeurIPS 2021), https://arxiv.org/abs/2111.01395. Its balls
        are boxes here, and neurons are found by interval arithmetic.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there is nothing to leave out without a domain, or None."""
        return "on all of space it is the product: it needs a domain." if domain is None else None

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the norms take."""
        return 5e-3 + 8e-7 * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the constant of each block of neurons."""
        reach = varying_reach(as_neuron_blocks(network), domain)
        value = above_underflow(network, reach[-1])
        return Lipschitz.upper(
            network, value, norm, domain, varying_reach=torch.tensor(reach, dtype=torch.float64)
        )
