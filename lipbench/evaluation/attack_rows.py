"""Rows of the accuracy under an attack."""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from lipbench.adversary import AttackInvalid, AttackResult, NonFiniteLogits
from lipbench.config.settings import AttackEntry
from lipbench.evaluation.subject import Measured, Subject, refused, without_value
from lipbench.guards.guard import TorchTampered
from lipbench.lipschitz.soundness import misclassified
from lipbench.networks.network import Network
from lipbench.planning.cell import Cell, Evaluation
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.rows import SELECTION, Row, box_text


def attack_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Return robust accuracy for each epsilon, and the queries that the largest one took."""
    entry = subject.cell.benchmark.evaluation.attack[evaluation.index]
    row = _row(subject, entry, blank)
    if not subject.is_classifier:
        return refused(row, "a regression")
    began = time.perf_counter()
    try:
        outcome = subject.attack_outcomes.outcome(
            subject.cell, subject.checkpoint, evaluation.index
        )
    except AttackInvalid as error:
        if isinstance(error.__cause__, TorchTampered):
            raise error.__cause__ from None
        return without_value(row, "invalid", str(error))
    except NonFiniteLogits as error:
        return without_value(row, "failed", str(error))
    results, share = outcome
    measured = Measured(elsewhere=share - (time.perf_counter() - began))
    for epsilon, result in zip(entry.epsilon, results, strict=True):
        _add_result(subject, entry, result, replace(row, epsilon=epsilon), measured)
    last = max(range(len(results)), key=entry.epsilon.__getitem__)
    queries = float(results[last].queries.double().mean())
    measured.add(replace(row, metric="attack_queries", side="exact", value=queries))
    return measured


def _row(subject: Subject, entry: AttackEntry, blank: Row) -> Row:
    return replace(
        blank,
        split="test",
        n=min(entry.size or len(subject.test), len(subject.test)),
        metric="robust_accuracy",
        norm=float(entry.norm),
        estimator=entry.name,
        side="upper",
        domain=box_text(subject.data.box),
        flags=(*blank.flags, *_selecting(subject.cell, entry.name, entry.norm)),
    )


def _selecting(cell: Cell, name: str, norm: float) -> tuple[str, ...]:
    selection = cell.benchmark.selection
    same = selection != "last" and selection.name == name and selection.norm == norm
    return (SELECTION,) if same else ()


def _add_result(
    subject: Subject, entry: AttackEntry, result: AttackResult, row: Row, measured: Measured
) -> None:
    """Add robust accuracy, and per sample the distance of a proven mistake."""
    robust = ~result.success
    accuracy_row = replace(row, value=float(robust.double().mean()))
    measured.add(accuracy_row, robust)
    if isinstance(subject.network, Network):
        distance = _distances(subject, subject.network, entry, result)
        measured.samples[f"{outcome_name(accuracy_row)}/distance"] = distance


def _distances(
    subject: Subject, network: Network, entry: AttackEntry, result: AttackResult
) -> Tensor:
    """Return how far each sample was moved to be misclassified, infinity if it is not."""
    test, size = subject.test, len(result.inputs)
    inputs, labels = test.inputs[:size], test.targets[:size]
    # In float64, as certificates are: what counts is the distance of a proven mistake.
    attacked = result.inputs.to("cpu", torch.float64)
    distance = entry.norm.length(attacked - inputs.to("cpu", torch.float64))
    wrong = misclassified(network, attacked, labels.cpu())
    return torch.where(wrong, distance, math.inf)
