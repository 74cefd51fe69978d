"""Gram iteration: layer norms from above, convolutions by their Fourier transforms."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.gram import gram_norm
from lipbench.lipschitz.operator_norms.layer_products import layer_product_bound
from lipbench.networks.network import Network
from lipbench.networks.steps import Linear
from lipbench.norm import Norm
from lipbench.ranges import at_least, require
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Gram(Bound):
    """Multiply layer norms that come from above, by squaring Gram matrices.

    A convolution is taken frequency by frequency, on a grid that is large enough for its padding
    (the paper's is that of circular padding).

    Source:
        Delattre, Barthélemy, Araujo, Allauzen, Efficient Bound of Lipschitz Constant for
        Convolutional Layers by Gram Iteration (ICML 2023), https://arxiv.org/abs/2305.16173.
    """

    iterations: int = 6

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        require(at_least("iterations", self.iterations, 0))

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the products take."""
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
        return layer_product_bound(network, domain, self._norm)

    def _norm(self, step: Linear) -> float:
        return float(gram_norm(step, self.iterations))
