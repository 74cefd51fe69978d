"""Networks that are 1-Lipschitz by construction: SLL blocks between rescaled dense layers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from lipbench.layers.explanations import Residual
from lipbench.method import Claim, Method
from lipbench.norm import Norm


class Rescaled(nn.Module):
    """W·diag(Σ_j |WᵀW|_ij)^(-1/2), of norm at most 1 (Prach and Lampert 2022)."""

    def forward(self, weight):
        return weight * (weight.T @ weight).abs().sum(dim=1).clamp_min(1e-12).rsqrt()


class SLL(nn.Module):
    """x - 2·W·T⁻¹·relu(Wᵀx + b) with T_ii = Σ_j |WᵀW|_ij·q_j/q_i (Araujo et al. 2023)."""

    def __init__(self, width, rng):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, generator=rng) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.log_q = nn.Parameter(torch.zeros(width))

    def diagonal(self):
        gram = (self.weight.T @ self.weight).abs()
        return (gram * (self.log_q - self.log_q.unsqueeze(1)).exp()).sum(dim=1)

    def forward(self, x):
        hidden = torch.relu(x @ self.weight + self.bias)
        return x - 2 * (hidden / self.diagonal()) @ self.weight.T

    def explain(self):
        return Residual(self.weight, self.diagonal(), self.bias)


@dataclass(frozen=True, kw_only=True)
class Blocks(Method):
    stackable: ClassVar[bool] = True

    temperature: float = 0.1

    def build(self, model, input_shape, rng):
        # Activations are part of the blocks; dense layers that change no width become blocks.
        layers = [
            SLL(layer.in_features, rng)
            if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
            else layer
            for layer in model
            if isinstance(layer, nn.Linear | nn.Flatten)
        ]
        for layer in layers:
            if isinstance(layer, nn.Linear):
                parametrize.register_parametrization(layer, "weight", Rescaled())
        return nn.Sequential(*layers)

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs / h["temperature"]), {**state, "buffers": buffers}

    def claims(self, net):
        return Claim(norm=Norm(2), constant=1.0, tolerance=1e-5)
