"""Gram regularisation: spectral norms of layers by Gram iteration, as a penalty."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.gram import gram_norm
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.readable_layers import unreadable_reason
from lipbench.networks.net import Net
from lipbench.ranges import at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class GramRegularization(Method):
    """Penalise upper bounds of the layers' norms as far as they exceed 1.

    The objective is loss + r·Σ relu(s_l - threshold) over all layers with weights, s_l the bound of
    the l2 norm after N Gram iterations: after N times G ← G*G the 2^N-th root of the Frobenius norm
    is an upper bound of the norm of the first G, and it falls with N.
    A convolution is taken frequency by frequency; the grid is large enough for its padding, where
    the paper's is that of circular padding. The gradient goes through all iterations, and no
    vectors are carried from step to step.

    The authors' training code has T(s_l) with T(s) = s above 1 and 0 below. It jumps at 1, where
    relu(s - 1) is continuous; both have the same gradient on each side. The penalty pulls norms
    towards 1 and keeps none there: the method guarantees nothing. Three layers of norm 1 with
    sigmoids, whose slope is ¼, have a constant of 1/16: on the digits such a network collapsed with
    the defaults, and had 96 % training accuracy with a threshold of 4.

    Source:
        Delattre, Barthélemy, Araujo, Allauzen, Efficient Bound of Lipschitz Constant for
        Convolutional Layers by Gram Iteration (ICML 2023), https://arxiv.org/abs/2305.16173: the
        iteration, and its use as a regulariser with r = 0.1 and N = 6.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="r", scale=0.1)

    r: float = 0.1
    """Weight of the penalty; where the discrepancy principle starts."""
    iterations: int = 6
    """Gram iterations; 0 penalises Frobenius norms."""
    threshold: float = 1.0
    """Norm up to which a layer costs nothing."""

    def __post_init__(self) -> None:
        require(
            at_least("r", self.r, 0),
            at_least("threshold", self.threshold, 0),
            at_least("iterations", self.iterations, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 4.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be read, or None."""
        return unreadable_reason(model, data.dataset.input_shape)

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        bounds = torch.stack([gram_norm(layer, self.iterations) for layer in net.layers])
        penalty = (bounds - h["threshold"]).relu().sum()
        return batch.loss(outputs) + h["r"] * penalty, {**state, "buffers": buffers}
