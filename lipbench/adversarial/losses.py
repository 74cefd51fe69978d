"""Losses that attacks maximise: margin, log-odds of an error, scale-free, KL divergence.

Each returns one number per sample, to be maximised, works under vmap, and is defined for two
classes or more. Attacks step along normalised gradients, so only directions matter.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def margin(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the largest wrong logit minus that of the label: positive where misclassified."""
    label_logit, wrong = _split(logits, labels)
    return wrong.amax(dim=1) - label_logit


def error_odds(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the log-odds of a wrong class, log((1 - p) / p), p the softmax of the label.

    Cross entropy is log(1 + exp(this)): both have the same order and parallel gradients, but
    this one does not underflow where the network is sure.
    """
    label_logit, wrong = _split(logits, labels)
    return wrong.logsumexp(dim=1) - label_logit


def scale_free_error_odds(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return `error_odds` of the logits in units of their spread, which counts as constant.

    The gradient is that of cross entropy at a temperature at which every class has its say, so
    that it differs from the gradient of the margin even for a network that is always sure.
    """
    spread = logits.detach().std(dim=1, correction=0, keepdim=True)
    return error_odds(logits / torch.where(spread > 0, spread, torch.ones_like(spread)), labels)


def lead(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    rivals: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return the logit of one wrong class each, `rivals`, minus that of the label."""
    pair = logits.take_along_dim(torch.stack([rivals, labels], dim=1), dim=1)
    return pair[:, 0] - pair[:, 1]


def divergence(
    logits: Float[Tensor, "batch classes"], others: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """Return KL(p ‖ q) in nats, p and q the softmax of `logits` and of `others`.

    It is at least 0, up to rounding, and 0 where both agree.
    """
    log_p, log_q = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels.unsqueeze(1)
    label_logit = logits.take_along_dim(labels.unsqueeze(1), dim=1).squeeze(1)
    return label_logit, logits.masked_fill(is_label, -torch.inf)
