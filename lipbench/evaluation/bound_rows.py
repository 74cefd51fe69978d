"""Rows of a bound on the Lipschitz constant, and of what it certifies."""

from dataclasses import replace

from lipbench.bound import Lipschitz
from lipbench.config.settings import BoundEntry
from lipbench.evaluation.radius_rows import add_radius, radius_prefix
from lipbench.evaluation.subject import Measured, Subject, flag, refused
from lipbench.lipschitz.certified_radius import certified_radius, gaps
from lipbench.lipschitz.exact.incumbent import INCUMBENT, incumbent
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import Network
from lipbench.planning.cell import Evaluation
from lipbench.refused import Refused
from lipbench.storage.rows import Row, box_text


def bound_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Compute a bound, and add what it finds to what the subject knows, for later bounds.

    Returns:
        The constant, what an exact search knew beside it, and what they certify.
    """
    entry = subject.cell.benchmark.evaluation.bound[evaluation.index]
    row = _row(entry, blank)
    reason = _refusal(subject, entry)
    if reason is not None:
        return refused(row, reason)
    network, inputs = subject.readable, subject.data.train.inputs
    try:
        value = entry.bound.compute(network, entry.norm, entry.domain, tuple(subject.known), inputs)
    except Refused as error:
        return refused(row, str(error))
    measured = Measured()
    _add(subject, entry, value, row, measured)
    beside = incumbent(network, value)
    if beside is not None:
        name = f"{entry.name}:{INCUMBENT}"
        _add(subject, entry, beside, replace(row, estimator=name), measured)
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


def _refusal(subject: Subject, entry: BoundEntry) -> str | None:
    """Return why the bound does not cover the network, None if it does."""
    if isinstance(subject.network, Refused):
        return str(subject.network)
    return entry.bound.refuses(subject.network, entry.norm, entry.domain)


def _add(
    subject: Subject, entry: BoundEntry, value: Lipschitz, row: Row, measured: Measured
) -> None:
    """Add what a bound found, and what it certifies, if its proof holds."""
    subject.known.append(value)
    row = replace(row, value=value.value, side=value.side, flags=(*row.flags, *value.flags))
    prefix = f"{subject.checkpoint}/{row.estimator}/{entry.norm}"
    measured.proofs |= {f"{prefix}/{name}": tensor for name, tensor in value.proof.items()}
    lies = _lies(subject.readable, entry, value)
    if lies:
        flags = (*row.flags, flag("; ".join(lies)))
        measured.add(replace(row, status="invalid", flags=flags))
        return
    measured.add(row)
    if value.side in ("upper", "exact") and entry.domain is None and subject.is_classifier:
        _certify(subject, value, row, measured)


def _lies(network: Network, entry: BoundEntry, value: Lipschitz) -> list[str]:
    """Return what is wrong with a value: its proof, its number, or its norm and domain."""
    lies = [violation.message for violation in recheck(network, value)]
    if not value.value >= 0:
        lies.append(f"{value.value} is no Lipschitz constant")
    if (value.norm, value.domain) != (entry.norm, entry.domain):
        lies.append(f"it speaks of norm {value.norm} on {box_text(value.domain)}")
    return lies


def _certify(subject: Subject, value: Lipschitz, row: Row, measured: Measured) -> None:
    """Add certified accuracy at the radii of the attacks, and quantiles of the radius."""
    test, network = subject.test, subject.readable
    logit_gaps = gaps(network, test.inputs.cpu(), test.targets.cpu())
    radius = certified_radius(logit_gaps, test.targets, network, value)
    add_radius(subject, radius, row, measured)
    measured.samples[f"{radius_prefix(subject, row)}/margin"] = logit_gaps.amin(dim=1)
