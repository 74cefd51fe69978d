"""Fast-Lip on the ball of each sample: local Lipschitz constants from interval derivatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from lipbench.certificate import Certificate
from lipbench.lipschitz.certified_radius import gaps
from lipbench.lipschitz.relaxations.balls import local_radius
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm


@dataclass(frozen=True, kw_only=True)
class LocalFastLip(Certificate):
    """Bound the constant of each margin on each sample's own ball, and divide the margin by it.

    A ball as large as epsilon proves min(epsilon, margin / constant). Derivatives are intervals,
    and what neurons can read in the ball follows from the derivatives before them. In l2 they are
    taken behind the first dense layer and measured by its Gram matrix, which is far tighter than
    the published form. Networks with too many derivatives, mostly convolutional, are refused.

    Source:
        Weng, Zhang, Chen, Song, Hsieh, Daniel, Boning, Dhillon, Towards Fast Computation of
        Certified Robustness for ReLU Networks (ICML 2018), https://arxiv.org/abs/1804.09699,
        section 3.4 and Algorithm 2. Activations other than ReLU and the Gram matrix are this
        project's.
    """

    norms: ClassVar[frozenset[Norm]] = NORMS

    def radius(
        self,
        network: Network,
        norm: Norm,
        inputs: Float[Tensor, "samples *shape"],
        labels: Int[Tensor, " samples"],
        epsilons: Sequence[float],
    ) -> Float[Tensor, " samples"]:
        """Return the largest distance that one of the balls proves."""
        margins = gaps(network, inputs, labels)
        return local_radius(network, norm, inputs, labels, margins, epsilons)
