"""TRADES: accuracy traded for the stability of predicted probabilities."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.adversarial.losses import divergence
from lipbench.adversarial.worst_case import climb, train_on_both
from lipbench.method import Scalars, State, Strength
from lipbench.method_families.adversarial_training import AdversarialTraining
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, positive

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialTraining):
    """Add beta times how far the predicted probabilities can be driven near each sample.

    The objective is the mean of loss(f(x), y) + beta·max KL(p(x) ‖ p(x')) over ‖x' - x‖ ≤ epsilon
    with x' in the box of valid inputs, p = softmax f. The maximum is approached from x plus a
    little Gaussian noise, at which the divergence has a slope, by steps along the steepest
    direction of the norm, each followed by the projection; the network is in evaluation mode
    meanwhile, and p(x) fixed. In the weights, gradients flow through p(x) and p(x'). What ascent
    finds is a lower bound of the maximum: the method guarantees nothing.

    Source:
        Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, Theoretically Principled Trade-off between
        Robustness and Accuracy (2019), eq. (5) with beta = 1/lambda, and Algorithm 1; direction
        of the divergence, evaluation mode and numbers (those for MNIST) are those of the
        authors' code. It takes l2 steps of 2/`steps` epsilon, and cuts by the box before the
        ball. `ramp` is ours.
    """

    strength: ClassVar[Strength] = Strength(field="beta", scale=0.5)

    beta: float = 1.0
    """Weight of the divergence, 1/lambda in the paper; where the discrepancy principle starts."""
    epsilon: float = 0.3
    """Radius of the ball, in pixel units of `norm`."""
    steps: int = 40
    rel_step: float = 1 / 30
    """Length of a step in units of epsilon: 0.01 at epsilon 0.3."""
    noise: float = 0.001
    """Standard deviation of the noise that the ascent starts from, in pixel units."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("beta", self.beta, 0),
            at_least("steps", self.steps, 1),
            positive("rel_step", self.rel_step),
            positive("noise", self.noise),
        )

    @property
    def cost(self) -> float:
        """Return the passes of the ascent and those of the weights."""
        return 2.0 + 0.75 * self.steps

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no probabilities, or None."""
        if data.task == "classification":
            return None
        return "it compares class probabilities, and a regression has none: take pgd_at"

    def draw(self, batch: "Batch", rng: torch.Generator) -> dict[str, Tensor]:
        """Return standard normal noise."""
        normal = torch.randn(batch.inputs.shape, generator=rng, dtype=batch.inputs.dtype)
        return {"normal": normal.to(batch.inputs.device)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss and beta times the mean divergence where the ascent ended."""
        threat = self.threat(batch, state, h)
        fixed = net.frozen(batch.inputs)
        points = climb(
            net,
            lambda outputs: divergence(fixed, outputs),
            threat.project(batch.inputs + h["noise"] * draw["normal"], batch.inputs),
            batch.inputs,
            threat,
            steps=self.steps,
            rel_step=h["rel_step"],
        )
        clean, worst, buffers = train_on_both(net, batch.inputs, points)
        value = batch.loss(clean) + h["beta"] * divergence(clean, worst).mean()
        return value, {**state, "buffers": buffers}
