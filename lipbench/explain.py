"""Layers that say what they are: primitives for explanations, and the test of an explanation.

A layer that the network walker has no rule for may define `explain() -> nn.Module`, the same
function built from layers that it knows. The core bounds the explanation. That both functions
are equal is tested, on random inputs and on inputs that an ascent drives towards the largest
difference; it is not proved, and values that rest on it say so.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.refused import Refused
from lipbench.steps import Elementwise, Shape, Slope

TESTED = "explained: tested, not proved"
_TOLERANCE = 1e-8


class Residual(nn.Module):
    """The map x - 2 W T⁻¹ s(Wᵀx + b), T diagonal and s elementwise with slopes in [0, 1].

    If T - WᵀW is positive semidefinite, it is 1-Lipschitz in l2; the core checks that in float64.

    Source:
        Araujo, Havens, Delattre, Allauzen, Hu, A Unified Algebraic Perspective on Lipschitz
        Neural Networks (ICLR 2023), https://arxiv.org/abs/2303.03169.
    """

    weight: Tensor
    diagonal: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "in hidden"],
        diagonal: Float[Tensor, " hidden"],
        bias: Float[Tensor, " hidden"] | None = None,
        function: Elementwise = torch.relu,
    ) -> None:
        """Keep W, the diagonal of T, b (0 if None) and s.

        Tensors that are no parameters become buffers, so that gradients may flow through what
        they were computed from.
        """
        super().__init__()
        bias = torch.zeros_like(diagonal) if bias is None else bias
        for name, tensor in (("weight", weight), ("diagonal", diagonal), ("bias", bias)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.function = function

    def forward(self, inputs: Float[Tensor, "batch in"]) -> Float[Tensor, "batch in"]:
        """Return x - 2 W T⁻¹ s(Wᵀx + b)."""
        hidden = self.function(inputs @ self.weight + self.bias)
        return inputs - 2 * (hidden / self.diagonal) @ self.weight.T


class ConvResidual(nn.Module):
    """The map x - 2 W s(Wᵀx + b), Wᵀ a convolution that keeps the size of an image.

    If the norm of W is at most 1, it is 1-Lipschitz in l2; the core bounds that norm.

    Source:
        Meunier, Delattre, Araujo, Allauzen, A Dynamical System Perspective for Lipschitz Neural
        Networks (ICML 2022), https://arxiv.org/abs/2110.12690.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "in hidden height width"],
        bias: Float[Tensor, " hidden"],
        padding_mode: Literal["zeros", "circular"] = "zeros",
        function: Elementwise = torch.relu,
    ) -> None:
        """Keep W, as the kernels of Wᵀ with both axes of channels exchanged, b and s.

        Raises:
            ValueError: If the kernel has an even side, and no middle.
        """
        super().__init__()
        if not all(side % 2 for side in weight.shape[2:]):
            raise ValueError(f"ConvResidual needs odd kernels, got {tuple(weight.shape[2:])}.")
        for name, tensor in (("weight", weight), ("bias", bias)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.padding_mode, self.function = padding_mode, function

    @property
    def padding(self) -> tuple[int, int]:
        """Return the entries that are added on each side of both axes."""
        height, width = self.weight.shape[2:]
        return height // 2, width // 2

    def forward(
        self, inputs: Float[Tensor, "batch in height width"]
    ) -> Float[Tensor, "batch in height width"]:
        """Return x - 2 W s(Wᵀx + b)."""
        hidden = self.function(self._convolved(inputs, self.weight.transpose(0, 1), self.bias))
        # Of a kernel with a middle, the adjoint is the convolution with the kernel turned round.
        return inputs - 2 * self._convolved(hidden, self.weight.flip(2, 3), None)

    def _convolved(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return F.conv2d(inputs, weight, bias, padding=self.padding)
        high, wide = self.padding
        return F.conv2d(F.pad(inputs, (wide, wide, high, high), mode="circular"), weight, bias)


class Slopes(nn.Module):
    """An elementwise function whose difference quotients lie in [lo, hi], by its author's word.

    The core tests the claim on a grid and flags what rests on it.
    """

    def __init__(self, function: Elementwise, lo: float, hi: float) -> None:
        """Keep the function and its slopes.

        Raises:
            ValueError: If `lo` exceeds `hi`.
        """
        super().__init__()
        if not lo <= hi:
            raise ValueError(f"Slopes needs lo <= hi, got {lo} and {hi}.")
        self.function, self.lo, self.hi = function, lo, hi

    def forward(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the function of every entry."""
        return self.function(inputs)


@torch.enable_grad()
def check_explanation(name: str, layer: nn.Module, input_shape: Shape) -> None:
    """Compare a float64 layer with its explanation where they may differ most.

    Raises:
        Refused: If they differ by more than rounding at any input that was tried.
    """
    explanation = layer.explain()  # type: ignore[operator]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(24, *input_shape, generator=rng, dtype=torch.float64)
    scales = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).repeat(8)
    points = noise * scales.reshape(-1, *[1] * len(input_shape))
    for _ in range(20):
        points = points.detach().requires_grad_()
        found, expected = explanation(points), layer(points)
        gap = (found - expected).flatten(1).norm(dim=1)
        scale = 1 + expected.flatten(1).norm(dim=1)
        worst = float((gap / scale).detach().max().nan_to_num(torch.inf))
        if worst > _TOLERANCE:
            raise Refused(
                f"layer {name!r} ({type(layer).__name__}): its explanation is another function: "
                f"at an input that was tried they differ by {worst:.3g} of the output's size."
            )
        if not gap.requires_grad:
            return
        slope = torch.autograd.grad(gap.sum(), points)[0].nan_to_num()
        length = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
        points = points + 0.3 * slope / length.reshape(-1, *[1] * len(input_shape))


def check_slopes(step: Slope) -> None:
    """Compare the difference quotients of a function on a grid with the slopes it claims.

    Raises:
        Refused: If a quotient on the grid lies outside [lo, hi], or the function of an entry
            depends on others.
    """
    coarse = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    for grid in (coarse, torch.linspace(-4, 4, 8001, dtype=torch.float64)):
        values, half = step.function(grid), len(grid) // 2
        alone = step.function(grid[:half].flip(0)).flip(0)
        if not torch.allclose(alone, values[:half], rtol=1e-9, atol=1e-9, equal_nan=True):
            raise Refused(
                f"layer {step.name!r} (Slopes): its function is not elementwise: what it makes of "
                "an entry depends on others."
            )
        quotients = values.diff() / grid.diff()
        least, most = float(quotients.min()), float(quotients.max())
        if not (step.lo - 1e-9 <= least and most <= step.hi + 1e-9):
            raise Refused(
                f"layer {step.name!r} (Slopes): claims slopes in [{step.lo}, {step.hi}], but its "
                f"difference quotients reach from {least:.6g} to {most:.6g}."
            )
