"""Results of attacks: of none, and of one after another."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.adversarial.queries import on_rows
from lipbench.adversary import AttackResult, Classifier, NonFiniteLogits
from lipbench.data.splits import Batch
from lipbench.networks.modes import evaluation_mode


def unattacked(
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    batch_size: int,
) -> AttackResult:
    """Return the outcome of no attack, in evaluation mode.

    Raises:
        NonFiniteLogits: If some logits are infinite or NaN.
    """
    with evaluation_mode(model):
        broken = ~_correct(model, inputs, labels, batch_size)
    return AttackResult(
        inputs=inputs.detach().clone(),
        success=broken,
        distance=torch.where(broken, 0.0, torch.inf).double(),
        queries=torch.zeros(len(inputs), dtype=torch.int64),
    )


def survivors(result: AttackResult) -> Int[Tensor, " left"]:
    """Return the indices of the samples that no attack has broken."""
    return (~result.success).nonzero().squeeze(1)


def extended(
    result: AttackResult, rows: Int[Tensor, " some"], update: AttackResult
) -> AttackResult:
    """Return the outcome after a further attack on the samples `rows`, which gave `update`.

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
    extended.queries[rows.cpu()] += update.queries * open_.cpu()
    new = update.success & open_
    extended.inputs[rows[new]] = update.inputs[new]
    extended.success[rows[new]] = True
    extended.distance[rows[new]] = update.distance[new]
    return extended


def sliced(result: AttackResult, rows: slice) -> AttackResult:
    """Return the outcome of some samples."""
    return AttackResult(
        inputs=result.inputs[rows],
        success=result.success[rows],
        distance=result.distance[rows],
        queries=result.queries[rows],
    )


def _correct(
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
