"""Lipschitz-margin training (LMT)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.method import Scalars, Strength
from lipbench.method_families import margins
from lipbench.method_families.margin_training import GlobalMarginTraining
from lipbench.ranges import Rule, finite_at_least

if TYPE_CHECKING:
    from lipbench.data.splits import Batch


@dataclass(frozen=True, kw_only=True)
class LMT(GlobalMarginTraining):
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

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            finite_at_least("c", self.c, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.4

    @property
    def by_rows(self) -> bool:
        """Return whether the rows of the last layer bound the gap of two logits."""
        return self.form == "rows"

    def radius(self, h: Scalars) -> Float[Tensor, ""]:
        """Return c."""
        return h["c"]

    def objective(
        self,
        outputs: Float[Tensor, "batch classes"],
        batch: "Batch",
        gaps: Float[Tensor, "classes classes"],
        radius: Float[Tensor, ""],
        h: Scalars,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]:
        """Return the cross entropy of the logits that have risen, and by how much they can."""
        rises = radius * margins.of_rows(gaps, batch.targets)
        taken = rises
        if self.limited:
            taken = _limit(outputs.detach(), batch.targets, rises.detach()) * rises
        return batch.loss(outputs + taken), rises


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
