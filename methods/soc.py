"""Skew orthogonal convolutions (SOC)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from lipbench.layers.circular import Circular
from lipbench.layers.fantastic_four import kernel_bound
from lipbench.layers.stiefel import exponential, series
from lipbench.method import Params
from lipbench.method_families.contractive import Contractive
from lipbench.method_families.periodic import misfit, periodic
from lipbench.networks.sequential import LayerSite
from lipbench.ranges import Rule, at_least

_REACH = 2.1
"""The bound of ‖V‖ in convolutions: 0.7·3, the authors' factor for kernels of size 3."""


@dataclass(frozen=True, kw_only=True)
class SOC(Contractive):
    """Make each weight orthogonal by the exponential of the skew part of V.

    A layer is the first rows and columns of exp(S), with S = ½(V₀ - V₀ᵀ)·c/|V| and V₀ the square
    matrix that is V with zeros beside: missing channels are added, and surplus ones cut off.

    In a convolution |V| is a bound of its norm, the least of four times √(h·w) for h by w taps, and
    c = 2.1. There exp(S) is the series Σ Sⁱ/i!, cut off behind `terms` powers of S in training and
    behind `final_terms` in the network that is saved. Its norm may be a little more than 1: the
    largest singular value of each saved convolution is computed, and divided out if it is.

    Dense layers take the exponential itself, with |V| the root mean square of the singular values
    and c = π: S turns the first outputs of a narrow layer by about π/2, so that training begins
    with all inputs read. The length of V only says how far a step of the optimiser turns S.

    Images are periodic, where the authors' code pads with zeros: the series is then a convolution,
    with a kernel as large as the image, that is found by Fourier transforms. Outputs must have the
    size of the image, divided by the stride; dilations and groups of channels are refused.

    The guarantee is a constant of 1 in l2 on all of space, times that of normalisation.

    Source:
        Singla, Feizi, Skew Orthogonal Convolutions (ICML 2021), https://arxiv.org/abs/2105.11417.
    """

    terms: int = 5
    """Powers of S behind the identity that the series has in training."""
    final_terms: int = 12
    """Those that it has in the network that is saved."""
    most_width: int = 512
    """What the inputs or outputs of a dense layer, whichever are fewer, may be at most: the time of
    a step grows with their cube, to about 20 seconds of one core for 1,000."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            at_least("terms", self.terms, 1),
            (
                self.final_terms >= self.terms,
                f"final_terms must be at least terms ({self.terms}), got {self.final_terms}",
            ),
            at_least("most_width", self.most_width, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 10.0

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return the layer itself, or a periodic convolution."""
        if isinstance(site.layer, nn.Conv2d):
            return periodic(site, rng)
        return super().layer(site, rng)

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return the orthogonal weight."""
        weight = raw["weight"]
        least = torch.finfo(weight.dtype).tiny
        if not isinstance(layer, Circular):
            mean = weight.square().sum() / min(weight.shape)
            return {"weight": exponential(weight * (math.pi * mean.clamp_min(least).rsqrt()))}
        height, width = layer.taps
        norm = kernel_bound(weight[..., :height, :width])
        change = self._finished if is_final else self._turned
        return {"weight": layer.remade(weight * (_REACH / norm.clamp_min(least)), change)}

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a convolution has no periodic version or a layer is too wide, or None."""
        width = min(site.input_shape[-1], site.output_shape[-1])
        if isinstance(site.layer, nn.Linear) and width > self.most_width:
            return (
                f"the exponential of a layer with {width} inputs or outputs takes long; raise "
                f"most_width ({self.most_width}) to allow it"
            )
        return misfit(site)

    def _turned(self, symbol: Complex[Tensor, "f g out in"]) -> Complex[Tensor, "f g out in"]:
        return series(symbol, self.terms)

    def _finished(self, symbol: Complex[Tensor, "f g out in"]) -> Complex[Tensor, "f g out in"]:
        turned = series(symbol, self.final_terms)
        return turned / torch.linalg.svdvals(turned).amax().clamp_min(1)
