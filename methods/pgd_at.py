"""PGD adversarial training (Madry)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.adversarial.worst_case import climb, error, placed, unit_offsets
from lipbench.method import Scalars, State, Strength
from lipbench.method_families.adversarial_training import AdversarialTraining
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, positive

if TYPE_CHECKING:
    from lipbench.data.splits import Batch


@dataclass(frozen=True, kw_only=True)
class PGDTraining(AdversarialTraining):
    """Minimise the loss at the worst inputs that projected ascent finds near the samples.

    The objective is the mean of max loss(f(x'), y) over ‖x' - x‖ ≤ epsilon with x' in the box of
    valid inputs. The maximum is approached from a point drawn from the ball, by `steps` steps
    along the steepest direction of the norm (the sign of the gradient, or the gradient divided by
    its length), each followed by the projection; the network is in evaluation mode meanwhile.
    What ascent finds is a lower bound of the maximum: the method guarantees nothing.

    Works with any loss. On small data an epsilon of 0.3 from the first step is too much: on the
    digits (64-64 ReLU, 30 epochs) 64 % of the test samples were right, and 89 % with `ramp` 20.

    Source:
        Madry, Makelov, Schmidt, Tsipras, Vladu, Towards Deep Learning Models Resistant to
        Adversarial Attacks (2018), eq. (2.1) and section 2.1; numbers are those for MNIST.
        `ramp` is not in the paper, nor is the l2 form of the step: it is that of the authors'
        later library, `robustness`.
    """

    strength: ClassVar[Strength] = Strength(field="epsilon", scale=0.02)

    epsilon: float = 0.3
    """Radius of the ball, in pixel units of `norm`; where the discrepancy principle starts."""
    steps: int = 40
    rel_step: float = 1 / 30
    """Length of a step in units of epsilon: 0.01 at epsilon 0.3."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("steps", self.steps, 1),
            positive("rel_step", self.rel_step),
        )

    @property
    def cost(self) -> float:
        """Return the passes of the ascent and that of the weights."""
        return 1.0 + 0.75 * self.steps

    def draw(self, batch: "Batch", rng: torch.Generator) -> dict[str, Tensor]:
        """Return where each sample starts, in units of epsilon."""
        return {"offsets": unit_offsets(batch.inputs, self.norm, rng)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss at the points that the ascent ended in."""
        threat = self.threat(batch, state, h)
        points = climb(
            net,
            error(batch),
            placed(batch, draw["offsets"], threat),
            batch.inputs,
            threat,
            steps=self.steps,
            rel_step=h["rel_step"],
        )
        outputs, buffers = net.train(points)
        return batch.loss(outputs), {**state, "buffers": buffers}
