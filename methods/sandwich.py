"""Sandwich layers."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lipbench.contractive import Contractive, start_orthogonal
from lipbench.method import Params
from lipbench.normalise import Normalise
from lipbench.sandwich import SandwichLayer
from lipbench.sequential import Part
from lipbench.stiefel import cayley


@dataclass(frozen=True, kw_only=True)
class Sandwich(Contractive):
    """Put each activation between matrices that together are orthonormal.

    A dense layer and the ReLU behind it become √2·AᵀΨ relu(√2·Ψ⁻¹Bx + b), as wide as the layer,
    with [A B] the Cayley transform of V: its rows are orthonormal. Ψ = diag(exp(ψ)) is trained
    too. The last layer is orthogonal, by the Cayley transform of its own V. Inputs and outputs are
    multiplied by √γ. Convolutions are refused.

    For networks with one hidden layer these are all whose constant LipSDP certifies. For ReLU, Ψ
    only makes another number of the bias. Training starts from A and B for which √2·A is the
    identity and √2·B is orthogonal: from a network with orthogonal weights and ReLU. The authors'
    code trains the length of V as a number of its own; here V is trained itself.

    The guarantee is a constant of γ in l2 on all of space, times that of normalisation.

    Source:
        Wang, Manchester, Direct Parameterization of Lipschitz-Bounded Deep Networks (ICML 2023),
        https://arxiv.org/abs/2301.11526, section 3, equations (7) to (9).
    """

    gamma: float = 1.0
    """The constant of the network, in units of logits for one pixel unit."""
    activation: Literal["maxmin", "relu", "keep"] = "relu"
    """What stands inside the layers: "relu", as only functions of single numbers may."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be positive and finite, got {self.gamma}.")
        if self.activation != "relu":
            raise ValueError(f"activation must be 'relu' in sandwich, got {self.activation!r}.")

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 4.0

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network, with its layers replaced, between factors of √γ."""
        layers = list(super().build(model, input_shape, rng).children())
        last = max(place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        factor = [Normalise([0.0], [self.gamma**-0.5]) for _ in range(2)]
        return nn.Sequential(factor[0], *layers[: last + 1], factor[1], *layers[last + 1 :])

    def layer(self, part: Part, rng: torch.Generator) -> nn.Module:
        """Return the last layer itself, and of others the layer with the activation inside."""
        if part.is_last:
            return super().layer(part, rng)
        layer = part.layer
        assert isinstance(layer, nn.Linear)
        found = SandwichLayer(layer.in_features, layer.out_features, layer.out_features)
        start_orthogonal(found.inner, rng)
        with torch.no_grad():
            # Of M = [0; v·Q] with QᵀQ = I, the transform is [(1 - v²)/(1 + v²)·I; -2v/(1 + v²)·Q].
            found.inner.mul_(math.sqrt(2) - 1)
            if isinstance(layer.bias, Tensor):
                found.bias.copy_(layer.bias)
        return found

    def explicit(self, layer: nn.Module, raw: Params, *, is_final: bool) -> Params:
        """Return A and B, or the orthogonal weight."""
        if not isinstance(layer, SandwichLayer):
            return {"weight": cayley(raw["weight"])}
        both = cayley(torch.cat([raw["outer"], raw["inner"]], dim=-1))
        columns = raw["outer"].shape[-1]
        return {"outer": both[..., :columns], "inner": both[..., columns:]}

    def unfit(self, part: Part) -> str | None:
        """Return why a layer is no dense one, or None."""
        return None if isinstance(part.layer, nn.Linear) else "sandwich layers are dense only"

    def is_bent(self, part: Part) -> bool:
        """Return whether what replaces a layer holds an activation: all but the last do."""
        return not part.is_last
