"""Measures of one checkpoint, as rows: one kind for each part of the settings."""

from collections.abc import Callable
from dataclasses import replace

from lipbench.evaluation.accuracy_rows import accuracy_rows
from lipbench.evaluation.attack_rows import attack_rows
from lipbench.evaluation.bound_rows import bound_rows
from lipbench.evaluation.certificate_rows import certificate_rows
from lipbench.evaluation.noise_rows import noise_rows
from lipbench.evaluation.subject import Measured, Subject
from lipbench.planning.cell import Evaluation
from lipbench.storage.rows import Row

_KINDS: dict[str, Callable[[Subject, Evaluation, Row], Measured]] = {
    "plain": accuracy_rows,
    "noise": noise_rows,
    "attack": attack_rows,
    "bound": bound_rows,
    "certificate": certificate_rows,
}


def measure(subject: Subject, evaluation: Evaluation) -> Measured:
    """Measure one checkpoint by one entry of the evaluation settings.

    A bound is added to those that the subject knows, from which later ones start.

    Returns:
        What the entry says about the checkpoint.
    """
    blank = replace(subject.row, eval_key=evaluation.key)
    return _KINDS[evaluation.kind](subject, evaluation, blank)
