"""Orthogonal and spectral layers of the library deel-torchlip."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

from torch import nn

from lipbench.method_families.library_layers import LibraryMethod
from lipbench.networks.sequential import LayerSite


@dataclass(frozen=True, kw_only=True)
class Torchlip(LibraryMethod):
    """Train layers of deel-torchlip, with the offset cross entropy of 1-Lipschitz networks.

    - `bjorck`: SpectralLinear and SpectralConv2d as they come: spectral normalisation, then
      Björck's iteration until it moves less than 10⁻³, 15 steps at most. That pulls small singular
      values towards 1 and takes none above it. Convolutions are divided by √(⌈k/s⌉²).
    - `spectral`: the same without Björck's iteration.
    - `frobenius`: FrobeniusLinear and FrobeniusConv2d, whose weight as a whole has the norm 1; for
      convolutions of stride 1.

    The library claims a constant of 1 in l2; that is the claim here, times that of normalisation.
    The losses of the library (HKR) are not offered.

    Source:
        Serrurier, Mamalet, González-Sanz, Boissin, Loubes, del Barrio, Achieving Robustness in
        Classification Using Optimal Transport with Hinge Regularization (CVPR 2021),
        https://arxiv.org/abs/2006.06520, and the package deel-torchlip 1.0.5 (MIT licence).
    """

    package: ClassVar[str] = "deel.torchlip"
    extra: ClassVar[str] = "torchlip"
    kinds: ClassVar[tuple[str, ...]] = ("bjorck", "spectral", "frobenius")

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return {"bjorck": 7.0, "spectral": 5.0, "frobenius": 4.5}[self.variant]

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a dense or convolutional layer has no version, or None."""
        layer = site.layer
        if not isinstance(layer, nn.Conv2d):
            return None
        if layer.dilation != (1, 1):
            return f"torchlip has no spread kernels, got dilation {layer.dilation}"
        if self.variant == "frobenius" and layer.stride != (1, 1):
            return f"FrobeniusConv2d has no strides, got {layer.stride}"
        return None

    def made(self, layer: nn.Module) -> nn.Module:
        """Return the layer of torchlip."""
        library: Any = import_module("deel.torchlip")
        options: dict[str, Any] = {"bias": False}
        if self.variant == "spectral":
            options["eps_bjorck"] = None
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
            if self.variant == "frobenius":
                return library.FrobeniusLinear(*sizes, disjoint_neurons=False, **options)
            return library.SpectralLinear(*sizes, **options)
        assert isinstance(layer, nn.Conv2d)
        offered = {"frobenius": library.FrobeniusConv2d}
        return offered.get(self.variant, library.SpectralConv2d)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            padding_mode=layer.padding_mode,
            **options,
        )
