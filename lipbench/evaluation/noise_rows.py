"""Rows of the accuracy under Gaussian noise."""

from dataclasses import replace

import torch
from torch import Tensor

from lipbench.config.settings import NoiseEntry
from lipbench.evaluation.noise import noise_accuracy
from lipbench.evaluation.subject import Measured, Subject, refused
from lipbench.planning.cell import Evaluation
from lipbench.seeds import stream
from lipbench.storage.rows import Row


def noise_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Return the mean and the spread of the accuracies that draws of the noise leave."""
    entry = subject.cell.benchmark.evaluation.noise[evaluation.index]
    name = f"sigma={entry.sigma:g},{'clamped' if entry.clamp else 'unclamped'}"
    size = len(subject.test)
    row = replace(blank, split="test", n=size, side="estimate", estimator="gaussian")
    if not subject.is_classifier:
        return refused(replace(row, metric=f"noise_accuracy[{name}]"), "a regression")
    accuracies = _accuracies(subject, entry, name)
    measured = Measured()
    mean, spread = float(accuracies.mean()), float(accuracies.std()) if entry.draws > 1 else None
    measured.add(replace(row, metric=f"noise_accuracy[{name}]", value=mean))
    measured.add(replace(row, metric=f"noise_accuracy_std[{name}]", value=spread))
    return measured


def _accuracies(subject: Subject, entry: NoiseEntry, name: str) -> Tensor:
    """Return one accuracy for each draw, in float64."""
    benchmark, test = subject.cell.benchmark, subject.test
    accuracies = noise_accuracy(
        subject.module,
        test.inputs,
        test.targets,
        entry.sigma,
        subject.data.box if entry.clamp else None,
        entry.draws,
        stream(subject.cell.seed, "noise", name),
        benchmark.evaluation.batch_size or benchmark.anatomy.samples_at_once(test.inputs.device),
    )
    return torch.tensor(accuracies, dtype=torch.float64)
