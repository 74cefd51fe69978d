"""Evaluate the checkpoints of a trained cell, and check that no two numbers contradict."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from lipbench.data.splits import Data
from lipbench.evaluation.attack_outcomes import AttackOutcomes
from lipbench.evaluation.claims import claim_of
from lipbench.evaluation.contradictions import contradictions
from lipbench.evaluation.measures import measure
from lipbench.evaluation.subject import Measured, Subject, flag
from lipbench.failure import is_kind, pass_signals, wording
from lipbench.fields import key as field_key
from lipbench.guards.guard import TorchTampered
from lipbench.lipschitz.agreement import read_network
from lipbench.networks.determinism import irregularity
from lipbench.planning.cell import Cell, Evaluation
from lipbench.refused import Refused
from lipbench.storage.cell_folder import CellFolder, StateName
from lipbench.storage.evaluation_files import drop_damaged, write_evaluation
from lipbench.storage.files import StorageError
from lipbench.storage.rows import Read, Row, read_rows
from lipbench.storage.writer import Writer

CONSTANT_SHARE = 0.99
"""A classifier that gives one answer this often has learnt nothing, whatever its accuracy."""
_ENDS = (torch.OutOfMemoryError, MemoryError, StorageError, TorchTampered)
"""Errors of a measure after which the next one has no chance, or gives no number to rely on."""
_COLLAPSED = "collapsed to one class"
"""Flag of all rows of a network that is not the chosen one, and no classifier any more."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is wrong with the evaluation of a cell; nothing, if both are empty."""

    contradictions: list[str]
    """Numbers that cannot be true at once."""
    errors: list["EvaluationFailed"]
    """One for each entry of the settings that could not be measured and is still missing."""


class EvaluationFailed(Exception):
    """An attack or a bound raised; the message says which, the cause is what it raised."""


class Unfit(Exception):
    """A trained network is no result: it answers alike to everything, or with NaN."""

    def __init__(self, state: StateName, message: str) -> None:
        super().__init__(message)
        self.state: StateName = state


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One checkpoint as it lies in the folder of a cell."""

    name: str
    module: nn.Module
    facts: dict[str, float]
    flags: tuple[str, ...]
    file: str = ""
    """Name of the file that it was read from."""
    digest: str = ""
    """Digest of that file."""


def evaluate(
    cell: Cell,
    folder: CellFolder,
    checkpoints: Sequence[Trained],
    data: Data,
    attack_outcomes: AttackOutcomes,
    device: str,
    env_id: str,
    read: Read = read_rows,
) -> Findings:
    """Measure what is not measured yet, and check all that is measured.

    An attack or a bound that raises does not keep the others from being measured.

    Args:
        cell: The cell.
        folder: Its folder, which receives a file of rows for each entry of the evaluation.
        checkpoints: Its networks, on the device and in evaluation mode.
        data: The data set, on the same device.
        attack_outcomes: What attacks do to the networks of the cell's stack.
        device: Name of the device, for the rows.
        env_id: Hash of the environment, for the rows.
        read: How files of rows are read.

    Returns:
        What is wrong with all that is measured.

    Raises:
        Unfit: If the chosen network is constant or gives NaN.
        StorageError: If a file cannot be written.
        MemoryError: If there is not enough memory, as torch.OutOfMemoryError on a device.
        TorchTampered: If a plugin replaced functions of torch or numpy.
    """
    missing = [e for e in cell.evaluations if not drop_damaged(folder, e.key, cell.blank, read)]
    if not missing:
        return Findings(contradictions=contradictions(cell, folder, read), errors=[])
    blank = replace(cell.blank, device=device, env_id=env_id)
    subjects = [
        _looked_at(_subject(cell, trained, data, attack_outcomes, blank)) for trained in checkpoints
    ]
    networks = {trained.file: trained.digest for trained in checkpoints}
    errors = _complete(cell, folder, subjects, missing, networks)
    return Findings(contradictions=contradictions(cell, folder, read), errors=errors)


def _complete(
    cell: Cell,
    folder: CellFolder,
    subjects: Sequence[Subject],
    missing: Sequence[Evaluation],
    networks: Mapping[str, str],
) -> list[EvaluationFailed]:
    """Measure what is missing and write it.

    Returns:
        What could not be measured.
    """
    errors = []
    bounds = any(evaluation.kind == "bound" for evaluation in missing)
    with Writer() as writer:
        for evaluation in cell.evaluations:
            try:
                if evaluation in missing:
                    measured = _measure(subjects, evaluation)
                    write_evaluation(
                        writer,
                        folder,
                        evaluation.key,
                        measured.rows,
                        measured.samples,
                        measured.proofs,
                        cell.key,
                        networks,
                    )
                elif evaluation.kind == "bound" and bounds:
                    # Searches start from what earlier ones found, also in a run that was stopped
                    # between two of them.
                    _measure(subjects, evaluation)
            except BaseException as error:  # a plugin may raise anything
                pass_signals(error)
                if is_kind(error, *_ENDS):
                    raise
                what = f"{_named(cell, evaluation)} raised {wording(error)}"
                errors.append(EvaluationFailed(what))
                errors[-1].__cause__ = error
    return errors


def _subject(
    cell: Cell, trained: Trained, data: Data, attack_outcomes: AttackOutcomes, blank: Row
) -> Subject:
    network: object
    try:
        shape = cell.benchmark.dataset.input_shape
        network = read_network(trained.module, shape, data.test.inputs)
    except Refused as refusal:
        network = refusal
    return Subject(
        cell=cell,
        checkpoint=trained.name,
        module=trained.module,
        network=network,
        data=data,
        attack_outcomes=attack_outcomes,
        row=replace(blank, checkpoint=trained.name, flags=trained.flags),
        facts=trained.facts,
        claim=claim_of(cell, trained.module, _strength(cell, trained)),
    )


def _strength(cell: Cell, trained: Trained) -> float | None:
    law = cell.entry.method.strength
    return None if law is None else trained.facts.get(f"strength[{field_key(law.field)}]")


def _looked_at(subject: Subject) -> Subject:
    """Return the subject, whose rows say what is strange about its answers.

    It is no function of single inputs, or gives one answer to nearly all test samples.

    Raises:
        Unfit: If it is the chosen classifier that does, or the chosen network's outputs are not
            finite.
    """
    is_chosen = subject.checkpoint == "chosen"
    with torch.no_grad():
        outputs = subject.module(subject.test.inputs)
    if not outputs.isfinite().all():
        if is_chosen:
            raise Unfit("nan", "the chosen network has outputs that are not finite")
        return subject
    reason = irregularity(subject.module, subject.test.inputs)
    if reason is not None:
        refusal = Refused(f"{reason}; bounds are of functions, which do not.")
        subject = _flagged(replace(subject, network=refusal), flag(f"no function: {reason}"))
    if not subject.is_classifier:
        return subject
    counts = outputs.argmax(dim=1).bincount()
    share = float(counts.max()) / len(outputs)
    if share < CONSTANT_SHARE:
        return subject
    if is_chosen:
        raise Unfit(
            "failed",
            f"the chosen network predicts class {int(counts.argmax())} for {share:.1%} of the "
            "test samples: it collapsed",
        )
    # The last network of a cell, or one of a path, whose strengths may well be meant to do this.
    return _flagged(subject, _COLLAPSED)


def _flagged(subject: Subject, text: str) -> Subject:
    return replace(subject, row=replace(subject.row, flags=(*subject.row.flags, text)))


def _measure(subjects: Sequence[Subject], evaluation: Evaluation) -> Measured:
    """Measure all checkpoints by one entry of the settings; each learns the bounds found of it.

    Returns:
        What the entry says about them, with what it cost.
    """
    measured = Measured()
    for subject in subjects:
        began = time.perf_counter()
        result = measure(subject, evaluation)
        seconds = time.perf_counter() - began + result.elsewhere
        rows = (_with_leak(row, subject.data) for row in result.rows)
        measured.rows += [replace(row, seconds=seconds) for row in rows]
        measured.samples |= result.samples
        measured.proofs |= result.proofs
    return measured


def _with_leak(row: Row, data: Data) -> Row:
    """Return a row, which says so if it is about test inputs that are training inputs, too."""
    if row.split != "test" or row.status != "done" or not data.shared_test_inputs:
        return row
    return replace(row, flags=(*row.flags, *data.shared_test_inputs))


def _named(cell: Cell, evaluation: Evaluation) -> str:
    settings, index = cell.benchmark.evaluation, evaluation.index
    if evaluation.kind == "attack":
        return f"attack {settings.attack[index].name!r}"
    if evaluation.kind == "bound":
        return f"bound {settings.bound[index].name!r}"
    if evaluation.kind == "certificate":
        return f"certificate {settings.certificate[index].name!r}"
    return "noise" if evaluation.kind == "noise" else "plain accuracy"
