"""Judge attacks: the core decides what counts as a success, and trusts nobody."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.adversarial.draws import Draws
from lipbench.adversarial.guard import guarded
from lipbench.adversarial.queries import Counted, Lot, on_rows
from lipbench.adversary import Attack, AttackInvalid, AttackResult, Classifier, NonFiniteLogits
from lipbench.data.splits import Batch
from lipbench.networks.modes import evaluation_mode
from lipbench.networks.network_stack import Networks
from lipbench.norm import Norm
from lipbench.threat import Box, Threat

BATCH_SIZE = 1000
"""Samples at a time: larger batches are no faster on a CPU."""


def judge(
    attack: Attack,
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    threat: Threat,
    rng: torch.Generator,
    *,
    batch_size: int = BATCH_SIZE,
) -> AttackResult:
    """Return what `attack` achieves against `model`.

    Only inputs that are classified correctly are attacked. Proposals are projected onto the
    threat model and classified anew, in evaluation mode. Model, inputs and the global random
    state are left as they were.

    An attack that proposes something of the wrong shape or not finite, or that changes the
    inputs or the model, ends in AttackInvalid; clean logits that are not finite in
    NonFiniteLogits; a norm that the attack does not know, or inputs outside the domain, in
    ValueError.
    """
    _refuse(attack, inputs, threat)
    lot = _lot(1, len(inputs), [rng])
    result = _clean(model, inputs, labels, batch_size)
    left = (~result.success).nonzero().squeeze(1)
    part = inputs[left], labels[left], threat.only(left), lot.only(left)
    tried = _attack(attack, on_rows(model, left), *part, rng, batch_size)
    return _extend(result, left, tried)


def judge_epsilons(
    attack: Attack,
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    epsilons: Sequence[float | int],
    domain: Box | None,
    rng: torch.Generator,
    *,
    batch_size: int = BATCH_SIZE,
) -> list[AttackResult]:
    """Return the outcome for each epsilon, in the order of `epsilons`; errors as `judge`.

    An input broken at some epsilon stays broken, by the same adversarial input, at all larger
    ones. So accuracy never rises with epsilon. Queries count what was spent on a sample up to and
    including its epsilon. Where a batch has room for more samples than are left, and the attack
    is `samplewise`, several epsilons are tried at once; else only what is left is attacked again.
    """
    lot = _lot(1, len(inputs), [rng])
    part = attack, model, inputs, labels, lot, norm, epsilons, domain, rng
    return _judge_epsilons(*part, batch_size)


def judge_networks(
    attack: Attack,
    networks: Networks,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    epsilons: Sequence[float | int],
    domain: Box | None,
    rngs: Sequence[torch.Generator],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[list[AttackResult]]:
    """Return what `judge_epsilons` returns for each network; errors as `judge`.

    A `samplewise` attack works on as many networks at once as have room in a batch, with the
    generators in the order of the networks; any other on one after the other.
    """
    together = max(1, batch_size // max(len(inputs), 1)) if attack.samplewise else 1
    results: list[list[AttackResult]] = []
    for start in range(0, len(networks), together):
        numbers = range(start, min(start + together, len(networks)))
        lot = _lot(len(numbers), len(inputs), [rngs[number] for number in numbers])
        found = _judge_epsilons(
            attack,
            networks.joint(lot.owner.to(inputs.device) + start),
            inputs.repeat(len(numbers), *[1] * (inputs.ndim - 1)),
            labels.repeat(len(numbers)),
            lot,
            norm,
            epsilons,
            domain,
            rngs[start],
            batch_size,
        )
        size = len(inputs)
        for place in range(len(numbers)):
            own = slice(place * size, (place + 1) * size)
            results.append([_part(result, own) for result in found])
    return results


def worst_case(results: Sequence[AttackResult]) -> AttackResult:
    """Return the success at the smallest distance for each sample; queries are summed.

    Raises:
        ValueError: If there are no results.
    """
    if not results:
        raise ValueError("the worst case of no attack at all is not defined: give one result.")
    best = torch.stack([result.distance for result in results]).argmin(dim=0)
    sample = torch.arange(len(best), device=best.device)
    return AttackResult(
        inputs=torch.stack([result.inputs for result in results])[best, sample],
        success=torch.stack([result.success for result in results])[best, sample],
        distance=torch.stack([result.distance for result in results])[best, sample],
        queries=torch.stack([result.queries for result in results]).sum(dim=0),
    )


def self_check(
    attack: Attack,
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    domain: Box | None,
    rng: torch.Generator,
) -> None:
    """Check, on the first 64 samples, that an attack with epsilon 0 changes no verdict.

    A model that answers at random or an attack that divides by epsilon do not pass.

    Raises:
        AttackInvalid: If it does, or as `judge`.
    """
    part = inputs[:64], labels[:64], norm, [0.0], domain, rng
    (attacked,) = judge_epsilons(attack, model, *part)
    _compare(attack, model, inputs[:64], labels[:64], attacked)


def check_networks(
    attack: Attack,
    networks: Networks,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    norm: Norm,
    domain: Box | None,
    rngs: Sequence[torch.Generator],
) -> None:
    """Do the check of `self_check` for each network.

    Raises:
        AttackInvalid: If it fails for one, or as `judge`.
    """
    inputs, labels = inputs[:64], labels[:64]
    found = judge_networks(attack, networks, inputs, labels, norm, [0.0], domain, rngs)
    for number, (attacked,) in enumerate(found):
        _compare(attack, networks.alone(number), inputs, labels, attacked)


def _compare(
    attack: Attack, model: Classifier, inputs: Tensor, labels: Tensor, attacked: AttackResult
) -> None:
    with evaluation_mode(model):
        clean = _clean_correct(model, inputs, labels, len(inputs))
    if not torch.equal(clean, ~attacked.success):
        raise AttackInvalid(
            f"with epsilon 0, {type(attack).__name__} leaves {int((~attacked.success).sum())} of "
            f"{len(inputs)} inputs correct, but {int(clean.sum())} are: is the model random?"
        )


def _refuse(attack: Attack, inputs: Tensor, threat: Threat) -> None:
    if threat.norm not in attack.norms:
        known = ", ".join(str(norm) for norm in sorted(attack.norms))
        raise ValueError(
            f"{type(attack).__name__} works in the norms {known}, got norm {threat.norm}."
        )
    if not bool(((threat.epsilon >= 0) & threat.epsilon.isfinite()).all()):
        raise ValueError(f"epsilon must be finite and at least 0, got {threat.epsilon.min()}.")
    if threat.domain is None or not inputs.numel():
        return
    low, high = inputs.aminmax()
    if low < threat.domain[0] or high > threat.domain[1]:
        raise ValueError(
            f"inputs reach from {low:g} to {high:g}, outside the domain {threat.domain}: give "
            "inputs in pixel units, normalisation being a layer of the model, or another domain."
        )


def _lot(networks: int, samples: int, rngs: Sequence[torch.Generator]) -> Lot:
    return Lot(
        owner=torch.arange(networks).repeat_interleave(samples),
        place=torch.arange(samples).repeat(networks),
        draws=[Draws(rng, samples) for rng in rngs],
    )


def _judge_epsilons(
    attack: Attack,
    model: Classifier,
    inputs: Tensor,
    labels: Tensor,
    lot: Lot,
    norm: Norm,
    epsilons: Sequence[float | int],
    domain: Box | None,
    rng: torch.Generator,
    batch_size: int,
) -> list[AttackResult]:
    order = sorted(range(len(epsilons)), key=epsilons.__getitem__)
    if order:
        _refuse(attack, inputs, _threat(norm, epsilons, 1, domain, inputs))
    results: dict[int, AttackResult] = {}
    found = _clean(model, inputs, labels, batch_size)
    while order:
        left = (~found.success).nonzero().squeeze(1)
        room = batch_size // max(len(left), 1) if attack.samplewise else 1
        group, order = order[: max(room, 1)], order[max(room, 1) :]
        # The radii of a sample side by side, so that samples stay in the order of their networks.
        rows = left.repeat_interleave(len(group))
        threat = _threat(norm, [epsilons[number] for number in group], len(left), domain, inputs)
        part = inputs[rows], labels[rows], threat, lot.only(rows.cpu())
        tried = _attack(attack, on_rows(model, rows), *part, rng, batch_size)
        for place, number in enumerate(group):
            found = _extend(found, left, _part(tried, slice(place, None, len(group))))
            results[number] = found
    return [results[number] for number in range(len(epsilons))]


def _threat(
    norm: Norm, epsilons: Sequence[float | int], samples: int, domain: Box | None, like: Tensor
) -> Threat:
    radii = torch.tensor(epsilons, dtype=torch.float64).repeat(samples)
    return Threat(norm=norm, epsilon=radii.to(like.device), domain=domain)


def _clean(model: Classifier, inputs: Tensor, labels: Tensor, batch_size: int) -> AttackResult:
    """Return the outcome of no attack."""
    with evaluation_mode(model):
        broken = ~_clean_correct(model, inputs, labels, batch_size)
    return AttackResult(
        inputs=inputs.detach().clone(),
        success=broken,
        distance=torch.where(broken, 0.0, torch.inf).double(),
        queries=torch.zeros(len(inputs), dtype=torch.int64),
    )


def _clean_correct(
    model: Classifier, inputs: Tensor, labels: Tensor, batch_size: int
) -> Bool[Tensor, " batch"]:
    correct = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    for rows in torch.arange(len(inputs), device=inputs.device).split(batch_size):
        with torch.no_grad():
            logits = on_rows(model, rows)(inputs[rows])
        if not logits.isfinite().all():
            unusable = int((~logits.isfinite()).any(dim=1).sum())
            raise NonFiniteLogits(
                f"{unusable} of {len(logits)} clean inputs have no finite logits."
            )
        correct[rows] = Batch(inputs[rows], labels[rows]).correct(logits).bool()
    return correct


def _attack(
    attack: Attack,
    model: Classifier,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    lot: Lot,
    rng: torch.Generator,
    batch_size: int,
) -> AttackResult:
    """Return the judged proposals for samples that are all classified correctly."""
    result = AttackResult(
        inputs=inputs,
        success=torch.zeros_like(labels, dtype=torch.bool),
        distance=torch.full_like(labels, torch.inf, dtype=torch.float64),
        queries=torch.zeros(len(inputs), dtype=torch.int64),
    )
    with guarded(model, rng, inputs.device):
        for rows in torch.arange(len(inputs), device=inputs.device).split(batch_size):
            if len(rows):
                part = inputs[rows], labels[rows], threat.only(rows), lot.only(rows.cpu())
                result = _extend(
                    result, rows, _judge_batch(attack, on_rows(model, rows), *part, rng)
                )
    return result


def _judge_batch(
    attack: Attack,
    model: Classifier,
    inputs: Tensor,
    labels: Tensor,
    threat: Threat,
    lot: Lot,
    rng: torch.Generator,
) -> AttackResult:
    counted = Counted(model, len(inputs), lot if attack.samplewise else None)
    given, given_labels = inputs.clone(), labels.clone()
    proposals = attack.propose(counted, given, given_labels, threat, rng)
    if not (torch.equal(given, inputs) and torch.equal(given_labels, labels)):
        raise AttackInvalid("the attack changed the clean inputs or labels in place.")
    moved = threat.confine(_checked(proposals, inputs), inputs)
    with torch.no_grad():
        success = ~Batch(moved, labels).correct(model(moved)).bool()
    distance = threat.norm.length(moved.double() - inputs.double())
    return AttackResult(
        inputs=moved,
        success=success,
        distance=distance.where(success, torch.inf),
        queries=counted.queries,
    )


def _checked(proposals: object, inputs: Tensor) -> Tensor:
    """Return the proposals, in the type of the inputs.

    Raises:
        AttackInvalid: If they cannot be judged.
    """
    if not isinstance(proposals, Tensor) or proposals.shape != inputs.shape:
        got = tuple(proposals.shape) if isinstance(proposals, Tensor) else type(proposals).__name__
        raise AttackInvalid(f"the attack must propose shape {tuple(inputs.shape)}, got {got}.")
    proposals = proposals.detach().to(inputs)
    if not proposals.isfinite().all():
        raise AttackInvalid("the attack proposed inputs that are infinite or NaN.")
    return proposals


def _part(result: AttackResult, rows: slice) -> AttackResult:
    return AttackResult(
        inputs=result.inputs[rows],
        success=result.success[rows],
        distance=result.distance[rows],
        queries=result.queries[rows],
    )


def _extend(result: AttackResult, rows: Tensor, part: AttackResult) -> AttackResult:
    """Return what is known after the samples `rows` were attacked.

    A sample that was broken already stays as it was, and what it was asked since is not counted:
    it only shared a batch. Where the attack failed, inputs stay clean.
    """
    extended = AttackResult(
        inputs=result.inputs.clone(),
        success=result.success.clone(),
        distance=result.distance.clone(),
        queries=result.queries.clone(),
    )
    open_ = ~result.success[rows]
    extended.queries[rows.cpu()] += part.queries * open_.cpu()
    new = part.success & open_
    extended.inputs[rows[new]] = part.inputs[new]
    extended.success[rows[new]] = True
    extended.distance[rows[new]] = part.distance[new]
    return extended
