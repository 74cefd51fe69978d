"""Vectors at which a norm, or the dual of a norm, is attained."""

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.norm import Norm


def support(vectors: Float[Tensor, "batch dim"], norm: Norm) -> Float[Tensor, "batch dim"]:
    """Return w with ⟨w, y⟩ = ‖y‖ and dual norm 1: the gradient of ‖·‖ at each y."""
    if norm == 2.0:
        return _normalised(vectors)
    return vectors.sign() if norm == 1.0 else _largest_entry(vectors)


def steepest(gradients: Float[Tensor, "batch dim"], norm: Norm) -> Float[Tensor, "batch dim"]:
    """Return d with ‖d‖ = 1 and the largest ⟨gradient, d⟩."""
    if norm == 2.0:
        return _normalised(gradients)
    return _largest_entry(gradients) if norm == 1.0 else gradients.sign()


def _normalised(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)


def _largest_entry(vectors: Tensor) -> Tensor:
    place = vectors.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(vectors).scatter(1, place, vectors.take_along_dim(place, 1).sign())
