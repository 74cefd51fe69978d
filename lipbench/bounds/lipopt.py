"""LiPopt: the Lipschitz constant as the maximum of a polynomial, by linear programs."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.relaxations.polynomial_bound import lipopt_bound, planned_terms
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.ranges import at_least, optional, require
from lipbench.refused import Refused
from lipbench.threat import Box

_SECONDS_PER_TERM = 1.5e-5


@dataclass(frozen=True, kw_only=True)
class LiPopt(Bound):
    """Bound the sums of derivatives by Krivine's certificates, for small networks.

    It knows of each activation its slopes alone, and at the highest degree it is the best bound of
    that kind in the norms 1 and infinity. In l2 signs of derivatives cancel only within sums, so
    that LipSDP is mostly better. The linear programs only propose, and the core certifies.

    Source:
        Latorre, Rolland, Cevher, Lipschitz constant estimation of Neural Networks via sparse
        polynomial optimization (ICLR 2020), https://arxiv.org/abs/2004.08688, LiPopt-k. The paper
        has it for one output in the norm infinity; the norms 1 and 2 are this project's.
    """

    degree: int | None = None
    """Factors of each product, at least one more than there are levels of neurons. None begins with
    so many, and takes more while a better bound is possible and there is room."""
    most_terms: int = 1_000_000
    """Terms of the products of all linear programs together; networks that need more are
    refused."""

    side: ClassVar[Side] = "upper"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def __post_init__(self) -> None:
        require(
            optional(at_least, "degree", self.degree, 1),
            at_least("most_terms", self.most_terms, 1),
        )

    def refuses(self, network: Network, norm: Norm, domain: Box | None) -> str | None:
        """Return why the network has too many products or no rule, or None."""
        try:
            planned_terms(network, norm, domain, self.degree, self.most_terms)
        except Refused as error:
            return str(error)
        return None

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the programs take if no bound is tight before."""
        try:
            terms = planned_terms(network, norm, domain, self.degree, self.most_terms)
        except Refused:
            terms = self.most_terms
        return 2e-2 + _SECONDS_PER_TERM * terms

    def within(
        self, network: Network, norm: Norm, domain: Box | None, seconds: float
    ) -> "LiPopt | None":
        """Return the bound with fewer terms, None if these are too few for any."""
        terms = int((seconds - 2e-2) / _SECONDS_PER_TERM) if seconds < 1e6 else self.most_terms
        if terms < 1:
            return None
        fitting = replace(self, most_terms=min(self.most_terms, terms))
        return None if fitting.refuses(network, norm, domain) else fitting

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound; its certificate is the products and their weights."""
        return lipopt_bound(network, norm, domain, self.degree, self.most_terms)
