"""RecurJac: recursive bounds of all derivatives of a network."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.magnitudes import above_underflow
from lipbench.lipschitz.relaxations.neuron_blocks import as_neuron_blocks, widths
from lipbench.lipschitz.relaxations.recursive_derivatives import products, recursive_norm, work
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.ranges import at_least, require
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class RecurJac(Bound):
    """Bound each derivative by a recursion of its own, and take the norm of the largest.

    Signs of derivatives that are known behind a layer let its worst slopes be multiplied out with
    the next. It is never above FastLip, whose intervals forget such products, and well below it on
    boxes that are small. Where few signs are known, as on large boxes, it is seldom better.

    Source:
        Zhang, Zhang, Hsieh, RecurJac: An Efficient Recursive Algorithm for Bounding Jacobian
        Matrix of Neural Networks and Its Applications (AAAI 2019),
        https://arxiv.org/abs/1810.11783. Where neurons are is found by interval arithmetic.
    """

    most_products: int = 5 * 10**11
    """Networks that take more products of numbers are refused: about a minute of one core."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        require(at_least("most_products", self.most_products, 1))

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why the recursion takes too long, or None."""
        sizes = widths(network)
        least = min(products(sizes), products(sizes[::-1]))
        if least <= self.most_products:
            return None
        return (
            f"its recursion takes {least} products, more than the {self.most_products} of "
            "most_products."
        )

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the products take."""
        return 1e-2 + 1.5e-10 * work(widths(network))

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the largest absolute value of each derivative."""
        value, entries = recursive_norm(as_neuron_blocks(network), norm, domain)
        value = above_underflow(network, value)
        return Lipschitz.upper(network, value, norm, domain, recursive_entries=entries)
