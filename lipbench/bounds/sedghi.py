"""Singular values of circular convolutions, on the frequencies of the image itself."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.operator_norms.layer_products import kernel_product_bound, refused_kernel
from lipbench.lipschitz.operator_norms.symbol import largest_symbol_norm
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Sedghi(Bound):
    """Multiply layer norms, those of circular convolutions from a transform of the kernel.

    They are exact where a circular convolution gives as many rows as it reads and its stride
    divides them, and upper bounds for other circular ones and without padding, which is a part of
    a circular one. Beside zeros, copies or reflections the singular values on the image's own
    frequencies bound nothing, so that these are refused.

    Source:
        Sedghi, Gupta, Long, The Singular Values of Convolutional Layers (ICLR 2019),
        https://arxiv.org/abs/1805.10408.
    """

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return which convolution has another padding, or None."""
        return refused_kernel(network, _stranger)

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
        """Return the product; its certificate is the constant of each step.

        Raises:
            Refused: If a convolution's padding is not circular.
        """
        return kernel_product_bound(network, domain, _norm)


def _norm(kernel: Convolution) -> float:
    if reason := _stranger(kernel):
        raise Refused(reason)
    return largest_symbol_norm(kernel)


def _stranger(kernel: Convolution) -> str | None:
    """Return why a convolution is no part of a circular one on its image, None if it is."""
    padded = any(max(pair) > 0 for pair in kernel.padding)
    if not padded or kernel.padding_mode == "circular":
        return None
    return (
        f"layer {kernel.name!r} has padding_mode {kernel.padding_mode!r}: on the image's own "
        "frequencies only circular padding has a bound."
    )
