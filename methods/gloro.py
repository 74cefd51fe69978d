"""GloRo nets: globally robust training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lipbench.method import Scalars, Strength
from lipbench.method_families import margins
from lipbench.method_families.margin_training import GlobalMarginTraining
from lipbench.ranges import Rule, finite_at_least

if TYPE_CHECKING:
    from lipbench.data.splits import Batch


@dataclass(frozen=True, kw_only=True)
class GloRo(GlobalMarginTraining):
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

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            finite_at_least("epsilon", self.epsilon, 0),
            finite_at_least("lambda", self.lambda_, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.8

    def radius(self, h: Scalars) -> Float[Tensor, ""]:
        """Return epsilon."""
        return h["epsilon"]

    def objective(
        self,
        outputs: Float[Tensor, "batch classes"],
        batch: "Batch",
        gaps: Float[Tensor, "classes classes"],
        radius: Float[Tensor, ""],
        h: Scalars,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]:
        """Return cross entropy with the odds of ⊥, and the rises against the predicted class."""
        predicted = outputs.argmax(dim=1)
        rises = radius * margins.of_rows(gaps, predicted)
        bottom = margins.bottom(outputs, predicted, rises)
        odds = F.softplus(bottom - outputs.logsumexp(dim=1))
        return batch.loss(outputs) + h["lambda_"] * odds.mean(), rises
