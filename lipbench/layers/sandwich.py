"""Sandwich layers: an activation between linear maps that balance each other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lipbench.layers.circular import Circular
from lipbench.layers.elementwise import Elementwise


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
        https://arxiv.org/abs/2301.11526, the sandwich layer; the proof, for any A and B, is this
        project's.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, function: Elementwise = torch.relu
    ) -> None:
        """Keep s; all numbers are 0.

        Args:
            inputs: Entries of x.
            hidden: Rows of A and of B.
            outputs: Entries of the result.
            function: What s is.
        """
        super().__init__()
        self.outer = skip_init(nn.Linear, outputs, hidden, bias=False)
        self.inner = skip_init(nn.Linear, inputs, hidden, bias=False)
        self.psi = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.function = function
        for layer in (self.outer, self.inner):
            nn.init.zeros_(layer.weight)

    def forward(self, inputs: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """Return √2·AᵀΨ s(√2·Ψ⁻¹Bx + b)."""
        scale, root = self.psi.exp(), math.sqrt(2)
        hidden = self.function(root * self.inner(inputs) / scale + self.bias)
        return root * (hidden * scale) @ self.outer.weight


class CircularSandwich(nn.Module):
    """The map of `SandwichLayer` with periodic convolutions A and B; Ψ and b are per channel."""

    def __init__(
        self,
        channels: tuple[int, int],
        size: tuple[int, int],
        taps: tuple[int, int],
        function: Elementwise = torch.relu,
    ) -> None:
        """Keep s; all numbers are 0.

        Args:
            channels: Channels of the outputs, which are those of the neurons too, and of inputs.
            size: Height and width of the image.
            taps: As in `Circular`.
            function: What s is.
        """
        super().__init__()
        hidden = channels[0]
        self.outer = Circular((hidden, hidden), size, taps, bias=False)
        self.inner = Circular(channels, size, taps, bias=False)
        self.psi = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.function = function

    def forward(self, inputs: Float[Tensor, "batch in h w"]) -> Float[Tensor, "batch out h w"]:
        """Return √2·AᵀΨ s(√2·Ψ⁻¹Bx + b)."""
        scale, root = self.psi.exp().view(-1, 1, 1), math.sqrt(2)
        hidden = self.function(root * self.inner(inputs) / scale + self.bias.view(-1, 1, 1))
        return root * self.outer.adjoint(hidden * scale)
