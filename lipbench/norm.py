"""The three norms in which distances and Lipschitz constants are measured."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class Norm(float):
    """The p-norm for p = 1, 2 or infinity; it compares and prints like the number p."""

    def __new__(cls, p: float | int) -> "Norm":
        """Return the norm, or refuse any other p.

        Raises:
            ValueError: If `p` is not 1, 2 or infinity.
        """
        if p not in (1, 2, math.inf):
            raise ValueError(f"norm must be 1, 2 or inf, got {p!r}.")
        return super().__new__(cls, p)

    def __repr__(self) -> str:
        return "inf" if self == math.inf else str(int(self))

    __str__ = __repr__

    def length(self, vectors: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the norm of each sample, all its axes taken as one vector."""
        return torch.linalg.vector_norm(vectors.flatten(1), ord=float(self), dim=1)

    def scaled_length(self, vectors: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Return the norm of each sample in float64, where squares may overflow or vanish.

        Where they do not it has the bits of `length`.
        """
        rows = vectors.flatten(1).double()
        if self != 2.0 or not rows.shape[1]:
            return self.length(rows)
        _, exponents = rows.abs().amax(dim=1).frexp()
        # In two steps: a power of 2 may itself overflow. Neither changes a digit.
        halves = torch.stack([exponents.div(2, rounding_mode="floor"), (exponents + 1) // 2])
        up, down = (torch.ldexp(rows.new_ones(halves.shape), sign * halves) for sign in (1, -1))
        scaled = rows * down[0].unsqueeze(1) * down[1].unsqueeze(1)
        return self.length(scaled) * up[0] * up[1]

    def dual(self) -> "Norm":
        """Return the norm q with 1/p + 1/q = 1, in which gradients are measured."""
        return {1: Norm(math.inf), 2: Norm(2), math.inf: Norm(1)}[self]

    def margin_factor(self) -> float:
        """Return 2^(1-1/p): a gap between two outputs of an L-Lipschitz map changes by ≤ this·L."""
        return 2.0 ** (1 - 1 / self) if self != math.inf else 2.0


NORMS = frozenset(map(Norm, (1, 2, math.inf)))
"""All three norms, for what has no preference."""


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
