"""Weight regularisation: a norm of the parameters as a penalty."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.penalty import parameter_penalty
from lipbench.networks.net import Net
from lipbench.ranges import at_least, require


@dataclass(frozen=True, kw_only=True)
class WeightRegularization(Method):
    """Add mu·‖θ‖ to the loss.

    Eq. (6) of the paper has a norm, not squared, of all parameters: the default. With `power` 2
    the penalty is mu·½‖θ‖², whose gradient is mu·θ: weight decay. It is a term of the loss and
    not of the optimiser, so that mu can move and Adam decays what the formula says.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), eq. (6) with lambda = 0 and mu > 0.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="mu", scale=0.02)

    mu: float = 0.0
    """Weight of the penalty; where the discrepancy principle starts."""
    power: Literal[1, 2] = 1
    """1 for the norm, 2 for half its square."""
    biases: bool = True
    """Whether biases count as parameters."""

    def __post_init__(self) -> None:
        require(at_least("mu", self.mu, 0))

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        penalty = parameter_penalty(net.params, power=self.power, biases=self.biases)
        return batch.loss(outputs) + h["mu"] * penalty, {**state, "buffers": buffers}
