"""Lipschitz MLP: a learnt Lipschitz constant for each layer."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant as step_constant
from lipbench.method import Claim, Method, Params, Scalars, State, Strength
from lipbench.method_families.readable_layers import read, unreadable_reason
from lipbench.networks.net import Net
from lipbench.networks.steps import Dense, Linear
from lipbench.norm import Norm
from lipbench.ranges import finite_at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class LipMLP(Method):
    """Learn a bound of each layer in the l-infinity norm, and penalise their product.

    Each row i of a layer is used as W_i·min(1, softplus(c)/‖W_i‖₁), so that the layer, whose
    constant in l-infinity is its largest absolute row sum, has one of at most softplus(c). The
    objective is loss + alpha·Π softplus(c_l). Each c_l is a parameter of its layer and starts as
    its largest absolute row sum, so that training begins with the weights as they are.

    The saved weights are the normalised ones, rounded downwards: the network has a constant of at
    most Π softplus(c_l), times those of its activations, in l-infinity and on all of space.

    Source:
        Liu, Williams, Jacobson, Fidler, Litany, Learning Smooth Neural Functions via Lipschitz
        Regularization (SIGGRAPH 2022), https://arxiv.org/abs/2202.08345: its weight normalisation
        and its loss. For dense layers only.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="alpha", scale=1e-3)

    alpha: float = 1e-6
    """Weight of the product; where the discrepancy principle starts."""

    def __post_init__(self) -> None:
        require(finite_at_least("alpha", self.alpha, 0))

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 1.6

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer is not dense or cannot be read, or None."""
        return unreadable_reason(model, data.dataset.input_shape, kind=Dense, writes=True)

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network, whose layers have got their parameters c."""
        for layer in read(model, input_shape).layers:
            largest = layer.weight.abs().sum(dim=1).amax()
            model.get_submodule(layer.name).register_parameter("c", nn.Parameter(largest))
        return model

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch for the normalised weights, and the penalty."""
        outputs, buffers = net.with_params(_normalised(net)).train(batch.inputs)
        product = torch.stack([_limit(net, layer) for layer in net.layers]).prod()
        return batch.loss(outputs) + h["alpha"] * product, {**state, "buffers": buffers}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the normalised weights, and all other parameters as they are."""
        return {**net.params, **_normalised(net)}

    def finish(self, net: Net, state: State, data: "Data", h: Scalars) -> Params:
        """Return the normalised weights, in which no row exceeds its limit by rounding."""
        params = dict(net.params)
        for layer in net.layers:
            weight = layer.weight.double()
            # Entries are rounded when they are stored, and sums of a row when they are computed.
            rounding = torch.finfo(layer.weight.dtype).eps + weight.shape[1] * _UNIT
            limit = _exact_limit(net, layer) * (1 - rounding)
            params[layer.weight_name] = (weight * _factors(weight, limit)).to(layer.weight.dtype)
        return params

    def claims(self, net: Net) -> Claim | None:
        """Return the product of the limits, and of the constants of all other steps."""
        constants = [
            float(_exact_limit(net, step))
            if isinstance(step, Linear)
            else step_constant(step, _MAXIMUM)
            for step in net.steps.steps
        ]
        constant = composed(net.steps, constants, _MAXIMUM)
        # The tolerance is for the rounding of what is measured and not of the weights.
        return Claim(norm=_MAXIMUM, constant=constant, tolerance=1e-9)


_MAXIMUM = Norm(math.inf)
_UNIT = torch.finfo(torch.float64).eps


def _limit(net: Net, layer: Linear) -> Float[Tensor, ""]:
    """Return softplus(c) of a layer."""
    return softplus(_c(net, layer))


def _exact_limit(net: Net, layer: Linear) -> Float[Tensor, ""]:
    return softplus(_c(net, layer).double())


def _c(net: Net, layer: Linear) -> Float[Tensor, ""]:
    return net.params[f"{layer.name}.c" if layer.name else "c"]


def _normalised(net: Net) -> Params:
    return {
        layer.weight_name: layer.weight * _factors(layer.weight, _limit(net, layer))
        for layer in net.layers
    }


def _factors(weight: Float[Tensor, "out in"], limit: Float[Tensor, ""]) -> Float[Tensor, "out 1"]:
    """Return min(1, limit/‖W_i‖₁) for each row i."""
    rows = weight.abs().sum(dim=1, keepdim=True)
    exceeds = rows > limit
    return torch.where(exceeds, limit / torch.where(exceeds, rows, 1.0), 1.0)
