"""GloRo nets: globally robust training."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.method import Scalars, State, Strength, Summary
from lipbench.method_families import differentiable_constant as followed
from lipbench.method_families import margins
from lipbench.method_families.margin_training import MarginTraining
from lipbench.networks.net import Net

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class GloRo(MarginTraining):
    """Punish the odds of a class ⊥ that stands for all others within epsilon of a sample.

    With j the predicted class, the logit of ⊥ is the largest z_i + epsilon·K·‖w_i - w_j‖ of all
    i ≠ j: w are the rows of the last layer and K bounds the l2 constant of the network before it,
    as the product of its layers' norms and the slopes of its activations. Where ⊥ does not win, no
    x' with ‖x' - x‖ ≤ epsilon is classified otherwise. The objective is cross entropy plus lambda
    times KL(softmax(z) beside 0 ‖ softmax(z beside z_⊥)).

    The sum of exponentials cancels in that divergence: it is log(1 + exp(z_⊥ - logsumexp(z))), by
    which cross entropy over the classes and ⊥ exceeds that over the classes. So lambda = 1 is the
    paper's first loss, and other values are its TRADES form. At epsilon = 0 the class ⊥ still has
    the second largest logit; with lambda = 0 training is standard.

    K follows the weights by power iteration, lies a little below the true product while they move,
    and guarantees nothing in advance: certified accuracy is measured with bounds of the core. With
    batch normalisation K is that of the running statistics, and z that of the batch's.

    Source:
        Leino, Wang, Fredrikson, Globally-Robust Neural Networks (ICML 2021),
        https://arxiv.org/abs/2102.08452, section 3; the TRADES form and the schedule as in the
        authors' code, where epsilon grows like a logarithm and not in a straight line.
    """

    strength: ClassVar[Strength] = Strength(field="epsilon", scale=0.1)

    epsilon: float = 0.3
    """Radius in pixel units, l2 norm, at which predictions shall be certified."""
    lambda_: float = 1.0
    """Weight of ⊥: 1 is plain cross entropy over the classes and ⊥; the authors' larger networks
    have 1.5 and more."""
    iterations: int = 1
    """Steps of power iteration per training step; they converge after each epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("epsilon", "lambda_"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                name = field.rstrip("_")
                raise ValueError(f"{name} must be at least 0 and finite, got {value}.")

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.8

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or no constant to hold them against, or None."""
        reason = super().refuses(model, data)
        return reason or followed.why_not(model, data.dataset.input_shape)

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return converged power vectors, the share of epsilon that is due, and empty counts."""
        return {**followed.start(net.steps, rng), **self.due(net.layers[-1].weight)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective, and the state with the vectors moved on."""
        outputs, buffers = net.train(batch.inputs)
        network = replace(net, buffers=buffers).steps
        gaps, vectors = followed.gaps(network, state, self.iterations)
        predicted = outputs.argmax(dim=1)
        rises = h["epsilon"] * state["share"] * margins.of_rows(gaps, predicted)
        bottom = margins.bottom(outputs, predicted, rises)
        odds = F.softplus(bottom - outputs.logsumexp(dim=1))
        value = batch.loss(outputs) + h["lambda_"] * odds.mean()
        # A sample that is wrong is not safe, whatever rises.
        certified = margins.safe(outputs.detach(), batch.targets, rises.detach())
        counts = margins.counted(state, certified)
        return value, {**state, **vectors, **counts, "buffers": buffers}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with converged vectors, and the share of epsilon in the next epoch."""
        return super().end_epoch(net, summary, state, h) | followed.converged(net.steps, state)
