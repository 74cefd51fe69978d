"""Almost-orthogonal Lipschitz layers (AOL)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lipbench.layers.diagonal_dominance import rescaled, rescaled_by_fewer
from lipbench.method import Params
from lipbench.method_families.contractive import Contractive


@dataclass(frozen=True, kw_only=True)
class AOL(Contractive):
    """Rescale the columns of each weight so that its norm is at most 1.

    The layer is W = V·D with D_ii = (Σ_j |VᵀV|_ij)^(-1/2); for a convolution the sum is over all
    shifts of the kernels of input channels i and j against each other. A layer whose V has
    orthogonal columns is V itself, and weights start so. Zero and circular padding, strides and
    dilations keep the norm at most 1; groups of channels are refused.

    With `side` "inputs" D rescales the inputs, as published. A layer with fewer outputs than
    inputs has columns that cannot be orthogonal, and loses most of its norm: the default "fewer"
    takes D·V there, with the rows of V in place of its columns. The norm of a matrix is that of
    its transpose.

    The guarantee is a constant of 1 in l2 on all of space, times that of normalisation.

    Source:
        Prach, Lampert, Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks
        (ECCV 2022), https://arxiv.org/abs/2208.03160, theorems 1 and 2.
    """

    side: Literal["fewer", "inputs"] = "fewer"
    """What is rescaled: the inputs, or outputs where there are fewer of them."""

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.0

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return the rescaled weight."""
        rescale = rescaled if self.side == "inputs" else rescaled_by_fewer
        return {"weight": rescale(raw["weight"])}
