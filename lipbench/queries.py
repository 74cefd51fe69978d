"""Count how often an attack asks the model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lipbench.adversary import Classifier


class Counted(nn.Module):
    """A classifier that counts its forward passes, sample by sample.

    Attacks of this project say with `on_rows` which samples they ask about. A query of unknown
    origin is charged to all samples evenly.
    """

    def __init__(self, model: Classifier, samples: int) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.spent = torch.zeros(samples, dtype=torch.float64)
        self.rows = torch.arange(samples)

    @property
    def queries(self) -> Int[Tensor, " samples"]:
        """Return the forward passes spent on each sample, rounded up."""
        return self.spent.ceil().long()

    def forward(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """Return the logits, and count."""
        asked = len(inputs) / max(len(self.rows), 1)
        self.spent[self.rows] += asked
        return self.model(inputs)


def on_rows(model: Classifier, rows: Tensor) -> Classifier:
    """Return `model` for queries about the samples that `rows` selects, in that order.

    A model that does not count is returned as it is.
    """
    if not isinstance(model, Counted):
        return model
    part = Counted(model.model, 0)
    part.spent, part.rows = model.spent, model.rows[rows.cpu()]
    return part
