"""Rows of a certified radius of each sample, whoever certifies it."""

from dataclasses import replace

from torch import Tensor

from lipbench.evaluation.subject import Measured, Subject
from lipbench.lipschitz.certified_radius import certified_accuracy, radius_quantiles
from lipbench.norm import Norm
from lipbench.planning.cell import certified_epsilons
from lipbench.storage.rows import Row

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def add_radius(subject: Subject, radius: Tensor, row: Row, measured: Measured) -> None:
    """Add certified accuracy at the radii of the attacks, and quantiles of the radius.

    Args:
        subject: The checkpoint.
        radius: For each test sample the distance within which its class is certain.
        row: A row with the norm and the estimator that the radii are of.
        measured: What receives the rows and, per sample, the radii.
    """
    norm = row.norm
    assert norm is not None
    row = replace(row, split="test", n=len(radius), side="lower", value=None)
    for epsilon in certified_epsilons(subject.cell.benchmark, norm):
        share = certified_accuracy(radius, epsilon)
        accuracy_row = replace(row, metric="certified_accuracy", epsilon=epsilon, value=share)
        measured.add(accuracy_row, radius > epsilon)
    for level, quantile in zip(QUANTILES, radius_quantiles(radius, QUANTILES), strict=True):
        metric = f"certified_radius_quantile[{level:g}]"
        measured.add(replace(row, metric=metric, value=quantile))
    measured.samples[f"{radius_prefix(subject, row)}/radius"] = radius


def radius_prefix(subject: Subject, row: Row) -> str:
    """Return the prefix, among the samples, of the certificates of a row's estimator and norm."""
    assert row.norm is not None
    return f"{subject.checkpoint}/certified/{row.estimator}/{Norm(row.norm)}"
