"""Sequential modules: their layers one after the other, with the shapes between them."""

from dataclasses import dataclass

import torch
from torch import nn

from lipbench.layers.activations import CURVES
from lipbench.layers.normalise import Normalise
from lipbench.layers.sorting import GroupSort, MaxMin
from lipbench.networks.primitives import refuse
from lipbench.networks.steps import Shape
from lipbench.refused import Refused

_ACTIVATIONS = (*CURVES, nn.PReLU, GroupSort, MaxMin)
_OTHERS = (
    nn.Flatten,
    nn.Identity,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    Normalise,
)


@dataclass(frozen=True, kw_only=True)
class LayerSite:
    """A layer of a chain, and where it stands there."""

    name: str
    layer: nn.Module
    input_shape: Shape
    output_shape: Shape
    is_last: bool
    """Whether no dense or convolutional layer stands behind it."""

    @property
    def is_linear(self) -> bool:
        """Return whether it is a dense or convolutional layer."""
        return isinstance(self.layer, nn.Linear | nn.Conv2d)

    @property
    def is_activation(self) -> bool:
        """Return whether it is an elementwise function or one that sorts."""
        return type(self.layer) in _ACTIVATIONS

    def refusal(self, reason: str) -> Refused:
        """Return the refusal of this layer, which it names by path and class."""
        return refuse(self.layer, self.name, reason)


def layer_sites(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[LayerSite, ...]:
    """Return the layers of a chain in order, with their shapes.

    Raises:
        Refused: If the module is no `nn.Sequential`, or a layer is neither dense nor a
            convolution in two dimensions, nor pooling, an activation, `nn.Flatten` or `Normalise`.
    """
    layers = _layers(module)
    linear = [number for number, layer in enumerate(layers) if _is_linear(layer)]
    sites: list[LayerSite] = []
    like = next(module.parameters(), torch.empty(0))
    values = like.detach().new_zeros(1, *input_shape)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            before = tuple(values.shape[1:])
            _refuse_flat(layer, str(number), before)
            values = layer(values)
            site = LayerSite(
                name=str(number),
                layer=layer,
                input_shape=before,
                output_shape=tuple(values.shape[1:]),
                is_last=not linear or number >= linear[-1],
            )
            sites.append(site)
    return tuple(sites)


def _layers(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential:
        raise refuse(module, "", "it is no nn.Sequential, whose layers could be replaced.")
    layers = list(module)
    for number, layer in enumerate(layers):
        if not (_is_linear(layer) or type(layer) in (*_ACTIVATIONS, *_OTHERS)):
            raise refuse(layer, str(number), "no rule for this class.")
    return layers


def _refuse_flat(layer: nn.Module, name: str, shape: Shape) -> None:
    if isinstance(layer, nn.Linear) and len(shape) != 1:
        raise refuse(layer, name, f"inputs of shape {shape} must be flattened first.")


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) in (nn.Linear, nn.Conv2d)
