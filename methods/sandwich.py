"""Sandwich layers: 1-Lipschitz by a direct parametrisation of LipSDP."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lipbench.layers.circular import Circular
from lipbench.layers.normalise import Normalise
from lipbench.layers.sandwich import CircularSandwich, SandwichLayer
from lipbench.layers.stiefel import cayley
from lipbench.method import Params
from lipbench.method_families.contractive import Contractive, start_orthogonal
from lipbench.method_families.periodic import misfit, periodic
from lipbench.networks.sequential import LayerSite
from lipbench.ranges import Rule, finite_positive

_START = math.sqrt(2) - 1
"""The singular values of V at first, with which half of all squares is in A and half in B."""


@dataclass(frozen=True, kw_only=True)
class Sandwich(Contractive):
    """Put each activation between matrices that together are orthonormal.

    A dense layer and the ReLU behind it become √2·AᵀΨ relu(√2·Ψ⁻¹Bx + b), as wide as the layer,
    with [A B] the Cayley transform of V: its rows are orthonormal. Ψ = diag(exp(ψ)) is trained
    too. The last layer is orthogonal, by the Cayley transform of its own V. Inputs and outputs are
    multiplied by √γ.

    A convolution becomes the same with two convolutions A and B, made of V frequency by frequency,
    and one number of Ψ for each channel. Images are periodic: a layer that pads with zeros reads
    around the edges instead. Outputs must have the size of the image; strides other than that of
    a last layer, dilations and groups of channels are refused.

    According to the paper these are all networks of the shape whose constant LipSDP certifies. For
    ReLU, Ψ only makes another number of the bias. Training starts from dense A and B for which √2·A
    is the identity and √2·B is orthogonal: from a network with orthogonal weights and ReLU. The
    authors' code trains the length of V as a number of its own; here V is trained itself.

    The guarantee is a constant of γ in l2 on all of space, times that of normalisation.

    Source:
        Wang, Manchester, Direct Parameterization of Lipschitz-Bounded Deep Networks (ICML 2023),
        https://arxiv.org/abs/2301.11526, the sandwich layer.
    """

    gamma: float = 1.0
    """The constant of the network, in units of logits for one pixel unit."""
    activation: Literal["maxmin", "relu", "keep"] = "relu"
    """What stands inside the layers: "relu", as only functions of single numbers may."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            finite_positive("gamma", self.gamma),
            (
                self.activation == "relu",
                f"activation must be 'relu' in sandwich, got {self.activation!r}",
            ),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 4.0

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network, with its layers replaced, between factors of √γ."""
        layers = list(super().build(model, input_shape, rng).children())
        kinds = (nn.Linear, Circular, SandwichLayer, CircularSandwich)
        last = max(index for index, layer in enumerate(layers) if isinstance(layer, kinds))
        factor = [Normalise([0.0], [self.gamma**-0.5]) for _ in range(2)]
        return nn.Sequential(factor[0], *layers[: last + 1], factor[1], *layers[last + 1 :])

    def layer(self, site: LayerSite, rng: torch.Generator) -> nn.Module:
        """Return an orthogonal layer for the last, and others with the activation inside."""
        if isinstance(site.layer, nn.Conv2d):
            plain = periodic(site, rng)
            return plain if site.is_last else _sandwiched(plain)
        if site.is_last:
            return super().layer(site, rng)
        layer = site.layer
        assert isinstance(layer, nn.Linear)
        sandwich = SandwichLayer(layer.in_features, layer.out_features, layer.out_features)
        start_orthogonal(sandwich.inner.weight, rng)
        with torch.no_grad():
            # Of M = [0; v·Q] with QᵀQ = I, the transform is [(1 - v²)/(1 + v²)·I; -2v/(1 + v²)·Q].
            sandwich.inner.weight.mul_(_START)
            if isinstance(layer.bias, Tensor):
                sandwich.bias.copy_(layer.bias)
        return sandwich

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return A and B, or the orthogonal weight."""
        if isinstance(layer, Circular):
            return {"weight": layer.remade(raw["weight"], cayley)}
        if not isinstance(layer, SandwichLayer | CircularSandwich):
            return {"weight": cayley(raw["weight"])}
        both = torch.cat([raw["outer.weight"], raw["inner.weight"]], dim=1)
        if isinstance(layer, CircularSandwich):
            both = layer.inner.remade(both, cayley)
        else:
            both = cayley(both)
        outputs = raw["outer.weight"].shape[1]
        return {"outer.weight": both[:, :outputs], "inner.weight": both[:, outputs:]}

    def misfit_reason(self, site: LayerSite) -> str | None:
        """Return why a convolution has no periodic version, or None."""
        layer = site.layer
        if isinstance(layer, nn.Conv2d) and not site.is_last and layer.stride != (1, 1):
            return f"sandwich layers have no strides, got {layer.stride}"
        return misfit(site)

    def holds_activation(self, site: LayerSite) -> bool:
        """Return whether what replaces a layer holds an activation: all but the last do."""
        return not site.is_last


def _sandwiched(plain: Circular) -> CircularSandwich:
    """Return a layer that starts with a kernel for B, and 0 for A, before their transform."""
    hidden, channels = plain.weight.shape[:2]
    sandwich = CircularSandwich((hidden, channels), plain.size, plain.taps)
    with torch.no_grad():
        # Then the squares of all singular values have the mean that those of dense layers have.
        factor = _START * (min(hidden, channels) / hidden) ** 0.5
        sandwich.inner.weight.copy_(factor * plain.weight)
        if plain.bias is not None:
            sandwich.bias.copy_(plain.bias)
    return sandwich
