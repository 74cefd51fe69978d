"""Fast-Lip: interval bounds of all derivatives of a network."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.entrywise import interval_norm
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class FastLip(Bound):
    """Bound each derivative between its ends, layer by layer, and take the norm of the largest.

    On a box, neurons have the slopes that they can have there; the bound loosens quickly with the
    size of the box and with depth. On all of space every slope is taken to be possible.

    Source:
        Weng, Zhang, Chen, Song, Hsieh, Boning, Dhillon, Daniel, Towards Fast Computation of
        Certified Robustness for ReLU Networks (ICML 2018), https://arxiv.org/abs/1804.09699.
        Where neurons are is found by interval arithmetic.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the products of intervals take."""
        inputs = network.input_size
        return 2e-3 + 1e-10 * inputs * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the largest absolute value of each derivative."""
        value, entries = interval_norm(as_neuron_blocks(network), norm, domain)
        value = above_underflow(network, value)
        return Lipschitz.upper(network, value, norm, domain, entries=entries)
