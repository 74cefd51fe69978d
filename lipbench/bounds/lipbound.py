"""LipBound: convolution norms from samples of a trigonometric polynomial (Toeplitz)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.layer_products import kernel_product_bound
from lipbench.lipschitz.operator_norms.toeplitz import sampled_norm, too_many_taps
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution
from lipbench.norm import Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class LipBound(Bound):
    """Multiply layer norms; that of a convolution from the Frobenius norm of its symbol.

    The symbol is sampled, and what may lie between the samples is a factor. Strides are not used.
    Dense layers have their exact norm.

    Source:
        Araujo, Negrevergne, Chevaleyre, Atif, On Lipschitz Regularization of Convolutional Layers
        using Toeplitz Matrix Theory (AAAI 2021), https://arxiv.org/abs/2006.08391; here with the
        maximum outside of the sum over all channels, which is smaller.
    """

    samples: int = 64
    """Per period and axis; more than the taps of any kernel."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return which kernel has too many taps for the samples, or None."""
        reasons = [too_many_taps(layer, self.samples) for layer in network.layers]
        return next((f"{reason}." for reason in reasons if reason), None)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the transforms take."""
        return 2e-3 + 1e-7 * network.weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the product; its certificate is the constant of each step."""
        return kernel_product_bound(network, domain, self._norm)

    def _norm(self, kernel: Convolution) -> float:
        return float(sampled_norm(kernel, self.samples))
