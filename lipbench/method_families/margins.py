"""Margins against a Lipschitz constant: logits raised by what a move of the input allows.

A method that trains with them keeps in its state the share of its radius that is due, and how many
samples of an epoch's batches passed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lipbench.method import Summary


def of_rows(
    table: Float[Tensor, "classes columns"], rows: Int[Tensor, " batch"]
) -> Float[Tensor, "batch columns"]:
    """Return the row of each sample."""
    # Not table[rows], whose gradient a GPU adds up in any order.
    return _one_hot(rows, len(table)).to(table.dtype) @ table


def bottom(
    logits: Float[Tensor, "batch classes"],
    classes: Int[Tensor, " batch"],
    rises: Float[Tensor, "batch classes"],
) -> Float[Tensor, " batch"]:
    """Return the logit of ⊥: the largest that a class other than the sample's can rise to.

    Where it is below the logit of that class, no move that the rises allow for changes the class.
    """
    return (logits + rises).masked_fill(_one_hot(classes, logits.shape[1]), -torch.inf).amax(dim=1)


def safe(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    rises: Float[Tensor, "batch classes"],
) -> Bool[Tensor, " batch"]:
    """Return whether the label's logit is above all that others can rise to."""
    label_logits = logits.take_along_dim(labels.unsqueeze(1), dim=1).squeeze(1)
    return bottom(logits, labels, rises) < label_logits


def start(like: Tensor, first: float) -> dict[str, Tensor]:
    """Return what the state of a method begins with: the share `first`, and nothing counted."""
    share = like.new_tensor(first)
    return {"share": share, "passed": torch.zeros_like(share), "seen": torch.zeros_like(share)}


def restarted(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the counts with which an epoch begins."""
    return {name: torch.zeros_like(state[name]) for name in ("passed", "seen")}


def counted(state: Mapping[str, Any], passed: Bool[Tensor, " batch"]) -> dict[str, Tensor]:
    """Return the counts after a batch."""
    return {"passed": state["passed"] + passed.sum(), "seen": state["seen"] + len(passed)}


def grown(
    state: Mapping[str, Any], summary: Summary, first: float, ramp: float
) -> dict[str, Tensor]:
    """Return the share that is due in the epoch after this one.

    It grows in a straight line from `first` in the first epoch to 1 after the share `ramp` of all
    epochs.
    """
    done = 1.0 if ramp == 0 else min(1.0, summary.epoch / (ramp * summary.epochs))
    return {"share": torch.full_like(state["share"], first + (1 - first) * done)}


def report(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of an epoch's samples that passed, each in the step that saw it."""
    return {"batch_certified": float(state["passed"] / state["seen"])}


def _one_hot(rows: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=rows.device) == rows.unsqueeze(1)
