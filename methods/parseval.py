"""Parseval networks."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.method import Method, Params, Scalars, State
from lipbench.method_families.readable_layers import read, unreadable_reason
from lipbench.networks.net import Net
from lipbench.networks.steps import Convolution, Dense, Linear
from lipbench.ranges import between, finite_at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class Parseval(Method):
    """Pull the singular values of the weights towards 1 after every step.

    After a step of the optimiser W ← (1 + beta)·W - beta·W W'W, a gradient step on
    beta/4·‖W'W - I‖², which moves each singular value s by beta·s(1 - s²). The map has the fixed
    point 1, is stable there for beta < 1, and diverges from s = √(1 + 2/beta) on: such weights are
    refused before training, and in training they end it as `nan`. A convolution is its kernel
    flattened per output channel and group, times √k for k taps, which bounds its norm at stride 1.

    With `share` below 1 only some of the rows are moved, W_S ← (1 + beta)·W_S - beta·W_S W_S'W_S.
    Here they are a stretch, at a random place in every step, of an order that is drawn afresh in
    every epoch.

    By default the last layer is left free, so that it may scale the logits, and it alone has weight
    decay. The paper's convex weights for layers that sum others have no counterpart here. The
    retraction is a soft one, slower than a large learning rate: the method guarantees nothing. It
    has no strength: below 1 a singular value grows with beta.

    Source:
        Cissé, Bojanowski, Grave, Dauphin, Usunier, Parseval Networks: Improving Robustness to
        Adversarial Examples (ICML 2017), https://arxiv.org/abs/1704.08847: the retraction and its
        use on a subset of the rows.
    """

    stackable: ClassVar[bool] = True

    beta: float = 1e-4
    """Size of the retraction, below 1. A step with 0.1 does about what 1000 with the default do."""
    share: float = 1.0
    """Share of the rows of each layer that a step moves; at most one row more or less."""
    weight_decay: float = 5e-4
    """Weight of ½‖W‖² of the last layer, if that is left free."""
    last_layer: Literal["free", "retracted"] = "free"
    """What is done to the last layer."""
    conv_scale: Literal["taps", "none"] = "taps"
    """Whether a flattened kernel counts times √k, or as it is."""

    def __post_init__(self) -> None:
        require(
            between("beta", self.beta, 0, 1, without_high=True),
            between("share", self.share, 0, 1, without_low=True),
            finite_at_least("weight_decay", self.weight_decay, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be read, or is so large that the retraction diverges."""
        shape = data.dataset.input_shape
        reason = unreadable_reason(model, shape, kind=(Dense, Convolution), writes=True)
        if reason is not None:
            return reason
        layers = self._retracted(read(model, shape))
        if not layers:
            return "its only layer is the last one, which is left free: set last_layer"
        limit = math.sqrt(1 + 2 / self.beta) if self.beta > 0 else math.inf
        for layer in layers:
            matrices = _matrices(layer).double() * self._scale(layer)
            # The norm of all entries is quicker, and mostly small enough.
            if float(torch.linalg.matrix_norm(matrices).amax()) >= limit:
                norm = float(torch.linalg.matrix_norm(matrices, ord=2).amax())
                if norm >= limit:
                    return (
                        f"layer {layer.name!r} starts with a singular value of {norm:.4g}, and the "
                        f"retraction diverges from {limit:.4g} on: lower beta"
                    )
        return None

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return an order of the rows of each layer."""
        positions = {}
        for number, layer in enumerate(self._retracted(net)):
            rows = len(layer.weight)
            order = torch.randperm(rows, generator=rng)
            positions[f"place_{number}"] = order.to(layer.weight) / rows
        return {**positions, "turn": net.layers[0].weight.new_zeros(())}

    def begin_epoch(
        self, net: Net, data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state with another order."""
        return {**state, **self.start(net, data, rng)}

    def draw(self, batch: "Batch", rng: torch.Generator) -> dict[str, Tensor]:
        """Return where in the order the rows of this step begin."""
        return {"turn": torch.rand((), generator=rng).to(batch.inputs)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch, and the weight decay of a free last layer."""
        outputs, buffers = net.train(batch.inputs)
        value = batch.loss(outputs)
        if self.last_layer == "free":
            value = value + h["weight_decay"] / 2 * net.layers[-1].weight.square().sum()
        return value, {**state, "turn": draw["turn"], "buffers": buffers}

    def project(self, net: Net, state: State, h: Scalars) -> tuple[Params, State]:
        """Return the weights after the retraction."""
        params = dict(net.params)
        for number, layer in enumerate(self._retracted(net)):
            chosen = (state[f"place_{number}"] + state["turn"]) % 1 < h["share"]
            matrices = _matrices(layer)
            rows = torch.where(chosen.reshape(*matrices.shape[:2], 1), matrices, 0.0)
            moved = matrices + h["beta"] * (rows - self._scale(layer) ** 2 * _cube(rows))
            params[layer.weight_name] = moved.reshape(layer.weight.shape)
        return params, state

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return the mean square of 1 - s² over a layer's singular values, where it is largest."""
        layers = self._retracted(net)
        return {"defect": max(_defect(_matrices(layer) * self._scale(layer)) for layer in layers)}

    def _retracted(self, net: Net) -> tuple[Linear, ...]:
        return net.layers[:-1] if self.last_layer == "free" else net.layers

    def _scale(self, layer: Linear) -> float:
        return math.sqrt(layer.weight[0, 0].numel()) if self.conv_scale == "taps" else 1.0


def _matrices(layer: Linear) -> Float[Tensor, "groups out in"]:
    """Return the weight as a matrix for each group of channels; one of a dense layer."""
    groups = layer.groups if isinstance(layer, Convolution) else 1
    return layer.weight.flatten(1).unflatten(0, (groups, -1))


def _cube(rows: Float[Tensor, "groups out in"]) -> Float[Tensor, "groups out in"]:
    """Return W W'W, over the smaller of W W' and W'W."""
    if rows.shape[1] <= rows.shape[2]:
        return rows @ rows.mT @ rows
    return rows @ (rows.mT @ rows)


def _defect(matrices: Float[Tensor, "groups out in"]) -> float:
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    gram = wide @ wide.mT
    return float((gram - torch.eye(gram.shape[1]).to(gram)).square().sum(dim=2).mean())
