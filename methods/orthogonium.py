"""Orthogonal layers of the library orthogonium."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

from torch import nn

from lipbench.method_families.library_layers import LibraryMethod
from lipbench.networks.sequential import LayerSite


@dataclass(frozen=True, kw_only=True)
class Orthogonium(LibraryMethod):
    """Train layers of orthogonium, with the offset cross entropy of 1-Lipschitz networks.

    Dense layers are OrthoLinear. Convolutions are

    - `aoc`: AdaptiveOrthoConv2d, orthogonal convolutions with an explicit kernel: products of
      small orthogonal ones (BCOP), of reshaped orthogonal kernels (RKO) for strides, or of both;
    - `aol`: AOLConv2D, almost-orthogonal ones.

    Their paddings stay what the model has: with zeros a convolution is 1-Lipschitz still, and
    orthogonal only away from the border. The library claims a constant of 1 in l2; that is the
    claim here, times that of normalisation. Its residual blocks are not offered.

    Source:
        Boissin, Mamalet, Fel, Picard, Massena, Serrurier, An Adaptive Orthogonal Convolution
        Scheme for Efficient and Flexible CNN Architectures (2025),
        https://arxiv.org/abs/2501.07930, and the package orthogonium 0.0.4 (MIT licence).
    """

    package: ClassVar[str] = "orthogonium"
    extra: ClassVar[str] = "orthogonium"
    kinds: ClassVar[tuple[str, ...]] = ("aoc", "aol")

    orthogonaliser: Literal["bjorck", "qr", "exponential", "cholesky"] = "bjorck"
    """How matrices become orthogonal, with the library's own settings."""

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        # The exponential series takes products of the padded square matrix, 784x784 for MNIST.
        return {"bjorck": 15.0, "qr": 7.0, "exponential": 275.0, "cholesky": 6.0}[
            self.orthogonaliser
        ]

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a dense or convolutional layer has no version, or None."""
        layer = site.layer
        if not isinstance(layer, nn.Conv2d):
            return None
        if len({*layer.kernel_size}) > 1 or len({*layer.stride}) > 1:
            return f"it needs square kernels and strides, got {layer.kernel_size}, {layer.stride}"
        if layer.kernel_size[0] < layer.stride[0]:
            return f"its stride {layer.stride} exceeds its kernel {layer.kernel_size}"
        if layer.dilation != (1, 1):
            return f"spread kernels are not offered, got dilation {layer.dilation}"
        return None

    def made(self, layer: nn.Module) -> nn.Module:
        """Return the layer of orthogonium."""
        layers: Any = import_module("orthogonium.layers")
        parameters = getattr(
            import_module("orthogonium.reparametrizers"), _NAMES[self.orthogonaliser]
        )
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
            return layers.OrthoLinear(*sizes, bias=False, ortho_params=parameters)
        assert isinstance(layer, nn.Conv2d)
        options = {
            "kernel_size": layer.kernel_size[0],
            "stride": layer.stride[0],
            "padding": layer.padding,
            "padding_mode": layer.padding_mode,
            "bias": False,
        }
        sizes = layer.in_channels, layer.out_channels
        if self.variant == "aol":
            almost: Any = import_module("orthogonium.layers.conv.AOL")
            return almost.AOLConv2D(*sizes, **options)
        return layers.AdaptiveOrthoConv2d(*sizes, ortho_params=parameters, **options)


_NAMES = {
    "bjorck": "DEFAULT_ORTHO_PARAMS",
    "qr": "QR_ORTHO_PARAMS",
    "exponential": "EXP_ORTHO_PARAMS",
    "cholesky": "CHOLESKY_ORTHO_PARAMS",
}
