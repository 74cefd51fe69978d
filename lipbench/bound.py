"""What a Lipschitz bound must provide."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from lipbench.norm import Norm
from lipbench.refused import Refused as Refused
from lipbench.threat import Box

if TYPE_CHECKING:
    from lipbench.networks.network import Network

Side = Literal["lower", "upper", "exact", "estimate"]
UNVERIFIED = "unverified"
"""Flag of a value that nothing proves: it is listed, and enters no bracket and no verdict."""
EXACT_WITHIN = 1e-9
"""Share of an exact value by which it may exceed the truth; it is never below."""


@dataclass(frozen=True, kw_only=True)
class Lipschitz:
    """One value for the Lipschitz constant of a network, and the side it is true from."""

    value: float
    side: Side
    norm: Norm
    """Norm of both inputs and outputs."""
    domain: Box | None
    """The box that the value speaks of; None is all of space."""
    proof: Mapping[str, Tensor] = field(default_factory=dict)
    """A witness (lower) or certificate (upper) in float64 that the core can re-check."""
    flags: tuple[str, ...] = ()
    """Remarks for the row, such as `unverified`, of a value that has no proof."""

    @classmethod
    def upper(
        cls,
        network: "Network",
        value: float,
        norm: Norm,
        domain: Box | None,
        /,
        **proof: Tensor,
    ) -> "Lipschitz":
        """Return an upper bound, with the flags of the network that it rests on.

        Args:
            network: The network that was bounded.
            value: No pair of inputs in the domain expands by more.
            norm: Norm of inputs and outputs.
            domain: The box that the pairs lie in, None for all of space.
            proof: The certificate, by which the core computes the value anew.
        """
        flags = network.flags
        return cls(value=value, side="upper", norm=norm, domain=domain, proof=proof, flags=flags)

    @property
    def least(self) -> float:
        """Return what the value proves from below, 0 if nothing."""
        if self.side == "exact":
            return self.value * (1 - EXACT_WITHIN)
        return self.value if self.side == "lower" else 0.0


@dataclass(frozen=True, kw_only=True)
class Bound(ABC):
    """An algorithm that bounds sup ‖f(x) - f(y)‖ / ‖x - y‖ over pairs in a domain.

    The fields are the algorithm's own settings: keys of `benchmarks.toml`. Budgets are counts
    (samples, steps), never seconds. A subclass is final.
    """

    side: ClassVar[Side]
    norms: ClassVar[frozenset[Norm]]

    def refuses(self, network: "Network", norm: Norm, domain: Box | None) -> str | None:
        """Return why the bound cannot be computed here, or None when it can."""
        return None

    @abstractmethod
    def cost(self, network: "Network", norm: Norm, domain: Box | None) -> float:
        """Return roughly how many seconds one core needs; it orders bounds, no more."""

    def within(
        self, network: "Network", norm: Norm, domain: Box | None, seconds: float
    ) -> "Bound | None":
        """Return the bound with budgets that fit into a time by its own estimate, or None.

        It counts: the same time gives the same budgets on every machine.
        """
        return self if self.cost(network, norm, domain) <= seconds else None

    @abstractmethod
    def compute(
        self,
        network: "Network",
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the bound, computed in float64, of the norm and the domain that are asked for.

        Its side is that of the class; one that is exact may also end with an upper bound. It counts
        if its proof, checked by the core, proves it.

        Args:
            network: The network as primitive steps, in float64.
            norm: Norm of inputs and outputs.
            domain: Box that the pairs lie in, None for all of space.
            known: Values proved so far, from which a search may start.
            inputs: Points of the data set in the domain, for bounds that search near data.

        Raises:
            Refused: If the network has a layer that the bound has no rule for.
        """
