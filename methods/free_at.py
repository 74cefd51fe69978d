"""Free adversarial training: each batch replayed, one gradient for weights and inputs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.adversarial.ascent import ascent_step, steepest
from lipbench.method import Scalars, State, Strength
from lipbench.method_families.adversarial_training import AdversarialTraining
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, positive
from lipbench.threat import Threat

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class FreeTraining(AdversarialTraining):
    """Step weights and perturbations by one backward pass, several times on each batch.

    Of loss(f(x + delta), y) every pass takes the gradients in the weights, which descend, and in
    delta, which climbs by delta ← Π(delta + rel_step·epsilon·sign ∇), Π the projection onto the
    ball; in the l2 norm the gradient is divided by its length. Delta outlives the batch: the next
    one starts from it. x + delta is cut by the box of valid inputs; the gradient at the point
    that is left moves delta. The gradients are those in training mode. The perturbation lags
    behind the weights and is no maximum: the method guarantees nothing.

    A step costs what one of standard training does, but each batch gets `replays` of them: the
    paper divides the number of epochs by it, which is for the user to do.

    Works with any loss.

    Source:
        Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein, Adversarial
        Training for Free! (2019), Algorithm 1, with its replays and epsilon for CIFAR-10. In the
        authors' code coordinates that the box cuts stop moving. The l2 form and `ramp` are ours.
    """

    strength: ClassVar[Strength] = Strength(field="epsilon", scale=0.02)

    epsilon: float = 8 / 255
    """Radius of the ball, in pixel units of `norm`; where the discrepancy principle starts.
    8/255 as in the paper for CIFAR-10; it has no MNIST, for which others take 0.3."""
    replays: int = 8
    """Steps on each batch, m in the paper, which has 8 for CIFAR-10."""
    rel_step: float = 1.0
    """Length of a step of delta in units of epsilon, 1 as in the paper."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("replays", self.replays, 1),
            positive("rel_step", self.rel_step),
        )

    @property
    def ascends(self) -> tuple[str, ...]:
        """Return the perturbations, which the step's own backward pass moves."""
        return ("delta",)

    @property
    def cost(self) -> float:
        """Return the steps on a batch."""
        return 1.2 * self.replays

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return no perturbation for each place of a batch, and the share of epsilon in force."""
        inputs = data.train.inputs
        delta = inputs.new_zeros(data.batch_size, *inputs.shape[1:])
        return {**super().start(net, data, rng), "delta": delta}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the perturbed batch."""
        # The last batch of an epoch has fewer samples; the rest of the perturbations waits.
        delta = state["delta"][: len(batch.inputs)]
        threat = self.threat(batch, state, h)
        held = threat.project(batch.inputs + delta.detach(), batch.inputs)
        # Plus 0, through which the gradient at the point reaches delta past the projection.
        outputs, buffers = net.train(held + (delta - delta.detach()))
        return batch.loss(outputs), {**state, "buffers": buffers}

    def ascend(self, state: State, gradients: dict[str, Tensor], h: Scalars) -> State:
        """Return the state after the step of the perturbations."""
        delta, epsilon = state["delta"], self.due(state, h)
        ball = Threat(norm=self.norm, epsilon=epsilon.expand(len(delta)), domain=None)
        direction, length = steepest(gradients["delta"], self.norm), h["rel_step"] * ball.epsilon
        moved = ascent_step(delta, torch.zeros_like(delta), direction, ball, length)
        return {**state, "delta": moved}
