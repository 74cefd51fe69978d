"""Convolution norms by Gram iteration of the kernels themselves."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.gram import gram_norms, kernel_norm
from lipbench.layerwise import convolution, layerwise
from lipbench.network import Network
from lipbench.norm import Norm
from lipbench.steps import Linear
from lipbench.symbol import repetition
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class GramLattice(Bound):
    """Multiply layer norms that hold for images of any size, of kernels times themselves.

    Strides are not used: the bound is that of stride 1.

    Source:
        Delattre, Barthélemy, Allauzen, Spectral Norm of Convolutional Layers with Circular and
        Zero Paddings (2024), https://arxiv.org/abs/2402.00240.
    """

    iterations: int = 4
    """Each doubles the taps along an axis."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}.")

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the correlations take."""
        size = 0
        for layer in network.layers:
            width = min(layer.weight.shape[:2])
            taps = layer.weight[0, 0].numel() * 4**self.iterations if layer.weight.ndim > 2 else 1
            size += width**2 * taps * layer.weight.numel()
        return 2e-3 + 1e-10 * size

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the product; its certificate is the constant of each step."""
        return layerwise(network, domain, self._norm)

    def _norm(self, step: Linear) -> float:
        kernel = convolution(step)
        if kernel is None:
            return float(gram_norms(step.weight.unsqueeze(0), self.iterations)[0])
        parts = kernel.weight.chunk(kernel.groups)
        return repetition(kernel) * max(kernel_norm(part, self.iterations) for part in parts)
