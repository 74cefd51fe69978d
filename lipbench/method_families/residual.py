"""1-Lipschitz residual layers in place of those that keep their input's shape."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbench.layers.explanations import ConvResidual, Residual
from lipbench.method_families.contractive import Contractive
from lipbench.networks.sequential import LayerSite
from lipbench.networks.steps import Contraction, ConvContraction, Dense, Linear, Step


@dataclass(frozen=True, kw_only=True)
class ContractiveResidual(Contractive):
    """Contractive methods whose layers are x - 2 W relu(Wᵀx + b) wherever the shape allows.

    Those are dense layers of equal widths, and convolutions with as many outputs as inputs, an
    odd kernel and a stride of 1 that keep the size of the image. They hold their activation. All
    other layers are linear, with an activation behind them.

    The layer is 1-Lipschitz if ‖W‖ ≤ 1: it has the difference quotients I - 2WDWᵀ, D diagonal
    with entries in [0, 1], which are symmetric with eigenvalues in [-1, 1].
    """

    def holds_activation(self, site: LayerSite) -> bool:
        """Return whether a layer keeps the shape of what it reads."""
        layer = site.layer
        if site.input_shape != site.output_shape:
            return False
        if not isinstance(layer, nn.Conv2d):
            return True
        is_plain = layer.stride == layer.dilation == (1, 1)
        return is_plain and all(size % 2 for size in layer.kernel_size)

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return the residual or linear layer, whose weight starts orthogonal."""
        linear = super().layer(site, rng)
        if not self.holds_activation(site):
            return linear
        weight, bias = linear.weight, linear.bias
        assert isinstance(weight, Tensor)
        width = len(weight)
        bias = nn.Parameter(torch.zeros(width)) if bias is None else bias
        assert isinstance(bias, Tensor)
        if isinstance(linear, nn.Conv2d):
            is_round = linear.padding_mode == "circular"
            return ConvResidual(weight, bias, "circular" if is_round else "zeros")
        return Residual(weight, torch.ones(width), bias)


def operator(step: Step) -> Linear | None:
    """Return the linear operator whose norm must be at most 1, None if the step has none.

    Of a residual layer that is Wᵀ, whose weight has both first axes of W exchanged.
    """
    if isinstance(step, ConvContraction):
        return step.operator
    if isinstance(step, Contraction):
        return Dense(
            name=step.name,
            weight=step.weight.mT,
            bias=step.bias,
            weight_name=f"{step.name}.weight",
            bias_name=f"{step.name}.bias",
            input_shapes=step.input_shapes,
            output_shape=step.output_shape,
        )
    return step if isinstance(step, Linear) else None
