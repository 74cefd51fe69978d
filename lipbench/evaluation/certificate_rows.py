"""Rows of a certificate that speaks of each sample."""

from dataclasses import replace

from lipbench.config.settings import CertificateEntry
from lipbench.evaluation.radius_rows import add_radius
from lipbench.evaluation.subject import Measured, Subject, refused, without_value
from lipbench.planning.cell import Evaluation, certified_epsilons
from lipbench.refused import Refused
from lipbench.storage.rows import Row, box_text


def certificate_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Return certified accuracy at the radii of the attacks, and quantiles of the radius."""
    entry = subject.cell.benchmark.evaluation.certificate[evaluation.index]
    row = _row(entry, blank)
    reason = _refusal(subject, entry)
    if reason is not None:
        return refused(row, reason)
    network, norm = subject.readable, entry.norm
    inputs, labels = subject.test.inputs.cpu(), subject.test.targets.cpu()
    epsilons = certified_epsilons(subject.cell.benchmark, float(norm))
    try:
        radius = entry.certificate.radius(network, norm, inputs, labels, epsilons)
    except Refused as error:
        return refused(row, str(error))
    if radius.shape != (len(inputs),) or bool(radius.isnan().any()):
        return without_value(row, "invalid", "its distances are not one number for each sample")
    measured = Measured()
    add_radius(subject, radius, replace(row, flags=(*row.flags, *network.flags)), measured)
    return measured


def _row(entry: CertificateEntry, blank: Row) -> Row:
    return replace(
        blank,
        metric="certified_accuracy",
        norm=float(entry.norm),
        estimator=entry.name,
        side="lower",
        domain=box_text(None),
    )


def _refusal(subject: Subject, entry: CertificateEntry) -> str | None:
    """Return why the certificate does not cover the network, None if it does."""
    if not subject.is_classifier:
        return "a regression"
    if isinstance(subject.network, Refused):
        return str(subject.network)
    return entry.certificate.refuses(subject.network, entry.norm)
