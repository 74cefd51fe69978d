"""Orthonormalisation of matrices: Björck's iteration and the polar factor.

Source:
    Björck, Bowie, An Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix
    (SIAM Journal on Numerical Analysis 1971), of order 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_SQUARINGS = 3


def orthonormalised(
    weight: Float[Tensor, "rows columns"], iterations: int
) -> Float[Tensor, "rows columns"]:
    """Return W after steps W ← 3/2·W - 1/2·W·Wᵀ·W, which start at W divided by `norm_above`.

    They move every positive singular value towards 1, from below: 0.4 needs six steps to come
    within 1e-3, 0.1 needs ten. This is pure tensor code that runs under `torch.func.vmap`. The
    norm is held fixed in the gradient: the limit does not depend on it.
    """
    if weight.shape[0] > weight.shape[1]:
        return orthonormalised(weight.mT, iterations).mT
    weight = weight / norm_above(weight.detach())
    if 3 * weight.shape[0] > weight.shape[1]:
        for _ in range(iterations):
            weight = 1.5 * weight - 0.5 * (weight @ weight.mT) @ weight
        return weight
    # The same with products of small matrices alone: WWᵀ and what multiplies W by now.
    gram = weight @ weight.mT
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor = identity
    for _ in range(iterations):
        step = 1.5 * identity - 0.5 * gram
        factor, gram = factor @ step, step @ gram @ step
    return factor @ weight


def norm_above(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """Return an upper bound of ‖W‖₂, up to rounding, by Gram iteration; 1 for W = 0.

    It is at most n^(1/32) times the norm, n the number of rows or columns, whichever is smaller.
    """
    gram = weight @ weight.mT if weight.shape[0] < weight.shape[1] else weight.mT @ weight
    trace = gram.diagonal(dim1=-2, dim2=-1).sum()
    trace = torch.where(trace > 0, trace, 1.0)
    gram = gram / trace
    log = trace.log()
    for count in range(_SQUARINGS):
        size = torch.linalg.vector_norm(gram)
        size = torch.where(size > 0, size, 1.0)
        gram, log = gram / size, log + size.log() / 2**count
        gram = gram @ gram
    size = torch.linalg.vector_norm(gram)
    log = log + torch.where(size > 0, size, 1.0).log() / 2**_SQUARINGS
    return (log / 2).exp()


def polar(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return UVᵀ of the singular value decomposition USVᵀ, to which the steps converge.

    Where singular values are 0, any completion is returned.
    """
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left @ right
