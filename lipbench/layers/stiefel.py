"""Stiefel manifold: Cayley transform and matrix exponential onto orthonormal columns (or rows).

All are pure tensor code that runs under `torch.func.vmap`, for real and complex matrices, and map
the conjugate of a matrix to the conjugate of its image: a real kernel stays real if its symbol is
mapped frequency by frequency. A wide matrix is mapped as its adjoint, so that below M is tall.
"""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor


def cayley(matrix: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch out in"]:
    """Return the Cayley transform, with M = [U; V] and A = U - Uᴴ + VᴴV.

    It is [(I - A)(I + A)⁻¹; -2V(I + A)⁻¹]. The Hermitian part of I + A is I + VᴴV, so that the
    inverse always exists and has a norm of 1 at most. The columns are orthonormal as the two
    factors commute and (I + A)ᴴ(I + A) - (I - A)ᴴ(I - A) = 2(A + Aᴴ) = 4VᴴV.

    Source:
        Trockman, Kolter, Orthogonalizing Convolutional Layers with the Cayley Transform (ICLR
        2021), https://arxiv.org/abs/2104.07167; the reasons above are this project's.
    """

    def tall(top: Tensor, rest: Tensor) -> Tensor:
        identity = _identity(top)
        inverse = torch.linalg.inv(identity + top - top.mH + rest.mH @ rest)
        return torch.cat([2 * inverse - identity, -2 * rest @ inverse], dim=-2)

    return _mapped(matrix, tall)


def exponential(matrix: Shaped[Tensor, "*batch out in"]) -> Shaped[Tensor, "*batch out in"]:
    """Return the first columns of exp(S), with S = ½(M₀ - M₀ᴴ), M₀ the matrix M with zeros beside.

    With M = 2[U; B] and Ω = U - Uᴴ, S maps [X; BZ] to [ΩX - BᴴBZ; BX]. So the columns of exp(S) are
    [X; BZ], where [X; Z] are those of the exponential of [Ω, -BᴴB; I, 0], which is small if M is
    narrow. The zeros leave nothing out: every matrix with orthonormal columns that a tall M can
    give with other numbers there it gives with zeros, since each is the end of a geodesic.

    Source:
        Edelman, Arias, Smith, The Geometry of Algorithms with Orthogonality Constraints (1998),
        https://arxiv.org/abs/physics/9806030, for geodesics; the form without a QR
        decomposition is this project's.
    """

    def tall(top: Tensor, rest: Tensor) -> Tensor:
        skew = (top - top.mH) / 2
        if rest.shape[-2] == 0:
            return torch.linalg.matrix_exp(skew)
        identity, below = _identity(top), rest / 2
        rows = [
            torch.cat([skew, -below.mH @ below], dim=-1),
            torch.cat([identity.expand(top.shape), torch.zeros_like(top)], dim=-1),
        ]
        both = torch.linalg.matrix_exp(torch.cat(rows, dim=-2))[..., : top.shape[-1]]
        first, second = both.chunk(2, dim=-2)
        return torch.cat([first, below @ second], dim=-2)

    return _mapped(matrix, tall)


def series(matrix: Shaped[Tensor, "*batch out in"], terms: int) -> Shaped[Tensor, "*batch out in"]:
    """Return the first columns of Σ Sⁱ/i! over i ≤ `terms`, with S as in `exponential`.

    What is left out has a norm of at most ‖S‖^(terms + 1)/(terms + 1)!: by Taylor's formula, since
    S is normal with imaginary eigenvalues.

    Source:
        Singla, Feizi, Skew Orthogonal Convolutions (ICML 2021), https://arxiv.org/abs/2105.11417.
    """

    def tall(top: Tensor, rest: Tensor) -> Tensor:
        skew, below = (top - top.mH) / 2, rest / 2
        first, second = _identity(top).expand(top.shape), torch.zeros_like(rest)
        total = torch.cat([first, second], dim=-2)
        for number in range(1, terms + 1):
            turned = skew @ first - below.mH @ second
            first, second = turned / number, below @ first / number
            total = total + torch.cat([first, second], dim=-2)
        return total

    return _mapped(matrix, tall)


def _mapped(matrix: Tensor, tall: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if matrix.shape[-2] < matrix.shape[-1]:
        return _mapped(matrix.mH, tall).mH
    columns = matrix.shape[-1]
    return tall(matrix[..., :columns, :], matrix[..., columns:, :])


def _identity(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
