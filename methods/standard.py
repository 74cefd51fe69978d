"""Standard training."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State
from lipbench.networks.net import Net


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Minimise the mean loss and nothing else: the baseline of every table.

    Source:
        Empirical risk minimisation, as in Bungert et al., CLIP: Cheap Lipschitz Training of
        Neural Networks (2021), eq. (2) with lambda = 0.
    """

    stackable: ClassVar[bool] = True

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch."""
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}
