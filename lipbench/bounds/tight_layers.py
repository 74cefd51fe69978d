"""Tight layer norms: a product of norms that are exact up to a tolerance."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.cholesky import band_entries, band_products
from lipbench.lipschitz.operator_norms.layer_products import convolution, refused_kernel
from lipbench.lipschitz.operator_norms.tight import tight_bound
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution
from lipbench.norm import Norm
from lipbench.ranges import at_least, require
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class TightLayers(Bound):
    """Multiply layer norms, those of convolutions for the image and its padding as they are.

    A Lanczos iteration finds each from below, and a Cholesky factorisation proves that a number
    slightly above is one from above. Where no proof is found, the norm on a padded grid stands.

    Source:
        Rump, Verification of Positive Definiteness (BIT Numerical Mathematics 46, 2006),
        https://doi.org/10.1007/s10543-006-0056-1, for the proof; its use here is this project's.
    """

    tolerance: float = 1e-4
    """Share of a convolution's norm within which the norm on a padded grid will do."""
    iterations: int = 200
    """Most products with a layer's matrix and its transpose."""
    most_entries: int = 2**25
    """Largest band of a layer's Gram matrix that is factorised."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def __post_init__(self) -> None:
        require(
            at_least("tolerance", self.tolerance, 0),
            at_least("iterations", self.iterations, 1),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return which convolution is too large, or None."""
        return refused_kernel(network, self._too_large)

    def _too_large(self, kernel: Convolution) -> str | None:
        entries = band_entries(kernel)
        if entries <= self.most_entries:
            return None
        return (
            f"layer {kernel.name!r}: its Gram matrix has a band of {entries} entries, more than "
            f"{self.most_entries}: raise most_entries."
        )

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the factorisations take."""
        seconds = 5e-3
        for layer in network.layers:
            seconds += 1e-7 * layer.weight.numel()
            kernel = convolution(layer)
            if kernel is not None:
                seconds += 0.1 + 1e-10 * band_products(kernel)
        return seconds

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the product; its certificate is what is claimed of each step."""
        return tight_bound(network, domain, tolerance=self.tolerance, iterations=self.iterations)
