"""Audit a network, whoever trained it: what is proved of it, and what is refuted."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lipbench.adversarial.judge import BATCH_SIZE, judge_epsilons
from lipbench.adversarial.samples import (
    TwoClasses,
    checked_inputs,
    checked_labels,
    classifier_of,
)
from lipbench.adversarial.self_check import self_check
from lipbench.adversary import Attack, AttackInvalid, Classifier, NonFiniteLogits
from lipbench.audit.blackbox import MARGIN, MeasuredQuotient, Unmeasurable, measure
from lipbench.audit.steadiness import Steadiness
from lipbench.data.splits import Batch
from lipbench.lipschitz.bracket import Bracket, Computed, Unsound, bracket
from lipbench.lipschitz.certified_radius import certified_accuracy, certified_radius, gaps
from lipbench.lipschitz.relaxations.balls import local_radius
from lipbench.lipschitz.soundness import broken_certificates
from lipbench.method import Claim
from lipbench.networks.network import Network, as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.registry import load
from lipbench.seeds import stream
from lipbench.threat import Box

Verdict = Literal["refuted", "proved", "open"]

MEASURED = "measured"
"""What the bound is called that the network itself was asked for."""

EPSILONS = {Norm(1): (1.0, 4.0), Norm(2): (0.25, 0.5, 1.0), Norm(math.inf): (0.01, 0.03, 0.1)}
"""Radii in pixel units at which accuracy is measured if none are given."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Samples of a data set, in pixel units."""

    name: str
    inputs: Float[Tensor, "samples *shape"]
    labels: Int[Tensor, " samples"]
    box: Box | None
    """Smallest and largest entry of a valid input, which holds attacks."""
    remarks: tuple[str, ...] = ()
    """What is to be known of them."""


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Accuracy at one radius: certified ≤ true robust accuracy ≤ attacked."""

    epsilon: float
    attacked: float | None
    """Share of samples that no attack broke; None if none could be made."""
    certified: float | None
    """Share that provably cannot be broken; None without a bound on all of space."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Clean accuracy on a data set, and robustness at each radius."""

    data: str
    samples: int
    clean: float
    at: tuple[Robustness, ...]
    remarks: tuple[str, ...] = ()
    """Why something is missing."""


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Two inputs that expand by more than a claim allows."""

    u: Float[Tensor, "*shape"]
    v: Float[Tensor, "*shape"]
    quotient: float
    """‖f(u) - f(v)‖ / ‖u - v‖ at least, all rounding accounted for, if it was not measured."""
    found_by: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The bounds of a network, and what follows for its claim and its accuracy."""

    norm: Norm
    domain: Box | None
    bracket: Bracket
    claim: Claim | None
    verdict: Verdict | None
    """Of the claim, if there is one."""
    witness: Witness | None
    """Of the refutation; None if a whole search refuted the claim and no pair was found."""
    accuracy: Accuracy | None
    measured: MeasuredQuotient | None = None
    """What the network was asked if it could not be read: the lower bound is no proof then, and
    there is no upper one."""
    marks: tuple[str, ...] = ()
    """What of the network was tested and not proved: all that is proved here rests on it."""
    remarks: tuple[str, ...] = ()
    """What shows that the network is no function of its input: then nothing is proved of it."""


def audit(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    norm: float | int = 2,
    domain: Box | None = None,
    claims: float | int | None = None,
    tolerance: float | int = 0.0,
    data: Labelled | None = None,
    epsilons: Sequence[float | int] | None = None,
    time_limit: float | int = 60,
    seed: int = 0,
) -> Audit:
    """Return bounds of a network's Lipschitz constant, and what they say of a claim and of data.

    Of a network with a layer that no rule covers, nothing can be proved. It is asked instead: the
    lower bound is then a quotient as the network itself computes it in float64, less a measured
    error, and flagged `unverified`. A claim is refuted by it only where it is exceeded by `MARGIN`
    more. Nor is anything proved of a network that does not answer an input in one way.

    Args:
        model: The network in evaluation mode; if it normalises its inputs, with that as a layer.
        input_shape: Shape of one input, without the batch.
        norm: 1, 2 or infinity, for inputs, outputs, and the balls of attacks.
        domain: Smallest and largest entry of the inputs that count; None is all of space.
        claims: A constant that the network is said not to exceed.
        tolerance: Share of it by which it may be exceeded, less than 1.
        data: Samples to measure accuracy on.
        epsilons: Radii in pixel units; None takes those of `EPSILONS`.
        time_limit: Seconds after which no further bound is begun.
        seed: Fixes everything random.

    Raises:
        Refused: If the network has a layer without a rule, or a weight that is no number, and
            gives no numbers that could be measured either.
        Unsound: If two numbers that are found cannot both be true.
        ValueError: If an argument is none of those.
    """
    kind = Norm(float(norm))
    claim = None
    if claims is not None:
        claim = Claim(norm=kind, constant=claims, domain=domain, tolerance=tolerance)
    if any(not (e >= 0 and math.isfinite(e)) for e in epsilons or ()):
        raise ValueError(f"a radius is finite and at least 0, got {list(epsilons or ())}.")
    classifier: Classifier = model
    if data is not None:
        data, classifier = _fitting(data, model)
    inputs = None if data is None else data.inputs
    steadiness = Steadiness(model, input_shape, inputs)
    network, measured = None, None
    try:
        enclosure = bracket(model, input_shape, kind, domain, time_limit, inputs)
        network = as_network(model, tuple(input_shape))
    except Refused as refusal:
        measured = _measured(refusal, model, tuple(input_shape), kind, domain, inputs, seed)
        enclosure = _asked(measured, refusal, kind, domain)
    verdict = None if claim is None else _verdict(enclosure, claim, MARGIN if measured else 0.0)
    bounds = enclosure.bounds if measured else enclosure.verified
    accuracy = None
    if data is not None:
        radii = [float(e) for e in (EPSILONS[kind] if epsilons is None else epsilons)]
        seen = network
        if network is not None and isinstance(classifier, TwoClasses):
            seen = as_network(classifier, tuple(input_shape))
        accuracy = _accuracy(classifier, seen, data, kind, domain, radii, enclosure, seed)
    remarks = steadiness.remarks()
    if remarks:
        verdict = "open" if verdict == "proved" else verdict
        accuracy = None if accuracy is None else _uncertified(accuracy)
    return Audit(
        norm=kind,
        domain=domain,
        bracket=enclosure,
        claim=claim,
        verdict=verdict,
        witness=_witness(bounds, claim) if claim and verdict == "refuted" else None,
        accuracy=accuracy,
        measured=measured,
        marks=() if network is None else network.flags,
        remarks=remarks,
    )


def _fitting(data: Labelled, model: nn.Module) -> tuple[Labelled, Classifier]:
    """Return data and a classifier that fit each other.

    Raises:
        ValueError: If they do not.
    """
    try:
        data = replace(data, inputs=checked_inputs(data.inputs))
        data = replace(data, labels=checked_labels(data.labels, data.inputs))
        return data, classifier_of(model, data.inputs, data.labels)
    except ValueError as error:
        raise ValueError(f"{data.name}: {error}") from error


def labelled(name: str, input_shape: tuple[int, ...], size: int, like: Tensor) -> Labelled:
    """Load the first test samples of an installed data set, which is fetched if it is absent.

    Args:
        name: The data set.
        input_shape: Shape of one input, as many numbers as the data have.
        size: How many samples at most.
        like: A tensor of the network, whose type and device the inputs take.

    Returns:
        The samples, in the shape that a network takes.

    Raises:
        DataMissing: If it cannot be had.
        PluginError: If there is no such data set.
        ValueError: If it has no classes, or inputs of another size.
    """
    from lipbench.data.loading import load as load_data
    from lipbench.dataset import Dataset

    dataset = load("lipbench.datasets", name, Dataset)()
    if dataset.task != "classification":
        raise ValueError(f"{name} has no classes: accuracy needs a data set that does.")
    if math.prod(dataset.input_shape) != math.prod(input_shape):
        raise ValueError(
            f"inputs of {name} have shape {tuple(dataset.input_shape)}, which is not "
            f"{tuple(input_shape)} in another order."
        )
    data = load_data(dataset, like.device, like.dtype)
    return Labelled(
        name=name,
        inputs=data.test.inputs[:size].reshape(-1, *input_shape),
        labels=data.test.targets[:size],
        box=data.box,
        remarks=data.shared_test_inputs,
    )


def _measured(
    refusal: Refused,
    model: nn.Module,
    input_shape: tuple[int, ...],
    norm: Norm,
    domain: Box | None,
    inputs: Tensor | None,
    seed: int,
) -> MeasuredQuotient:
    """Return the measured difference quotient of a network that could not be read.

    Raises:
        Refused: If it gives no numbers that could be measured.
    """
    try:
        return measure(model, input_shape, norm, domain, inputs, seed)
    except Unmeasurable as error:
        raise Refused(f"{refusal} Nor can it be measured: {error}") from error


def _asked(measured: MeasuredQuotient, refusal: Refused, norm: Norm, domain: Box | None) -> Bracket:
    """Return the bracket of a black-box network: its quotient below, and no upper bound."""
    bound = Computed(
        name=MEASURED,
        value=measured.quotient,
        side="lower",
        norm=norm,
        domain=domain,
        seconds=measured.seconds,
        flags=("unverified",),
        proof={"u": measured.u, "v": measured.v},
    )
    return Bracket(
        lower=measured.quotient,
        upper=math.inf,
        bounds=(bound,),
        refused={"all that reads layers": str(refusal)},
    )


def _verdict(enclosure: Bracket, claim: Claim, margin: float) -> Verdict:
    if enclosure.lower > claim.allowed * (1 + margin):
        return "refuted"
    return "proved" if enclosure.upper <= claim.allowed else "open"


def _witness(bounds: Iterable[Computed], claim: Claim) -> Witness | None:
    """Return the pair that expands most, if it expands by more than is claimed."""
    pairs = [b for b in bounds if b.side == "lower" and {"u", "v"} <= set(b.proof)]
    if not pairs:
        return None
    best = max(pairs, key=lambda bound: bound.value)
    if not best.value > claim.allowed:
        return None
    return Witness(u=best.proof["u"], v=best.proof["v"], quotient=best.value, found_by=best.name)


def _accuracy(
    model: Classifier,
    network: Network | None,
    data: Labelled,
    norm: Norm,
    domain: Box | None,
    epsilons: Sequence[float],
    enclosure: Bracket,
    seed: int,
) -> Accuracy:
    with torch.no_grad():
        batches = zip(data.inputs.split(BATCH_SIZE), data.labels.split(BATCH_SIZE), strict=True)
        correct = torch.cat([Batch(x, y).correct(model(x)) for x, y in batches])
    remarks = list(data.remarks)
    radius = None
    if domain is not None:
        remarks.append("certified accuracy needs bounds on all of space: leave the domain out.")
    elif network is None:
        remarks.append("certified accuracy needs an upper bound, and there is none.")
    elif math.isfinite(enclosure.upper):
        radius = _radius(network, data, norm, epsilons, enclosure)
    if radius is not None and network is not None and network.flags:
        remarks.append(f"what is certified rests on what is marked: {'; '.join(network.flags)}.")
    attacked: list[float | None] = [None] * len(epsilons)
    attack: Any = load("lipbench.attacks", "pgd", Attack)
    if norm not in attack.norms:
        remarks.append(f"pgd attacks in the norms 2 and inf, not in norm {norm}.")
    elif epsilons:
        try:
            attacked = list(_attacked(attack(), model, network, data, norm, epsilons, radius, seed))
        except (AttackInvalid, NonFiniteLogits) as error:
            remarks.append(f"the attack found nothing that counts: {error}")
    certified = [None if radius is None else certified_accuracy(radius, e) for e in epsilons]
    return Accuracy(
        data=data.name,
        samples=len(data.labels),
        clean=float(correct.double().mean()),
        at=tuple(
            Robustness(epsilon=e, attacked=a, certified=c)
            for e, a, c in zip(epsilons, attacked, certified, strict=True)
        ),
        remarks=tuple(remarks),
    )


def _uncertified(accuracy: Accuracy) -> Accuracy:
    """Return the accuracy of what is no function, of which nothing is certain."""
    remark = "certified accuracy is of a function of the input, and the network is none."
    at = tuple(replace(robustness, certified=None) for robustness in accuracy.at)
    return replace(accuracy, at=at, remarks=(*accuracy.remarks, remark))


def _radius(
    network: Network, data: Labelled, norm: Norm, epsilons: Sequence[float], enclosure: Bracket
) -> Tensor:
    """Return for each sample the largest radius that an upper bound or its own ball certifies."""
    logit_gaps = gaps(network, data.inputs, data.labels)
    uppers = [bound.lipschitz for bound in enclosure.verified if bound.side in ("upper", "exact")]
    radii = [certified_radius(logit_gaps, data.labels, network, upper) for upper in uppers]
    with suppress(Refused):  # too large for it: then one constant for all has to do
        radii.append(local_radius(network, norm, data.inputs, data.labels, logit_gaps, epsilons))
    return torch.stack(radii).amax(dim=0)


def _attacked(
    attack: Attack,
    model: Classifier,
    network: Network | None,
    data: Labelled,
    norm: Norm,
    epsilons: Sequence[float],
    radius: Tensor | None,
    seed: int,
) -> Sequence[float]:
    """Return the accuracy under attack at each radius.

    Raises:
        Unsound: If one of them is certified and was broken.
    """
    rng = stream(seed, "attack", "pgd", "check")
    self_check(attack, model, data.inputs, data.labels, norm, data.box, rng)
    rng = stream(seed, "attack", "pgd", str(norm))
    results = judge_epsilons(attack, model, data.inputs, data.labels, norm, epsilons, data.box, rng)
    for result in results if radius is not None else ():
        assert radius is not None
        assert network is not None
        broken = broken_certificates(network, data.inputs, data.labels, result.inputs, radius, norm)
        if broken:
            raise Unsound(" ".join(violation.message for violation in broken))
    return [float((~result.success).double().mean()) for result in results]
