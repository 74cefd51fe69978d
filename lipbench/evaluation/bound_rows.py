"""Rows of a bound on the Lipschitz constant, and of what it certifies."""

from dataclasses import replace
from functools import partial

import torch

from lipbench.bound import Lipschitz
from lipbench.config.settings import BoundEntry
from lipbench.evaluation.radius_rows import add_radius, radius_prefix
from lipbench.evaluation.subject import Measured, Subject, flag, refused, without_value
from lipbench.guards.guard import Tampered, TorchTampered, guarded
from lipbench.lipschitz.answers import (
    Malformed,
    checked,
    copies,
    is_verified,
    mismatches,
    read_answer,
    refuse_if_said,
    said,
)
from lipbench.lipschitz.certified_radius import certified_radius, gaps
from lipbench.lipschitz.exact.incumbent import INCUMBENT, incumbent
from lipbench.planning.cell import Evaluation
from lipbench.refused import Refused
from lipbench.storage.rows import Row, box_text


def bound_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Compute a bound, and add what it finds to what the subject knows, for later bounds.

    Returns:
        The constant, what an exact search knew beside it, and what they certify.

    Raises:
        TorchTampered: If the bound replaced functions of torch or numpy.
        Exception: Whatever the bound raises.
    """
    entry = subject.cell.benchmark.evaluation.bound[evaluation.index]
    row = _row(entry, blank)
    try:
        value, lies = _answer(subject, entry)
    except Refused as error:
        return refused(row, str(error))
    except TorchTampered:
        raise
    except (Malformed, Tampered) as error:
        return without_value(row, "invalid", str(error))
    measured = Measured()
    _add(subject, entry, value, lies, row, measured)
    if not lies and is_verified(value):
        row = replace(row, estimator=f"{entry.name}:{INCUMBENT}")
        _add_incumbent(subject, entry, value, row, measured)
    return measured


def _row(entry: BoundEntry, blank: Row) -> Row:
    return replace(
        blank,
        metric="lipschitz",
        norm=float(entry.norm),
        domain=box_text(entry.domain),
        estimator=entry.name,
        side=entry.bound.side,
    )


def _answer(subject: Subject, entry: BoundEntry) -> tuple[Lipschitz, list[str]]:
    """Return what the bound says of the network, and what of that is not true.

    Raises:
        Refused: If it does not cover the network, or says nothing finite.
        Malformed: If what it says is no value, or its proof none that can be checked.
        Exception: Whatever the bound raises.
    """
    if isinstance(subject.network, Refused):
        raise Refused(str(subject.network))
    network, norm, domain = subject.readable, entry.norm, entry.domain
    guard = partial(guarded, f"bound {entry.name!r}", seed=subject.global_seed("bound", entry.name))
    with guard("refuses", network=network):
        refuse_if_said(entry.bound.refuses(network, norm, domain))
    known, inputs = copies(subject.known), subject.data.train.inputs.clone()
    with guard("compute", network=network, known=known, inputs=inputs):
        value = read_answer(entry.bound.compute(network, norm, domain, known, inputs))
    value, problems = checked(network, value)
    return value, [*mismatches(value, entry.bound.side, norm, domain), *problems]


def _add_incumbent(
    subject: Subject, entry: BoundEntry, value: Lipschitz, row: Row, measured: Measured
) -> None:
    """Add the lower bound that lies in the proof of a value, if there is one.

    Raises:
        MemoryError: If there is not enough memory, as torch.OutOfMemoryError on a device.
        OutOfMemoryError: Likewise.
    """
    try:
        beside = incumbent(subject.readable, value)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the point of a stranger's search may be anything
        measured.rows += without_value(row, "invalid", f"its point is none: {said(error)}").rows
        return
    if beside is not None:
        _add(subject, entry, *checked(subject.readable, beside), row, measured)


def _add(
    subject: Subject,
    entry: BoundEntry,
    value: Lipschitz,
    lies: list[str],
    row: Row,
    measured: Measured,
) -> None:
    """Add what a bound found and, if it is proved, what it certifies.

    Later bounds start from what is proved alone.
    """
    row = replace(row, value=value.value, side=value.side, flags=(*row.flags, *value.flags))
    prefix = f"{subject.checkpoint}/{row.estimator}/{entry.norm}"
    measured.proofs |= {f"{prefix}/{name}": tensor for name, tensor in value.proof.items()}
    if lies:
        flags = (*row.flags, flag("; ".join(lies)))
        measured.add(replace(row, status="invalid", flags=flags))
        return
    measured.add(row)
    if not is_verified(value):
        return
    subject.known.append(value)
    if value.side != "lower" and entry.domain is None and subject.is_classifier:
        _certify(subject, value, row, measured)


def _certify(subject: Subject, value: Lipschitz, row: Row, measured: Measured) -> None:
    """Add certified accuracy at the radii of the attacks, and quantiles of the radius."""
    test, network = subject.test, subject.readable
    logit_gaps = gaps(network, test.inputs.cpu(), test.targets.cpu())
    radius = certified_radius(logit_gaps, test.targets, network, value)
    add_radius(subject, radius, row, measured)
    measured.samples[f"{radius_prefix(subject, row)}/margin"] = logit_gaps.amin(dim=1)
