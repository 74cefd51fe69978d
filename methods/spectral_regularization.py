"""Spectral norm regularisation: squared spectral norms of layers as a penalty."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.dense_and_convolution import power_iteration
from lipbench.lipschitz.operator_norms.kernel_matrix import as_kernel_matrix
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.readable_layers import unreadable_reason
from lipbench.networks.net import Net
from lipbench.networks.steps import Convolution, Dense, Linear
from lipbench.ranges import at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class SpectralRegularization(Method):
    """Penalise the largest singular value of each layer.

    The objective is loss + lambda/2·Σ σ(W_l)² over all layers with weights; biases and
    normalisation have no part in it. σ is followed by a step of power iteration per training step,
    v ← W'u/|W'u|, u ← Wv/|Wv|, σ = u'Wv, with u and v held fixed: the gradient of a term is
    lambda·σ·uv'. That is a value from below, which large steps of the optimiser leave behind: on
    the digits, with lambda 0.03 and Adam at 0.02, the product of the norms ended at 27 with one
    step, at 15 with five, and at 9 with the exact σ. The method guarantees nothing.

    Source:
        Yoshida, Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep
        Learning (2017), https://arxiv.org/abs/1705.10941: its objective, and its algorithm of one
        power iteration per step. It has the norm of the reshaped kernel for a convolution; here
        by default that of the operator on images of this size.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.01)

    lambda_: float = 0.01
    """Weight of the penalty; where the discrepancy principle starts."""
    conv_norm: Literal["operator", "reshaped"] = "operator"
    """What σ of a convolution is: its operator norm, or the norm of its kernel as a matrix."""
    estimate: Literal["power", "exact"] = "power"
    """How σ is found: by power iteration, or by a singular value decomposition in every step."""
    iterations: int = 1
    """Steps of power iteration per training step."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("iterations", self.iterations, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.0 if self.estimate == "power" else 10.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be read, or has no matrix of the kind asked for, or None."""
        shape = data.dataset.input_shape
        if self.conv_norm == "reshaped":
            return unreadable_reason(model, shape, kind=(Dense, Convolution))
        if self.estimate == "power":
            return unreadable_reason(model, shape)
        reason = unreadable_reason(model, shape, kind=Dense)
        return (
            reason and f"{reason} with estimate = 'exact': take 'power' or conv_norm = 'reshaped'"
        )

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return a random vector for each layer."""
        if self.estimate == "exact":
            return {}
        return {
            f"right_{number}": torch.randn(layer.input_shape, generator=rng).to(layer.weight)
            for number, layer in enumerate(self._layers(net))
        }

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty, and the singular vectors."""
        outputs, buffers = net.train(batch.inputs)
        squares, rights = [], {}
        for number, layer in enumerate(self._layers(net)):
            if self.estimate == "exact":
                squares.append(torch.linalg.matrix_norm(layer.weight, ord=2).square())
                continue
            sigma = power_iteration(layer, state[f"right_{number}"], self.iterations)
            squares.append(sigma.value.square())
            rights[f"right_{number}"] = sigma.right
        value = batch.loss(outputs) + h["lambda_"] / 2 * torch.stack(squares).sum()
        return value, {**state, **rights, "buffers": buffers}

    def _layers(self, net: Net) -> tuple[Linear, ...]:
        if self.conv_norm == "operator":
            return net.layers
        return tuple(as_kernel_matrix(layer) for layer in net.layers)
