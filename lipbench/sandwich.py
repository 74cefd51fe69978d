"""Dense layers with their activation inside, between matrices that balance each other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.steps import Elementwise


class SandwichLayer(nn.Module):
    """The map √2·AᵀΨ s(√2·Ψ⁻¹Bx + b), Ψ = diag(exp(ψ)) and s elementwise with slopes in [0, 1].

    Whatever Ψ is, its l2 constant is at most the largest eigenvalue of AAᵀ + BBᵀ, which the core
    computes in float64: 1 where [A B] has orthonormal rows. Let g be Ψ times what s changes by
    between two inputs that differ by d, c the eigenvalue, and first c = 1. Slopes in [0, 1] give
    |g|² ≤ √2·g'Bd, and so

        |d|² - |√2·A'g|² ≥ |d|² - 2|g|² + 2|B'g|² + 2(|g|² - √2·g'Bd) = |d - √2·B'g|² ≥ 0.

    Otherwise A/√c and B/√c have c = 1. With them the map is x ↦ y(x/√c)/√c for the y above, which
    does not expand distances then: y expands them at most c times.

    Source:
        Wang, Manchester, Direct Parameterization of Lipschitz-Bounded Deep Networks (ICML 2023),
        https://arxiv.org/abs/2301.11526, section 3 and theorem 3.1; the form for any A and B is
        this project's.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        function: Elementwise = torch.relu,
    ) -> None:
        """Keep s; all numbers are 0.

        Args:
            inputs: Entries of x.
            hidden: Rows of A and of B.
            outputs: Entries of the result.
            function: What s is.
        """
        super().__init__()
        self.outer = nn.Parameter(torch.zeros(hidden, outputs))
        self.inner = nn.Parameter(torch.zeros(hidden, inputs))
        self.psi = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.function = function

    def forward(self, inputs: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """Return √2·AᵀΨ s(√2·Ψ⁻¹Bx + b)."""
        scale, root = self.psi.exp(), math.sqrt(2)
        hidden = self.function(root * (inputs @ self.inner.T) / scale + self.bias)
        return root * (hidden * scale) @ self.outer

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        hidden, outputs = self.outer.shape
        return f"{self.inner.shape[1]}, {hidden}, {outputs}"
