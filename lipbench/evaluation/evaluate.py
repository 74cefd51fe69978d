"""Evaluate the checkpoints of a trained cell, and check that no two numbers contradict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from lipbench.bound import Lipschitz, Side
from lipbench.data.splits import Data
from lipbench.evaluation.attack_outcomes import Attacked
from lipbench.evaluation.claims import CLAIMED, claim_in, claim_of, refutations
from lipbench.evaluation.measurement import Measured, Subject
from lipbench.evaluation.measures import measure
from lipbench.fields import key as field_key
from lipbench.lipschitz.soundness import crossings
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.planning.cell import Cell, Evaluation, dataset_json, model_json
from lipbench.refused import Refused
from lipbench.storage.cell_folder import CellFolder, State
from lipbench.storage.files import StorageError, quarantine
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.rows import Read, Row, RowsDamaged, format_rows, read_rows
from lipbench.storage.tensors import Unreadable, is_whole, packed, read_tensors
from lipbench.storage.writer import Writer

CONSTANT_SHARE = 0.99
"""A classifier that gives one answer this often has learnt nothing, whatever its accuracy."""
_COLLAPSED = "collapsed to one class"
"""Flag of all rows of a network that is not the chosen one, and no classifier any more."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with the evaluation of a cell; nothing, if both are empty."""

    contradictions: list[str]
    """Numbers that cannot be true at once."""
    errors: list["EvaluationFailed"]
    """One for each entry of the settings that could not be measured and is still missing."""


class EvaluationFailed(Exception):
    """An attack or a bound raised; the message says which, the cause is what it raised."""


class Unfit(Exception):
    """A trained network is no result: it answers alike to everything, or with NaN."""

    def __init__(self, state: State, message: str) -> None:
        super().__init__(message)
        self.state: State = state


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One checkpoint as it lies in the folder of a cell."""

    name: str
    module: nn.Module
    facts: dict[str, float]
    flags: tuple[str, ...]


def evaluate(
    cell: Cell,
    folder: CellFolder,
    checkpoints: Sequence[Trained],
    data: Data,
    attacked: Attacked,
    device: str,
    env_id: str,
    read: Read = read_rows,
) -> Verdict:
    """Measure what is not measured yet, and check all that is measured.

    An attack or a bound that raises does not keep the others from being measured.

    Args:
        cell: The cell.
        folder: Its folder, which receives a file of rows for each entry of the evaluation.
        checkpoints: Its networks, on the device and in evaluation mode.
        data: The data set, on the same device.
        attacked: What attacks do to the networks of the cell's stack.
        device: Name of the device, for the rows.
        env_id: Hash of the environment, for the rows.
        read: How files of rows are read.

    Returns:
        What is wrong with all that is measured.

    Raises:
        Unfit: If the chosen network is constant or gives NaN.
        StorageError: If a file cannot be written.
        MemoryError: If there is not enough memory, as torch.OutOfMemoryError on a device.
    """
    missing = [e for e in cell.evaluations if not _is_there(folder, e)]
    if not missing:
        return Verdict(contradictions=contradictions(cell, folder, read), errors=[])
    blank = Row(
        benchmark=cell.benchmark.name,
        dataset=dataset_json(cell.benchmark),
        model=model_json(cell.benchmark),
        method=cell.entry.name,
        params=cell.params,
        seed=cell.seed,
        metric="",
        device=device,
        train_key=cell.key,
        env_id=env_id,
    )
    subjects = [
        _looked_at(_subject(cell, trained, data, attacked, blank)) for trained in checkpoints
    ]
    errors = _complete(cell, folder, subjects, missing)
    return Verdict(contradictions=contradictions(cell, folder, read), errors=errors)


def _complete(
    cell: Cell, folder: CellFolder, subjects: Sequence[Subject], missing: Sequence[Evaluation]
) -> list[EvaluationFailed]:
    """Return what could not be measured of what is missing; all else is saved."""
    errors = []
    bounds = any(evaluation.kind == "bound" for evaluation in missing)
    with Writer() as writer:
        for evaluation in cell.evaluations:
            try:
                if evaluation in missing:
                    _save(writer, folder, evaluation, _measure(subjects, evaluation))
                elif evaluation.kind == "bound" and bounds:
                    # Searches start from what earlier ones found, also in a run that was stopped
                    # between two of them.
                    _measure(subjects, evaluation)
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError | MemoryError | StorageError):
                    raise
                what = f"{_named(cell, evaluation)} raised {type(error).__name__}: {error}"
                errors.append(EvaluationFailed(what))
                errors[-1].__cause__ = error
    return errors


def contradictions(cell: Cell, folder: CellFolder, read: Read = read_rows) -> list[str]:
    """Return what the stored numbers of a cell say that cannot be true at once.

    A lower bound above an upper one of the same checkpoint, norm and domain; and a sample that is
    certified within a radius, and misclassified in float64 at a smaller distance. A bound whose
    own proof does not hold is one, too, and so is a constant that the method claims and a lower
    bound refutes.
    """
    there = [e.key for e in cell.evaluations if folder.rows(e.key).exists()]
    rows = [row for key in there for row in read(folder.rows(key))]
    samples: dict[tuple[str, str], Tensor] = {}
    for key in there:
        if folder.samples(key).exists():
            tensors, _ = read_tensors(folder.samples(key))
            samples |= {(key, name): tensor for name, tensor in tensors.items()}
    found = []
    for checkpoint in dict.fromkeys(row.checkpoint for row in rows):
        own = [row for row in rows if row.checkpoint == checkpoint]
        bounds = [row for row in own if row.metric == "lipschitz" and row.value is not None]
        lies = [row for row in bounds if row.status == "invalid"]
        found += [f"{checkpoint}: {row.estimator}: {row.flags[-1]}" for row in lies]
        found += [f"{checkpoint}: {v.message}" for v in crossings(map(_value, bounds))]
        proved = [_value(row) for row in bounds if row.status == "done"]
        for claim in (claim_in(row) for row in own if row.metric == CLAIMED):
            found += [f"{checkpoint}: {message}" for message in refutations(claim, proved)]
        found += _broken(checkpoint, own, samples)
    return found


def _broken(checkpoint: str, rows: list[Row], samples: dict[tuple[str, str], Tensor]) -> list[str]:
    found = []
    for (_, name), radius in samples.items():
        if not (name.startswith(f"{checkpoint}/certified/") and name.endswith("/radius")):
            continue
        norm = float(name.split("/")[-2])
        for row in rows:
            distance = samples.get((row.eval_key, f"{outcome_name(row)}/distance"))
            if row.metric != "robust_accuracy" or row.norm != norm or distance is None:
                continue
            both = min(len(radius), len(distance))
            wrong = (radius[:both] > distance[:both]).nonzero().flatten().tolist()
            found += [
                f"{checkpoint}: sample {n} is certified within {float(radius[n]):.9g} ({name}), "
                f"and {row.estimator} broke it at distance {float(distance[n]):.9g}"
                for n in wrong
            ]
    return found


def _subject(cell: Cell, trained: Trained, data: Data, attacked: Attacked, blank: Row) -> Subject:
    network: object
    try:
        network = as_network(trained.module, cell.benchmark.dataset.input_shape)
    except Refused as refusal:
        network = refusal
    return Subject(
        cell=cell,
        checkpoint=trained.name,
        module=trained.module,
        network=network,
        data=data,
        attacked=attacked,
        row=replace(blank, checkpoint=trained.name, flags=trained.flags),
        facts=trained.facts,
        claim=claim_of(cell, trained.module, _strength(cell, trained)),
    )


def _strength(cell: Cell, trained: Trained) -> float | None:
    law = cell.entry.method.strength
    return None if law is None else trained.facts.get(f"strength[{field_key(law.field)}]")


def _looked_at(subject: Subject) -> Subject:
    """Return the subject, whose rows say so if it gives one answer to nearly all test samples.

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
    return replace(subject, row=replace(subject.row, flags=(*subject.row.flags, _COLLAPSED)))


def _measure(subjects: Sequence[Subject], evaluation: Evaluation) -> Measured:
    """Return what one entry of the settings says about all checkpoints, with what it cost."""
    measured = Measured()
    for subject in subjects:
        began = time.perf_counter()
        part = measure(subject, evaluation)
        seconds = time.perf_counter() - began + part.elsewhere
        measured.rows += [replace(row, seconds=seconds) for row in part.rows]
        measured.samples |= part.samples
        measured.proofs |= part.proofs
    return measured


def _named(cell: Cell, evaluation: Evaluation) -> str:
    settings, index = cell.benchmark.evaluation, evaluation.index
    if evaluation.kind == "attack":
        return f"attack {settings.attack[index].name!r}"
    if evaluation.kind == "bound":
        return f"bound {settings.bound[index].name!r}"
    if evaluation.kind == "certificate":
        return f"certificate {settings.certificate[index].name!r}"
    return "noise" if evaluation.kind == "noise" else "plain accuracy"


def _save(writer: Writer, folder: CellFolder, evaluation: Evaluation, measured: Measured) -> None:
    # The rows come last: their file says that the evaluation is complete.
    if measured.samples:
        writer.write(folder.samples(evaluation.key), packed(measured.samples, {}))
    if measured.proofs:
        writer.write(folder.proof(evaluation.key), packed(measured.proofs, {}))
    writer.write(folder.rows(evaluation.key), format_rows(measured.rows).encode())


def _is_there(folder: CellFolder, evaluation: Evaluation) -> bool:
    path = folder.rows(evaluation.key)
    if not path.exists():
        return False
    try:
        read_rows(path)
        for beside in (folder.samples(evaluation.key), folder.proof(evaluation.key)):
            if beside.exists():
                read_tensors(beside)
    except (RowsDamaged, Unreadable) as damage:
        # Measured anew: the damaged file is kept under another name, and the rows go with it.
        quarantine(path if isinstance(damage, RowsDamaged) else beside)
        path.unlink(missing_ok=True)
        return False
    return True


def is_measured(folder: CellFolder, evaluation: Evaluation, read: Read = read_rows) -> bool:
    """Return whether the files of an evaluation are there and look whole; nothing is changed."""
    rows, key = folder.rows(evaluation.key), evaluation.key
    try:
        read(rows)
    except (RowsDamaged, StorageError):
        return False
    return all(is_whole(p) for p in (folder.samples(key), folder.proof(key)) if p.exists())


def _value(row: Row) -> Lipschitz:
    assert row.value is not None
    assert row.norm is not None
    side = cast(Side, row.side)
    return Lipschitz(value=row.value, side=side, norm=Norm(row.norm), domain=row.box)
