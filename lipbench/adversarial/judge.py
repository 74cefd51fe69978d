"""Judge attacks: the core decides what counts as a success, and trusts nobody."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.attack_results import extended, sliced, survivors, unattacked
from lipbench.adversarial.draws import Draws
from lipbench.adversarial.problem import Problem
from lipbench.adversarial.proposals import attacked
from lipbench.adversarial.queries import Lot
from lipbench.adversary import Attack, AttackResult, Classifier
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
    problem = Problem(model=model, inputs=inputs, labels=labels, threat=threat, lot=lot)
    result = unattacked(model, inputs, labels, batch_size)
    left = survivors(result)
    return extended(result, left, attacked(attack, problem.only(left), rng, batch_size))


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
    threat = _no_room(norm, domain, inputs)
    problem = Problem(model=model, inputs=inputs, labels=labels, threat=threat, lot=lot)
    return _widen(attack, problem, epsilons, rng, batch_size)


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
        group = range(start, min(start + together, len(networks)))
        lot = _lot(len(group), len(inputs), [rngs[number] for number in group])
        problem = _joint(networks, group, inputs, labels, _no_room(norm, domain, inputs), lot)
        outcomes = _widen(attack, problem, epsilons, rngs[start], batch_size)
        results += _by_network(outcomes, len(group), len(inputs))
    return results


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
        index=torch.arange(samples).repeat(networks),
        draws=[Draws(rng, samples) for rng in rngs],
    )


def _no_room(norm: Norm, domain: Box | None, inputs: Tensor) -> Threat:
    """Return the threat model of epsilon 0, which the search for the right one begins with."""
    zeros = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    return Threat(norm=norm, epsilon=zeros, domain=domain)


def _joint(
    networks: Networks, group: range, inputs: Tensor, labels: Tensor, threat: Threat, lot: Lot
) -> Problem:
    """Return the problem of some networks one after the other, each with all the samples."""
    count = len(group)
    return Problem(
        model=networks.classifier(lot.owner.to(inputs.device) + group.start),
        inputs=inputs.repeat(count, *[1] * (inputs.ndim - 1)),
        labels=labels.repeat(count),
        threat=replace(threat, epsilon=threat.epsilon.repeat(count)),
        lot=lot,
    )


def _by_network(
    results: Sequence[AttackResult], networks: int, samples: int
) -> list[list[AttackResult]]:
    return [
        [sliced(result, slice(network * samples, (network + 1) * samples)) for result in results]
        for network in range(networks)
    ]


def _widen(
    attack: Attack,
    problem: Problem,
    epsilons: Sequence[float | int],
    rng: torch.Generator,
    batch_size: int,
) -> list[AttackResult]:
    """Return the outcome for each epsilon; the smaller ones are tried first."""
    order = sorted(range(len(epsilons)), key=epsilons.__getitem__)
    if order:
        _refuse(attack, problem.inputs, problem.within(_radii(epsilons)).threat)
    results: dict[int, AttackResult] = {}
    outcome = unattacked(problem.model, problem.inputs, problem.labels, batch_size)
    while order:
        left = survivors(outcome)
        room = max(batch_size // max(len(left), 1), 1) if attack.samplewise else 1
        group, order = order[:room], order[room:]
        radii = [epsilons[number] for number in group]
        tried = _try(attack, problem, left, radii, rng, batch_size)
        for number, result in zip(group, tried, strict=True):
            outcome = results[number] = extended(outcome, left, result)
    return [results[number] for number in range(len(epsilons))]


def _try(
    attack: Attack,
    problem: Problem,
    left: Tensor,
    epsilons: Sequence[float | int],
    rng: torch.Generator,
    batch_size: int,
) -> list[AttackResult]:
    """Return the outcome for the samples that are left, for each epsilon, tried all at once."""
    count = len(epsilons)
    # The radii of a sample side by side, so that samples stay in the order of their networks.
    widened = problem.only(left.repeat_interleave(count)).within(_radii(epsilons).repeat(len(left)))
    tried = attacked(attack, widened, rng, batch_size)
    return [sliced(tried, slice(start, None, count)) for start in range(count)]


def _radii(epsilons: Sequence[float | int]) -> Tensor:
    return torch.tensor(epsilons, dtype=torch.float64)
