"""Bisection of the inputs: derivative bounds on parts of a domain, for networks of few inputs."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.bisection import bisection_bound, products
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.ranges import at_least, require
from lipbench.refused import too_many
from lipbench.threat import Box

_SECONDS_PER_PRODUCT = 2e-9
_SECONDS_PER_PART = 2e-4


@dataclass(frozen=True, kw_only=True)
class Bisection(Bound):
    """Halve a domain where derivatives are largest, and bound them on each part by intervals.

    The more parts, the closer: of one input nothing is left open but `tolerance`, on a box or on
    all of space. Where a few neurons bend, each of their sides is a case of its own; where many do,
    both slopes count, and for each output apart.

    Source:
        Wang, Pei, Whitehouse, Yang, Jana, Formal Security Analysis of Neural Networks using
        Symbolic Intervals (USENIX Security 2018), https://arxiv.org/abs/1804.10829, for bisecting
        inputs by intervals of gradients, there to verify outputs. Intervals of derivatives as in
        FastLip, around what neurons read at the centre of a part.
    """

    parts: int = 4000
    """Most parts that are bounded."""
    tolerance: float = 1e-4
    """How far the bound may stay above the largest derivative at a centre, as a share of it."""
    most_inputs: int = 4
    """Most inputs: the parts that are needed grow with their power."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        require(
            at_least("parts", self.parts, 1),
            at_least("tolerance", self.tolerance, 0),
            at_least("most_inputs", self.most_inputs, 1),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why there are too many inputs, or None."""
        if domain is None and network.input_size > 1:
            return "all of space has halves for one input only; give a domain."
        return too_many(network.input_size, "inputs", self.most_inputs)

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that all parts take."""
        return self.parts * _seconds(network)

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "Bisection | None":
        """Return the bound with fewer parts, None if there is no time for the first ones."""
        fitting = int(seconds / _seconds(network))
        return replace(self, parts=min(self.parts, fitting)) if fitting >= 1 else None

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the parts that the domain was halved into."""
        return bisection_bound(network, norm, domain, self.parts, self.tolerance)


def _seconds(network: Network) -> float:
    return _SECONDS_PER_PART + _SECONDS_PER_PRODUCT * products(network)
