"""Input gradient regularisation (double backpropagation)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.sensitivity import squared_slopes
from lipbench.networks.net import Net
from lipbench.ranges import at_least, require


@dataclass(frozen=True, kw_only=True)
class InputGradient(Method):
    """Penalise the slope of the loss in the inputs: loss + lambda·mean ‖∇ₓ l(f(x), y)‖₂².

    To first order it bounds how much an attack raises the loss at the data. The slope of cross
    entropy also vanishes where the network is sure, however steep it is; the method guarantees
    nothing. The slope is that of the network in evaluation mode.

    Source:
        Drucker, LeCun, Improving Generalization Performance Using Double Backpropagation (1992),
        with ½ for lambda. Ross, Doshi-Velez, Improving the Adversarial Robustness and
        Interpretability of Deep Neural Networks by Regularizing their Input Gradients (2018),
        which has the sum over samples for the mean, and searches for lambda on a grid.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.5)

    lambda_: float = 0.1
    """Weight of the mean squared slope; where the discrepancy principle starts."""

    def __post_init__(self) -> None:
        require(at_least("lambda", self.lambda_, 0))

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.3

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        penalty = h["lambda_"] * squared_slopes(net, batch.inputs, batch.losses).mean()
        return batch.loss(outputs) + penalty, {**state, "buffers": buffers}
