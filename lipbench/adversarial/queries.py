"""Query counting: what an attack asks a model, sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lipbench.adversarial.draws import Draws, Kind
from lipbench.adversary import Classifier


@dataclass(frozen=True, kw_only=True)
class Lot:
    """The origin of each sample of a batch: its network, and its index among the samples."""

    owner: Int[Tensor, " samples"]
    index: Int[Tensor, " samples"]
    draws: Sequence[Draws]
    """The random numbers of each network."""

    def only(self, rows: Tensor) -> "Lot":
        """Return the lot of the samples that `rows`, on any device, selects."""
        rows = rows.cpu()
        return Lot(owner=self.owner[rows], index=self.index[rows], draws=self.draws)


class Counted(nn.Module):
    """A classifier that counts its forward passes, sample by sample.

    Attacks of this project say with `on_rows` which samples they ask about. A query of unknown
    origin is charged to all samples evenly.
    """

    def __init__(self, model: Classifier, samples: int, lot: Lot | None = None) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.spent = torch.zeros(samples, dtype=torch.float64)
        self.rows = torch.arange(samples)
        self.charged = self.rows
        self.lot = lot

    @property
    def queries(self) -> Int[Tensor, " samples"]:
        """Return the forward passes spent on each sample, rounded up."""
        return self.spent.ceil().long()

    def forward(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """Return the logits, and count."""
        asked = len(inputs) / max(len(self.rows), 1)
        self.spent[self.charged] += asked
        return self.model(inputs)


class OfSamples:
    """Per-sample random numbers for the samples that a model is asked about."""

    def __init__(self, lot: Lot, number: int) -> None:
        self.lot, self.number = lot, number

    def draw(self, kind: Kind, shape: tuple[int, ...]) -> Float[Tensor, "samples *shape"]:
        """Return one tensor of this shape for each sample, on the CPU."""
        owner, index = self.lot.owner.cpu(), self.lot.index.cpu()
        if len(self.lot.draws) == 1:
            return self.lot.draws[0].take(kind, self.number, shape, index)
        drawn = torch.empty(len(index), *shape)
        for number in owner.unique().tolist():
            rows = owner == number
            drawn[rows] = self.lot.draws[number].take(kind, self.number, shape, index[rows])
        return drawn


def on_rows(model: Classifier, rows: Tensor) -> Classifier:
    """Return `model` for queries about the samples that `rows` selects, in that order.

    A model to which all samples are alike is returned as it is.
    """
    if isinstance(model, Counted):
        counted = Counted(on_rows(model.model, rows), 0)
        counted.spent, counted.rows = model.spent, model.rows[rows.cpu()]
        counted.charged = counted.rows
        counted.lot = None if model.lot is None else model.lot.only(rows)
        return counted
    select = getattr(model, "on_rows", None)
    return model if select is None else select(rows)


def charged_to(model: Classifier, followed: Bool[Tensor, " samples"]) -> Classifier:
    """Return `model` for queries about all its samples, of which only some are to be counted.

    A sample that is broken may stay in the batch without being of interest any more.
    """
    if not isinstance(model, Counted):
        return model
    counted = Counted(model.model, 0, model.lot)
    counted.spent, counted.rows = model.spent, model.rows
    counted.charged = model.rows[followed.cpu()]
    return counted


def numbers(model: Classifier, rng: torch.Generator, number: int) -> torch.Generator | OfSamples:
    """Return the source of the draw with this number for the samples `model` is asked about.

    That is `rng` if the model does not know its samples.
    """
    if isinstance(model, Counted) and model.lot is not None:
        return OfSamples(model.lot, number)
    return rng
