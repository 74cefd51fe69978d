"""Orthogonal layers by the Cayley transform."""

from dataclasses import dataclass

import torch
from torch import nn

from lipbench.layers.circular import Circular
from lipbench.layers.stiefel import cayley
from lipbench.method import Params
from lipbench.method_families.contractive import Contractive
from lipbench.method_families.periodic import misfit, periodic
from lipbench.networks.sequential import LayerSite


@dataclass(frozen=True, kw_only=True)
class Cayley(Contractive):
    """Make each weight orthogonal by the Cayley transform of V.

    A square matrix V gives W = (I - A)(I + A)⁻¹ with A = V - Vᵀ. A tall one, V = [U; Y], gives
    W = [(I - A)(I + A)⁻¹; -2Y(I + A)⁻¹] with A = U - Uᵀ + YᵀY, and a wide one the transpose of that
    of its transpose: columns or rows are orthonormal.

    A convolution does the same with the matrix of each frequency of the image. Its kernel in effect
    is as large as the image, while V has the taps of the model's kernel. Images are periodic: a
    layer that pads with zeros reads around the edges instead. Outputs must have the size of the
    image, divided by the stride; dilations and groups of channels are refused.

    The authors' code trains the length of V as a number of its own, V = α·Y/‖Y‖; here V is trained
    itself, which reaches the same layers.

    The guarantee is a constant of 1 in l2 on all of space, times that of normalisation.

    Source:
        Trockman, Kolter, Orthogonalizing Convolutional Layers with the Cayley Transform (ICLR
        2021), https://arxiv.org/abs/2104.07167.
    """

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 3.0

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return the layer itself, or a periodic convolution."""
        return (
            periodic(site, rng) if isinstance(site.layer, nn.Conv2d) else super().layer(site, rng)
        )

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return the orthogonal weight."""
        if isinstance(layer, Circular):
            return {"weight": layer.remade(raw["weight"], cayley)}
        return {"weight": cayley(raw["weight"])}

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a convolution has no periodic version, or None."""
        return misfit(site)
