"""Fully connected networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import skip_init

from lipbench.layers.normalise import Normalise
from lipbench.model import Model
from lipbench.ranges import optional, positive, require

Activation = Literal["relu", "sigmoid", "tanh"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Dense layers with an activation between them; images are flattened.

    Weights and biases start uniform on ±1/√inputs, torch's own default for dense layers.
    """

    widths: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers."""
    activation: Activation = "sigmoid"
    output_activation: Activation | None = None
    """Applied to the outputs too, if given."""
    normalisation: tuple[float, float] | None = None
    """Mean and standard deviation, in pixel units, of a first layer x → (x - mean)/std."""

    def __post_init__(self) -> None:
        std = None if self.normalisation is None else self.normalisation[1]
        require(
            (
                all(width >= 1 for width in self.widths),
                f"widths must be at least 1, got {list(self.widths)}",
            ),
            optional(positive, "the std of normalisation", std),
        )

    def build(self, input_shape: tuple[int, ...], outputs: int, rng: torch.Generator) -> nn.Module:
        """Return the network; any input shape will do."""
        layers: list[nn.Module] = []
        if self.normalisation is not None:
            layers.append(Normalise([self.normalisation[0]], [self.normalisation[1]]))
        layers.append(nn.Flatten())
        sizes = (math.prod(input_shape), *self.widths, outputs)
        for number, (inside, outside) in enumerate(pairwise(sizes)):
            if number:
                layers.append(_ACTIVATIONS[self.activation]())
            layers.append(_dense(inside, outside, rng))
        if self.output_activation is not None:
            layers.append(_ACTIVATIONS[self.output_activation]())
        return nn.Sequential(*layers)


def _dense(inside: int, outside: int, rng: torch.Generator) -> nn.Linear:
    # torch's own initialisation would draw from the global generator.
    layer = skip_init(nn.Linear, inside, outside)
    bound = 1 / math.sqrt(inside)
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=rng)
    return layer
