"""Attack problems: samples, the classifier that they are attacked on, and the threat model."""

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.queries import Lot, on_rows
from lipbench.adversary import Classifier
from lipbench.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Samples that are to be misclassified, each within its own epsilon."""

    model: Classifier
    """Asked about all the samples, in their order."""
    inputs: Float[Tensor, "batch *shape"]
    labels: Int[Tensor, " batch"]
    threat: Threat
    lot: Lot | None = None
    """Whose the samples are, None where that is the model's to know or makes no difference."""

    def __len__(self) -> int:
        return len(self.inputs)

    def only(self, rows: Int[Tensor, " some"]) -> "Problem":
        """Return the problem of the samples that `rows` selects, in that order."""
        return Problem(
            model=on_rows(self.model, rows),
            inputs=self.inputs[rows],
            labels=self.labels[rows],
            threat=self.threat.only(rows),
            lot=None if self.lot is None else self.lot.only(rows),
        )

    def within(self, radii: Float[Tensor, " batch"]) -> "Problem":
        """Return the problem with another epsilon for each sample."""
        return replace(self, threat=replace(self.threat, epsilon=radii.to(self.inputs.device)))
