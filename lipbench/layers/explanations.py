"""Layers that an explanation may be made of: residual layers, and functions of known slopes."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.layers.elementwise import Elementwise


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
