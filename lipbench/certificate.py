"""What a certificate of robustness must provide."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from lipbench.norm import Norm

if TYPE_CHECKING:
    from lipbench.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class Certificate(ABC):
    """An algorithm that proves, sample by sample, how far an input may move and keep its class.

    Bounds certify too, by one constant for all samples; a certificate knows the sample. The fields
    are the algorithm's own settings: keys of `benchmarks.toml`. Budgets are counts, never seconds.
    A subclass is final.
    """

    norms: ClassVar[frozenset[Norm]]

    def refuses(self, network: "Network", norm: Norm) -> str | None:
        """Return why nothing can be certified here, or None when it can."""
        return None

    @abstractmethod
    def radius(
        self,
        network: "Network",
        norm: Norm,
        inputs: Float[Tensor, "samples *shape"],
        labels: Int[Tensor, " samples"],
        epsilons: Sequence[float],
    ) -> Float[Tensor, " samples"]:
        """Return a distance for each sample within which its class provably does not change.

        A sample counts as robust at an epsilon if its distance is larger. It is at most 0 where
        nothing is proved, as for every misclassified sample. Rounding is accounted for, in float64.

        Args:
            network: The network as primitive steps, in float64.
            norm: The norm of distances, in pixel units.
            inputs: Test samples, which are taken as exact.
            labels: Their classes.
            epsilons: Radii of interest; a certificate may look at no others.

        Raises:
            Refused: If the network has a layer that there is no rule for.
        """
