"""Learnt linear splines as activations, with fixed knots."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.layers.activations import Curve


class Spline(nn.Module):
    """Functions that are straight between knots and beyond them, one for each channel.

    They are given by their values at the knots, `heights`; left and right of all knots they go on
    as between the last two. So they are b₀ + b₁t + Σ aₖ(t - tₖ)₊, with a bend aₖ at every knot but
    the first and the last. Channels are on the first axis of a sample. With one function, it
    serves all of them.

    Source:
        Aziznejad, Gupta, Campos, Unser, Deep Neural Networks with Trainable Activations and
        Controlled Lipschitz Constant (2020), https://arxiv.org/abs/2001.06263. Heights instead of
        bends are those of Bohra et al., Learning Activation Functions in Deep (Spline) Neural
        Networks (2020): a step of the optimiser changes the function where its inputs are.
    """

    knots: Tensor

    def __init__(
        self, heights: Float[Tensor, "functions knots"], knots: Float[Tensor, " knots"]
    ) -> None:
        """Make parameters of the heights; the knots, which rise, stay where they are."""
        super().__init__()
        self.heights = nn.Parameter(heights)
        self.register_buffer("knots", knots)

    @classmethod
    def near(
        cls, activation: nn.Module, functions: int, knots: Float[Tensor, " knots"]
    ) -> "Spline":
        """Return copies of a function, equal to it at the knots."""
        heights = activation(knots.clone()).expand(functions, -1)
        # Tensors of its own: one that two layers hold is listed under one name alone.
        return cls(heights.clone(), knots.clone())

    def forward(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the function of every entry. Takes memory for each knot."""
        return values(self.heights, self.knots, inputs)


def values(
    heights: Float[Tensor, "functions knots"],
    knots: Float[Tensor, " knots"],
    inputs: Float[Tensor, "batch *shape"],
) -> Float[Tensor, "batch *shape"]:
    """Return the functions of every entry. Works under vmap.

    The derivative at a knot is that left of it.
    """
    axes = [1] * (inputs.ndim - 2)
    slopes = piece_slopes(heights, knots)
    # Not a look-up of the piece an entry lies in, whose gradient a GPU sums in any order.
    bent = (inputs.unsqueeze(-1) - knots[1:-1]).relu() * slopes.diff().view(len(slopes), *axes, -1)
    first, slope = (table[:, 0].view(-1, *axes) for table in (heights, slopes))
    return first + slope * (inputs - knots[0]) + bent.sum(dim=-1)


def piece_slopes(
    heights: Float[Tensor, "functions knots"], knots: Float[Tensor, " knots"]
) -> Float[Tensor, "functions pieces"]:
    """Return the slope between each knot and the next; the largest is the Lipschitz constant."""
    return heights.diff() / knots.diff()


def variation_norms(
    heights: Float[Tensor, "functions knots"], knots: Float[Tensor, " knots"]
) -> Float[Tensor, " functions"]:
    """Return Σ|aₖ| + |φ(0)| + |φ(1)|, which is no less than the Lipschitz constant.

    Somewhere in [0, 1] the slope is at most |φ(1) - φ(0)| in size, and no other slope differs from
    it by more than Σ|aₖ|.
    """
    ends = torch.stack([torch.zeros_like(heights[:, 0]), torch.ones_like(heights[:, 0])])
    bends = piece_slopes(heights, knots).diff()
    return bends.abs().sum(dim=1) + values(heights, knots, ends).abs().sum(dim=0)


def spline_curve(
    heights: Float[Tensor, "functions knots"], knots: Float[Tensor, " knots"], axes: int
) -> Curve:
    """Return the curves with these heights and their slopes, rounded outwards.

    Args:
        heights: Values at the knots.
        knots: Where they are.
        axes: Number of axes after the channel axis of one sample.
    """
    slopes = piece_slopes(heights, knots)
    # Each is a quotient of differences of given numbers: three roundings.
    error = 4 * torch.finfo(slopes.dtype).eps * slopes.abs()
    shape = (-1, *[1] * axes)
    return Curve(
        lambda x: values(heights, knots, x),
        (slopes - error).amin(dim=1).view(shape),
        (slopes + error).amax(dim=1).view(shape),
    )
