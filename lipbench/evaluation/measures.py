"""What is measured of one checkpoint: accuracy, noise, attacks and bounds, each as rows."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lipbench.adversary import AttackInvalid, NonFiniteLogits
from lipbench.bound import Lipschitz
from lipbench.config.settings import BoundEntry
from lipbench.data.splits import Batch, Data, Split
from lipbench.evaluation.attack_outcomes import Attacked
from lipbench.evaluation.claims import claim_row
from lipbench.evaluation.noise import noise_accuracy
from lipbench.lipschitz.certified_radius import (
    certified_accuracy,
    certified_radius,
    gaps,
    radius_quantiles,
)
from lipbench.lipschitz.exact.incumbent import INCUMBENT, incumbent
from lipbench.lipschitz.soundness import misclassified, recheck
from lipbench.method import Claim
from lipbench.networks.network import Network
from lipbench.networks.steps import Linear, Scale
from lipbench.norm import Norm
from lipbench.planning.cell import Cell, Evaluation, certified_epsilons
from lipbench.refused import Refused
from lipbench.seeds import stream
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.rows import SELECTION, Row, box_text

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
CONSTANT_SHARE = 0.99
"""A classifier that gives one answer this often has learnt nothing, whatever its accuracy."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint of a cell, ready to be measured."""

    cell: Cell
    checkpoint: str
    module: nn.Module
    """On the device and in evaluation mode; takes pixel units."""
    network: Network | Refused
    """The same function as steps in float64, or why it cannot be read as such."""
    data: Data
    attacked: Attacked
    """What attacks do to it and to the others of its stack."""
    row: Row
    """A row with all the columns that the checkpoint fixes."""
    claim: Claim | None = None
    """The Lipschitz constant that the method guarantees, for the bounds to refute."""
    facts: dict[str, float] = field(default_factory=dict)
    """What training measured of the checkpoint, by metric."""
    known: list[Lipschitz] = field(default_factory=list)
    """Bounds found so far, from which others may start."""

    @property
    def test(self) -> Split:
        """Return the test samples that are evaluated."""
        size = self.cell.benchmark.evaluation.test_size
        test = self.data.test
        return replace(
            test, inputs=test.inputs[:size], targets=test.targets[:size], index=test.index[:size]
        )

    @property
    def is_classifier(self) -> bool:
        """Return whether the outputs are logits."""
        return self.data.task == "classification"


@dataclass
class Measured:
    """The rows of one evaluation of one checkpoint, and what lies behind them."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, Tensor] = field(default_factory=dict)
    """Outcomes per sample; names begin with the checkpoint's."""
    proofs: dict[str, Tensor] = field(default_factory=dict)
    """Witnesses and certificates in float64, named likewise."""
    elsewhere: float = 0.0
    """Seconds that it cost beyond the time it took: those in which it was attacked together with
    another network that asked first. Negative for that one."""

    def add(self, row: Row, outcomes: Tensor | None = None) -> None:
        """Append a row, and per sample what its value is the mean of."""
        self.rows.append(row)
        if outcomes is not None:
            self.samples[outcome_name(row)] = outcomes.to("cpu", torch.float32)


def measure(subject: Subject, evaluation: Evaluation) -> Measured:
    """Return what one entry of the evaluation settings says about one checkpoint."""
    blank = replace(subject.row, eval_key=evaluation.key)
    return _KINDS[evaluation.kind](subject, evaluation, blank)


def _plain(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    measured = Measured()
    for name, part in (("train", subject.data.train), ("test", subject.test)):
        row = replace(blank, split=name, n=len(part), side="exact", domain="")
        outputs = _outputs(subject.module, part.inputs)
        batch = Batch(outputs, part.targets, subject.data.task)
        loss = float(batch.losses(outputs).double().mean())
        measured.add(replace(row, metric="loss", value=loss))
        if subject.is_classifier:
            correct = batch.correct(outputs)
            value = float(correct.double().mean())
            measured.add(replace(row, metric=f"{name}_accuracy", value=value), correct)
        else:
            measured.add(replace(row, metric="mse", value=loss))
    if subject.is_classifier:
        predictions = _outputs(subject.module, subject.test.inputs).argmax(dim=1)
        share = float(predictions.bincount().max()) / len(predictions)
        measured.add(
            replace(blank, split="test", n=len(predictions), metric="largest_class", value=share)
        )
    for metric, value in subject.facts.items():
        measured.add(replace(blank, metric=metric, value=value))
    if subject.claim is not None:
        measured.add(claim_row(subject.claim, blank))
    scale = _input_scale(subject.network)
    if scale is not None:
        measured.add(replace(blank, metric="input_scale", side="exact", value=scale))
    grid = subject.data.dataset.grid()
    if grid is not None:
        points = torch.as_tensor(grid).to(subject.data.train.inputs)
        measured.samples[f"{subject.checkpoint}/curve/x"] = points.cpu()
        measured.samples[f"{subject.checkpoint}/curve/y"] = _outputs(subject.module, points).cpu()
    return measured


def _noise(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    benchmark = subject.cell.benchmark
    entry = benchmark.evaluation.noise[evaluation.index]
    clamp = subject.data.box if entry.clamp else None
    name = f"sigma={entry.sigma:g},{'clamped' if entry.clamp else 'unclamped'}"
    test = subject.test
    row = replace(blank, split="test", n=len(test), side="estimate", estimator="gaussian")
    if not subject.is_classifier:
        return _refused(replace(row, metric=f"noise_accuracy[{name}]"), "a regression")
    accuracies = torch.tensor(
        noise_accuracy(
            subject.module,
            test.inputs,
            test.targets,
            entry.sigma,
            clamp,
            entry.draws,
            stream(subject.cell.seed, "noise", name),
            benchmark.evaluation.batch_size
            or benchmark.anatomy.samples_at_once(test.inputs.device),
        ),
        dtype=torch.float64,
    )
    measured = Measured()
    mean, spread = float(accuracies.mean()), float(accuracies.std()) if entry.draws > 1 else None
    measured.add(replace(row, metric=f"noise_accuracy[{name}]", value=mean))
    measured.add(replace(row, metric=f"noise_accuracy_std[{name}]", value=spread))
    return measured


def _attack(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    benchmark = subject.cell.benchmark
    entry = benchmark.evaluation.attack[evaluation.index]
    size = min(entry.size or len(subject.test), len(subject.test))
    inputs, labels = subject.test.inputs[:size], subject.test.targets[:size]
    row = replace(
        blank,
        split="test",
        n=size,
        metric="robust_accuracy",
        norm=float(entry.norm),
        estimator=entry.name,
        side="upper",
        domain=box_text(subject.data.box),
        flags=(*blank.flags, *_selecting(subject.cell, entry.name, entry.norm)),
    )
    if not subject.is_classifier:
        return _refused(row, "a regression")
    began = time.perf_counter()
    try:
        outcome = subject.attacked.outcome(subject.cell, subject.checkpoint, evaluation.index)
    except AttackInvalid as error:
        return _without(row, "invalid", str(error))
    except NonFiniteLogits as error:
        return _without(row, "failed", str(error))
    results, share = outcome
    measured = Measured(elsewhere=share - (time.perf_counter() - began))
    for epsilon, result in zip(entry.epsilon, results, strict=True):
        robust = ~result.success
        found = replace(row, epsilon=epsilon, value=float(robust.double().mean()))
        measured.add(found, robust)
        if isinstance(subject.network, Network):
            # In float64, as certificates are: what counts is the distance of a proven mistake.
            attacked = result.inputs.to("cpu", torch.float64)
            distance = entry.norm.length(attacked - inputs.to("cpu", torch.float64))
            wrong = misclassified(subject.network, attacked, labels.cpu())
            distance = torch.where(wrong, distance, math.inf)
            measured.samples[f"{outcome_name(found)}/distance"] = distance
    last = max(range(len(results)), key=entry.epsilon.__getitem__)
    queries = float(results[last].queries.double().mean())
    measured.add(replace(row, metric="attack_queries", side="exact", value=queries))
    return measured


def _bound(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    entry = subject.cell.benchmark.evaluation.bound[evaluation.index]
    norm, domain = entry.norm, entry.domain
    row = replace(
        blank,
        metric="lipschitz",
        norm=float(norm),
        domain=box_text(domain),
        estimator=entry.name,
        side=entry.bound.side,
    )
    if isinstance(subject.network, Refused):
        return _refused(row, str(subject.network))
    reason = entry.bound.refuses(subject.network, norm, domain)
    if reason is not None:
        return _refused(row, reason)
    inputs = subject.data.train.inputs
    try:
        value = entry.bound.compute(subject.network, norm, domain, tuple(subject.known), inputs)
    except Refused as error:
        return _refused(row, str(error))
    measured = Measured()
    _add(subject, entry, value, row, measured)
    beside = incumbent(subject.network, value)
    if beside is not None:
        name = f"{entry.name}:{INCUMBENT}"
        _add(subject, entry, beside, replace(row, estimator=name), measured)
    return measured


def _add(
    subject: Subject, entry: BoundEntry, value: Lipschitz, row: Row, measured: Measured
) -> None:
    """Add what a bound found, and what it certifies, if its proof holds."""
    assert isinstance(subject.network, Network)
    subject.known.append(value)
    norm, domain = entry.norm, entry.domain
    row = replace(row, value=value.value, side=value.side, flags=(*row.flags, *value.flags))
    place = f"{subject.checkpoint}/{row.estimator}/{norm}"
    measured.proofs |= {f"{place}/{name}": tensor for name, tensor in value.proof.items()}
    lies = [violation.message for violation in recheck(subject.network, value)]
    if not value.value >= 0:
        lies.append(f"{value.value} is no Lipschitz constant")
    if (value.norm, value.domain) != (norm, domain):
        lies.append(f"it speaks of norm {value.norm} on {box_text(value.domain)}")
    if lies:
        flags = (*row.flags, _flag("; ".join(lies)))
        measured.add(replace(row, status="invalid", flags=flags))
        return
    measured.add(row)
    if value.side in ("upper", "exact") and domain is None and subject.is_classifier:
        _certify(subject, value, row, measured)


def _certificate(subject: Subject, evaluation: Evaluation, blank: Row) -> Measured:
    entry = subject.cell.benchmark.evaluation.certificate[evaluation.index]
    norm = entry.norm
    row = replace(
        blank,
        metric="certified_accuracy",
        norm=float(norm),
        estimator=entry.name,
        side="lower",
        domain=box_text(None),
    )
    if not subject.is_classifier:
        return _refused(row, "a regression")
    if isinstance(subject.network, Refused):
        return _refused(row, str(subject.network))
    reason = entry.certificate.refuses(subject.network, norm)
    if reason is not None:
        return _refused(row, reason)
    inputs, labels = subject.test.inputs.cpu(), subject.test.targets.cpu()
    epsilons = certified_epsilons(subject.cell.benchmark, float(norm))
    try:
        radius = entry.certificate.radius(subject.network, norm, inputs, labels, epsilons)
    except Refused as error:
        return _refused(row, str(error))
    if radius.shape != (len(inputs),) or bool(radius.isnan().any()):
        return _without(row, "invalid", "its distances are not one number for each sample")
    measured = Measured()
    row = replace(row, flags=(*row.flags, *subject.network.flags))
    _add_radius(subject, radius, row, measured)
    return measured


def _certify(subject: Subject, value: Lipschitz, row: Row, measured: Measured) -> None:
    """Add certified accuracy at the radii of the attacks, and quantiles of the radius."""
    assert isinstance(subject.network, Network)
    test = subject.test
    own = gaps(subject.network, test.inputs.cpu(), test.targets.cpu())
    radius = certified_radius(own, test.targets, subject.network, value)
    _add_radius(subject, radius, row, measured)
    place = f"{subject.checkpoint}/certified/{row.estimator}/{value.norm}"
    measured.samples[f"{place}/margin"] = own.amin(dim=1)


def _add_radius(subject: Subject, radius: Tensor, row: Row, measured: Measured) -> None:
    assert row.norm is not None
    norm = Norm(row.norm)
    row = replace(row, split="test", n=len(radius), side="lower", value=None)
    for epsilon in certified_epsilons(subject.cell.benchmark, float(norm)):
        share = certified_accuracy(radius, epsilon)
        found = replace(row, metric="certified_accuracy", epsilon=epsilon, value=share)
        measured.add(found, radius > epsilon)
    for level, quantile in zip(QUANTILES, radius_quantiles(radius, QUANTILES), strict=True):
        metric = f"certified_radius_quantile[{level:g}]"
        measured.add(replace(row, metric=metric, value=quantile))
    place = f"{subject.checkpoint}/certified/{row.estimator}/{norm}"
    measured.samples[f"{place}/radius"] = radius


_KINDS: dict[str, Callable[[Subject, Evaluation, Row], Measured]] = {
    "plain": _plain,
    "noise": _noise,
    "attack": _attack,
    "bound": _bound,
    "certificate": _certificate,
}


def _outputs(module: nn.Module, inputs: Tensor, chunk: int = 8192) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(part) for part in torch.split(inputs, chunk)])


def _input_scale(network: Network | Refused) -> float | None:
    """Return the smallest std of a normalisation before the first layer, None without one.

    A constant in the units that the first layer sees is the one in pixel units times it, if all
    that the network reads is normalised.
    """
    if isinstance(network, Refused):
        return None
    last, factor = 0, None
    for number, step in enumerate(_before_first_layer(network)):
        if isinstance(step, Scale):
            last, factor = number, step.factor if factor is None else factor * step.factor
    if factor is None:
        return None
    behind = network.steps[last + 1 :]
    read = [network.output, *(i for later in behind for i in later.inputs)]
    return 1 / float(factor.abs().max()) if min(read) > last else None


def _before_first_layer(network: Network) -> Iterator[Any]:
    for step in network.steps:
        if isinstance(step, Linear):
            return
        yield step


def _selecting(cell: Cell, name: str, norm: float) -> tuple[str, ...]:
    selection = cell.benchmark.selection
    same = selection != "last" and selection.name == name and selection.norm == norm
    return (SELECTION,) if same else ()


def _refused(row: Row, reason: str) -> Measured:
    return _without(row, "refused", reason)


def _without(row: Row, status: str, reason: str) -> Measured:
    """Return a row that says why there is no value; the reason is its last flag."""
    return Measured(rows=[replace(row, status=status, flags=(*row.flags, _flag(reason)))])


def _flag(text: str) -> str:
    return text.replace(";", ",").replace("\n", " ")
