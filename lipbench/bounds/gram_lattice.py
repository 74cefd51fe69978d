"""Gram iteration of kernels: convolution norms without a Fourier transform."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.gram import gram_norms, grown, kernel_norm
from lipbench.lipschitz.operator_norms.layer_products import (
    convolution,
    kernel_product_bound,
    refused_kernel,
)
from lipbench.lipschitz.operator_norms.symbol import repetition
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution
from lipbench.norm import Norm
from lipbench.ranges import at_least, require
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
    most_entries: int = 2**26
    """Largest kernel after the last iteration."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        require(at_least("iterations", self.iterations, 1))

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return which kernel grows too large, or None."""
        return refused_kernel(network, self._too_large)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the products take."""
        seconds = 2e-3
        for layer in network.layers:
            kernel = convolution(layer)
            seconds += 1e-7 * layer.weight.numel()
            if kernel is not None:
                products = kernel.groups * self._entries(kernel) * min(kernel.weight.shape[:2])
                seconds += 4e-10 * (self.iterations + 1) * products
        return seconds

    def _too_large(self, kernel: Convolution) -> str | None:
        entries = self._entries(kernel)
        if entries <= self.most_entries:
            return None
        return (
            f"layer {kernel.name!r}: {self.iterations} iterations give a kernel of {entries} "
            f"entries, more than {self.most_entries}: lower iterations or raise most_entries."
        )

    def _entries(self, kernel: Convolution) -> int:
        width = min(kernel.weight.shape[0] // kernel.groups, kernel.weight.shape[1])
        return width**2 * math.prod(grown(kernel.weight.shape[2:], self.iterations))

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the product; its certificate is the constant of each step."""
        return kernel_product_bound(network, domain, self._kernel_norm, self._matrix_norm)

    def _matrix_norm(self, matrix: Tensor) -> float:
        return float(gram_norms(matrix.unsqueeze(0), self.iterations)[0])

    def _kernel_norm(self, kernel: Convolution) -> float:
        groups = kernel.weight.chunk(kernel.groups)
        return repetition(kernel) * max(kernel_norm(group, self.iterations) for group in groups)
