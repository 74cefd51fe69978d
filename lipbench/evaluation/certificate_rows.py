"""Rows of a certificate that speaks of each sample."""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.bound import UNVERIFIED
from lipbench.config.settings import CertificateEntry
from lipbench.evaluation.radius_rows import add_radius, radius_prefix
from lipbench.evaluation.subject import Measured, Subject, refused, without_value
from lipbench.guards.guard import Tampered, TorchTampered, guarded
from lipbench.lipschitz.answers import Malformed, refuse_if_said
from lipbench.lipschitz.certified_radius import gaps
from lipbench.lipschitz.relaxations.balls import local_radius
from lipbench.lipschitz.soundness import misclassified
from lipbench.planning.cell import Evaluation, certified_epsilons
from lipbench.refused import Refused
from lipbench.storage.rows import Row, box_text


def certificate_rows(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    """Return certified accuracy at the radii of the attacks, and quantiles of the radius.

    What the core cannot prove as well, sample by sample, is marked as unverified.

    Raises:
        TorchTampered: If the certificate replaced functions of torch or numpy.
        Exception: Whatever the certificate raises.
    """
    entry = subject.cell.benchmark.evaluation.certificate[evaluation.index]
    row = _row(entry, blank)
    try:
        radius = _radius(subject, entry)
    except Refused as error:
        return refused(row, str(error))
    except TorchTampered:
        raise
    except (Malformed, Tampered) as error:
        return without_value(row, "invalid", str(error))
    measured = Measured()
    flags = (*row.flags, *subject.readable.flags)
    if _is_proved(subject, entry, radius):
        add_radius(subject, radius, replace(row, flags=flags), measured)
        return measured
    add_radius(subject, radius, replace(row, flags=(*flags, UNVERIFIED)), measured)
    # Under another name: an attack that breaks it refutes it, and contradicts nothing.
    name = radius_prefix(subject, row)
    measured.samples[f"{name}/{UNVERIFIED}"] = measured.samples.pop(f"{name}/radius")
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


def _radius(subject: Subject, entry: CertificateEntry) -> Float[Tensor, " samples"]:
    """Return the certificate's radius of each test sample.

    Raises:
        Refused: If the certificate does not cover the network.
        Malformed: If its distances are not one number for each sample, or contradict the network.
        Exception: Whatever the certificate raises.
    """
    if not subject.is_classifier:
        raise Refused("a regression")
    if isinstance(subject.network, Refused):
        raise Refused(str(subject.network))
    network, norm = subject.readable, entry.norm
    seed = subject.global_seed("certificate", entry.name)
    guard = partial(guarded, f"certificate {entry.name!r}", seed=seed)
    with guard("refuses", network=network):
        refuse_if_said(entry.certificate.refuses(network, norm))
    inputs, labels = subject.test.inputs.cpu().clone(), subject.test.targets.cpu().clone()
    epsilons = certified_epsilons(subject.cell.benchmark, float(norm))
    with guard("radius", network=network, inputs=inputs, labels=labels, epsilons=epsilons):
        found = entry.certificate.radius(network, norm, inputs, labels, epsilons)
        radius = _read(found, len(inputs))
    certified = radius > 0
    wrong = misclassified(network, inputs[certified].double(), labels[certified])
    if bool(wrong.any()):
        row = int(certified.nonzero().flatten()[wrong][0])
        raise Malformed(f"it certifies sample {row}, which is misclassified as it stands.")
    return radius


def _read(returned: object, count: int) -> Float[Tensor, " samples"]:
    """Return distances as they were returned, in float64.

    Raises:
        Malformed: If they are not one number for each sample.
    """
    if isinstance(returned, Tensor) and type(returned) is Tensor and returned.is_floating_point():
        radius = returned.detach().to("cpu", torch.float64).clone()
        if radius.shape == (count,) and not bool(radius.isnan().any()):
            return radius
    raise Malformed("its distances are not one number for each sample")


def _is_proved(subject: Subject, entry: CertificateEntry, radius: Tensor) -> bool:
    """Return whether constants on each sample's own balls prove distances as large, everywhere."""
    if not bool((radius > 0).any()):
        return True
    network, norm = subject.readable, entry.norm
    inputs, labels = subject.test.inputs.cpu(), subject.test.targets.cpu()
    epsilons = certified_epsilons(subject.cell.benchmark, float(norm))
    try:
        margins = gaps(network, inputs, labels)
        proved = local_radius(network, norm, inputs, labels, margins, epsilons)
    except Refused:  # too large for it, or a step that has no rule there
        return False
    return bool((radius <= proved.clamp_min(0)).all())
