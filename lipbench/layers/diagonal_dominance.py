"""Diagonal dominance: rescaling of weights by absolute row sums of Gram matrices (AOL, SLL).

A Hermitian matrix with nonnegative diagonal entries that are at least the sums of the absolute
values beside them is positive semidefinite. So is diag(t) - WᵀW with t_i = Σ_j |WᵀW|_ij·q_j/q_i
for q > 0: it is so after the change of basis diag(q), which makes of it, with signs aside, a matrix
whose row sums are 0. Hence W·diag(t)^(-1/2) has the l2 norm 1 at most.

For a convolution on an endless grid the sum is over channels j and all shifts of one kernel
against the other. Zeros around an image and a stride only leave rows and columns out, other
dilations only spread the taps, and on an image that is periodic the entries of shifts that meet are
added: none of these makes the sum larger.

Source:
    Prach, Lampert, Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks
    (ECCV 2022), https://arxiv.org/abs/2208.03160, theorems 1 and 2, with q = 1. Araujo, Havens,
    Delattre, Allauzen, Hu, A Unified Algebraic Perspective on Lipschitz Neural Networks (ICLR
    2023), https://arxiv.org/abs/2303.03169, for SDP-based layers, with q.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def column_sums(
    weight: Float[Tensor, "out in *kernel"], log_q: Float[Tensor, " in"] | None = None
) -> Float[Tensor, " in"]:
    """Return t_i = Σ_j |WᵀW|_ij·q_j/q_i, for a convolution summed over shifts too.

    This is pure tensor code that runs under `torch.func.vmap`.

    Args:
        weight: A matrix, or the kernel of a convolution in two dimensions.
        log_q: Logarithms of q; None is q = 1.
    """
    if weight.ndim == 2:
        gram = (weight.mT @ weight).abs()
    else:
        kernels = weight.transpose(0, 1)
        reach = kernels.shape[2] - 1, kernels.shape[3] - 1
        gram = F.conv2d(kernels, kernels, padding=reach).abs().sum(dim=(2, 3))
    if log_q is None:
        return gram.sum(dim=1)
    return (gram * (log_q - log_q.unsqueeze(1)).exp()).sum(dim=1)


def rescaled(
    weight: Float[Tensor, "out in *kernel"],
    log_q: Float[Tensor, " in"] | None = None,
) -> Float[Tensor, "out in *kernel"]:
    """Return W·diag(t)^(-1/2), whose l2 norm is at most 1; columns of zeros stay zero."""
    sums = column_sums(weight, log_q)
    # Of a column that is 0 the sum is 0, and any positive number will do.
    factor = torch.where(sums > 0, sums, 1.0).rsqrt()
    return weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))


def rescaled_by_fewer(
    weight: Float[Tensor, "out in *kernel"],
    log_q: Float[Tensor, " fewer"] | None = None,
) -> Float[Tensor, "out in *kernel"]:
    """Return `rescaled` W, or where there are fewer outputs than inputs the same of Wᵀ.

    The norm of a matrix is that of its transpose. Columns that are more than rows cannot be
    orthogonal, and would lose most of their norm.
    """
    if weight.shape[0] < weight.shape[1]:
        return rescaled(weight.transpose(0, 1), log_q).transpose(0, 1)
    return rescaled(weight, log_q)
