"""FGSM adversarial training: one step of the size of the ball."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from lipbench.adversarial.worst_case import LARGEST, climb, error, train_on_both
from lipbench.method import Scalars, State
from lipbench.method_families.adversarial_training import AdversarialTraining
from lipbench.networks.net import Net
from lipbench.norm import Norm
from lipbench.ranges import Rule, between

if TYPE_CHECKING:
    from lipbench.data.splits import Batch


@dataclass(frozen=True, kw_only=True)
class FGSMTraining(AdversarialTraining):
    """Mix the loss at the samples with that one steepest step of length epsilon away from them.

    The objective is clean·loss(x) + (1 - clean)·loss(x + epsilon·sign ∇loss(x)), in the l2 norm
    with the gradient divided by its length, and the moved point cut by the box of valid inputs.
    No gradient flows through the sign; it is taken in evaluation mode. Networks can learn to be
    flat at such points alone, and fall to attacks of more steps: the method guarantees nothing.

    Works with any loss. It has no strength to drive: beyond some epsilon the network recognises
    the moved samples by their pattern, and answers both kinds well.

    Source:
        Goodfellow, Shlens, Szegedy, Explaining and Harnessing Adversarial Examples (2015),
        section 6, with the epsilon of its MNIST experiments. The box is not in the paper, nor are
        the l2 form and `ramp`.
    """

    epsilon: float = 0.25
    """Length of the step, in pixel units of `norm`."""
    norm: Norm = LARGEST
    """Of the step, 2 or inf."""
    clean: float = 0.5
    """Weight of the loss at the samples themselves, alpha in the paper."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            between("clean", self.clean, 0, 1),
        )

    @property
    def cost(self) -> float:
        """Return the pass of the step and the two of the weights."""
        return 2.6

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mixture of both mean losses."""
        threat, x = self.threat(batch, state, h), batch.inputs
        moved = climb(net, error(batch), x, x, threat, steps=1, rel_step=1.0)
        clean, worst, buffers = train_on_both(net, x, moved)
        value = h["clean"] * batch.loss(clean) + (1 - h["clean"]) * batch.loss(worst)
        return value, {**state, "buffers": buffers}
