"""LMT: Lipschitz-margin training."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lipbench.method import Scalars, State, Strength, Summary
from lipbench.method_families import differentiable_constant as followed
from lipbench.method_families import margins
from lipbench.method_families.margin_training import MarginTraining
from lipbench.networks.net import Net

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class LMT(MarginTraining):
    """Take cross entropy where all wrong logits have risen as far as a move of length c allows.

    With `form` "rows" the logit j ≠ y rises by c·K·‖w_j - w_y‖: w are the rows of the last layer
    and K bounds the l2 constant of the network before it, as the product of its layers' norms and
    the slopes of its activations. With "network" all of them rise by √2·c·K·‖W‖, which is never
    less. A sample whose own logit stays the largest is classified rightly within c. At c = 0
    training is standard.

    K follows the weights by power iteration, lies a little below the true product while they move,
    and guarantees nothing in advance: certified accuracy is measured with bounds of the core. With
    batch normalisation K is that of the running statistics, and z that of the batch's.

    Source:
        Tsuzuku, Sato, Sugiyama, Lipschitz-Margin Training: Scalable Certification of Perturbation
        Invariance for Deep Neural Networks (NeurIPS 2018), https://arxiv.org/abs/1802.04034,
        Proposition 1 for "network", section 3.3 for "rows". `limited` is what the authors' code
        does to its rises; it does not differentiate the factor, and neither does this.
    """

    strength: ClassVar[Strength] = Strength(field="c", scale=0.1)

    c: float = 1.0
    """Radius in pixel units, l2 norm, that every sample shall keep: 1 as in the paper for MNIST,
    which has 0.01 for SVHN. Networks of the digits, whose images are smaller, collapse at 1."""
    form: Literal["rows", "network"] = "rows"
    """What bounds the gap of two logits: the difference of their rows, or √2 times the norm of
    the whole last layer."""
    limited: bool = False
    """Scale the rises of a sample down so far that no wrong logit exceeds the own one, and to 0 if
    it is misclassified (LMT++). So the digits can be trained at c = 1, with a large constant."""
    ramp: float = 0.0
    """Share of the epochs over which c grows to its value: 0 as in the paper for MNIST, which has 5
    of 160 epochs for SVHN."""
    first: float = 0.001
    """Share of c in the first epoch, if it grows."""
    iterations: int = 1
    """Steps of power iteration per training step; they converge after each epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.c < math.inf:
            raise ValueError(f"c must be at least 0 and finite, got {self.c}.")

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.4

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or no constant to hold them against, or None."""
        reason = super().refuses(model, data)
        return reason or followed.why_not(model, data.dataset.input_shape)

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return converged power vectors, the share of c that is due, and empty counts."""
        return {**followed.start(net.steps, rng), **self.due(net.layers[-1].weight)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the cross entropy of the logits that have risen, and the vectors moved on."""
        outputs, buffers = net.train(batch.inputs)
        network = replace(net, buffers=buffers).steps
        by_rows = self.form == "rows"
        gaps, vectors = followed.gaps(network, state, self.iterations, by_rows=by_rows)
        rises = h["c"] * state["share"] * margins.of_rows(gaps, batch.targets)
        certified = margins.safe(outputs.detach(), batch.targets, rises.detach())
        if self.limited:
            rises = _limit(outputs.detach(), batch.targets, rises.detach()) * rises
        counts = margins.counted(state, certified)
        return batch.loss(outputs + rises), {**state, **vectors, **counts, "buffers": buffers}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with converged vectors, and the share of c in the next epoch."""
        return super().end_epoch(net, summary, state, h) | followed.converged(net.steps, state)


def _limit(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    rises: Float[Tensor, "batch classes"],
) -> Float[Tensor, "batch 1"]:
    """Return the share of its rises at which no wrong logit of a sample exceeds the own one."""
    leads = logits.take_along_dim(labels.unsqueeze(1), dim=1) - logits
    # The own class has neither lead nor rise, and any other that cannot rise is no limit.
    room = torch.where(leads >= rises, 1.0, leads.clamp_min(0) / torch.where(rises > 0, rises, 1.0))
    return room.amin(dim=1, keepdim=True)
