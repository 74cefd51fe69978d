"""Adversarial examples as proposed: confined to the threat model, and classified anew."""

from dataclasses import replace

import torch
from torch import Tensor

from lipbench.adversarial.attack_results import extended
from lipbench.adversarial.guard import guarded
from lipbench.adversarial.problem import Problem
from lipbench.adversarial.queries import Counted
from lipbench.adversary import Attack, AttackInvalid, AttackResult
from lipbench.data.splits import Batch
from lipbench.guards.handed_over import same_bits
from lipbench.guards.process_settings import process_settings
from lipbench.threat import Threat


def attacked(
    attack: Attack, problem: Problem, rng: torch.Generator, batch_size: int
) -> AttackResult:
    """Return the judged proposals for samples that are all classified correctly.

    Raises:
        AttackInvalid: If the attack proposes what cannot be judged, or changes inputs or model.
    """
    result = _failed(problem)
    device = problem.inputs.device
    with guarded(attack, problem, rng):
        for rows in torch.arange(len(problem), device=device).split(batch_size):
            if len(rows):
                result = extended(result, rows, _attacked_batch(attack, problem.only(rows), rng))
    return result


def _failed(problem: Problem) -> AttackResult:
    """Return the outcome of an attack that breaks no sample and asks nothing."""
    return AttackResult(
        inputs=problem.inputs,
        success=torch.zeros_like(problem.labels, dtype=torch.bool),
        distance=torch.full_like(problem.labels, torch.inf, dtype=torch.float64),
        queries=torch.zeros(len(problem), dtype=torch.int64),
    )


def _attacked_batch(attack: Attack, batch: Problem, rng: torch.Generator) -> AttackResult:
    counted = Counted(batch.model, len(batch), batch.lot if attack.samplewise else None)
    moved = batch.threat.confine(_proposals(attack, counted, batch, rng), batch.inputs)
    with torch.no_grad():
        success = ~Batch(moved, batch.labels).correct(batch.model(moved)).bool()
    distance = batch.threat.norm.length(moved.double() - batch.inputs.double())
    return AttackResult(
        inputs=moved,
        success=success,
        distance=distance.where(success, torch.inf),
        queries=counted.queries,
    )


def _proposals(attack: Attack, model: Counted, batch: Problem, rng: torch.Generator) -> Tensor:
    """Return what the attack proposes, in the type of the inputs.

    Raises:
        AttackInvalid: If it cannot be judged, or the attack changed what it was given.
    """
    inputs, labels = batch.inputs.clone(), batch.labels.clone()
    threat = replace(batch.threat, epsilon=batch.threat.epsilon.clone())
    with process_settings():  # not later: what is proposed is judged in the core's own
        proposals = attack.propose(model, inputs, labels, threat, rng)
    if not (same_bits(inputs, batch.inputs) and same_bits(labels, batch.labels)):
        raise AttackInvalid("the attack changed the clean inputs or labels in place.")
    if not _is_same(threat, batch.threat):
        raise AttackInvalid("the attack changed the threat model: its epsilon, norm or domain.")
    return _checked(proposals, batch.inputs)


def _checked(proposals: object, inputs: Tensor) -> Tensor:
    if not isinstance(proposals, Tensor) or proposals.shape != inputs.shape:
        got = tuple(proposals.shape) if isinstance(proposals, Tensor) else type(proposals).__name__
        raise AttackInvalid(f"the attack must propose shape {tuple(inputs.shape)}, got {got}.")
    proposals = proposals.detach().to(inputs)
    if not proposals.isfinite().all():
        raise AttackInvalid("the attack proposed inputs that are infinite or NaN.")
    return proposals


def _is_same(threat: Threat, other: Threat) -> bool:
    same = (threat.norm, threat.domain) == (other.norm, other.domain)
    return same and same_bits(threat.epsilon, other.epsilon)
