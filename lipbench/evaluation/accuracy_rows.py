"""Rows of loss and accuracy on clean samples, and of what is known of a checkpoint besides."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from lipbench.data.splits import Batch, Split
from lipbench.evaluation.claims import claim_row
from lipbench.evaluation.input_scale import input_scale
from lipbench.evaluation.subject import Measured, Subject
from lipbench.planning.cell import Evaluation
from lipbench.storage.rows import Row


def accuracy_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Return loss and accuracy on training and test samples, facts of the training, and the claim.

    A data set with a grid has the curve of the network on it among the samples.
    """
    measured = Measured()
    for name, split in (("train", subject.data.train), ("test", subject.test)):
        _add_split(subject, name, split, blank, measured)
    if subject.is_classifier:
        _add_largest_class(subject, blank, measured)
    for metric, value in subject.facts.items():
        measured.add(replace(blank, metric=metric, value=value))
    if subject.claim is not None:
        measured.add(claim_row(subject.claim, blank))
    scale = input_scale(subject.network)
    if scale is not None:
        measured.add(replace(blank, metric="input_scale", side="exact", value=scale))
    _add_curve(subject, measured)
    return measured


def _add_split(subject: Subject, name: str, split: Split, blank: Row, measured: Measured) -> None:
    """Add loss and accuracy on one split of the data; a regression has its loss as mse, too."""
    row = replace(blank, split=name, n=len(split), side="exact", domain="")
    outputs = _outputs(subject.module, split.inputs)
    batch = Batch(outputs, split.targets, subject.data.task)
    loss = float(batch.losses(outputs).double().mean())
    measured.add(replace(row, metric="loss", value=loss))
    if subject.is_classifier:
        correct = batch.correct(outputs)
        value = float(correct.double().mean())
        measured.add(replace(row, metric=f"{name}_accuracy", value=value), correct)
    else:
        measured.add(replace(row, metric="mse", value=loss))


def _add_largest_class(subject: Subject, blank: Row, measured: Measured) -> None:
    """Add the share of the class that is predicted most often."""
    predictions = _outputs(subject.module, subject.test.inputs).argmax(dim=1)
    share = float(predictions.bincount().max()) / len(predictions)
    row = replace(blank, split="test", n=len(predictions), metric="largest_class", value=share)
    measured.add(row)


def _add_curve(subject: Subject, measured: Measured) -> None:
    """Add inputs and outputs on the grid of the data set, if it has one."""
    grid = subject.data.dataset.grid()
    if grid is not None:
        points = torch.as_tensor(grid).to(subject.data.train.inputs)
        measured.samples[f"{subject.checkpoint}/curve/x"] = points.cpu()
        measured.samples[f"{subject.checkpoint}/curve/y"] = _outputs(subject.module, points).cpu()


def _outputs(module: nn.Module, inputs: Tensor, chunk: int = 8192) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(batch) for batch in torch.split(inputs, chunk)])
