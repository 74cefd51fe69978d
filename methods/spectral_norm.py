"""Spectral normalisation: each weight divided by its largest singular value."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.constants import constant as step_constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import converged_norm, power_iteration
from lipbench.lipschitz.operator_norms.kernel_matrix import as_kernel_matrix
from lipbench.method import Claim, Method, Params, Scalars, State, Strength
from lipbench.method_families.readable_layers import read, unreadable_reason
from lipbench.networks.net import Net
from lipbench.networks.network import Network
from lipbench.networks.steps import Convolution, Linear, Slope
from lipbench.norm import Norm
from lipbench.ranges import at_least, finite_positive, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class SpectralNorm(Method):
    """Train V and use W = c·V/σ(V), so that every layer has the operator norm c.

    The layers before the last get c = layer_bound / s, where s bounds the slope of the activation
    behind them (1/4 for sigmoid), so that layer and activation together have the constant
    `layer_bound`. With c = 1 a sigmoid network of three layers has a constant of at most 1/16 and
    collapses: on the digits, 18 to 26 % validation accuracy against 88 to 91 % with c = 4.

    σ is followed by a step of power iteration per training step; the saved weights are divided
    by the converged norm. For convolutions it is that of the operator on images of this size.

    Source:
        Miyato, Kataoka, Koyama, Yoshida, Spectral Normalization for Generative Adversarial
        Networks (2018), eq. (8) and Algorithm 1, which has c = 1 and the norm of the reshaped
        kernel: the same as torch's `spectral_norm`, and no bound of a convolution's norm.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="layer_bound", shrinks=False, least=1e-3)

    layer_bound: float = 1.0
    """Lipschitz constant in l2 of each layer but the last, with the activation behind it."""
    last_layer_bound: float = 1.0
    """Operator norm of the last layer; it only sets the scale of the logits."""
    conv_norm: Literal["operator", "reshaped"] = "operator"
    """What σ of a convolution is: its operator norm, or the norm of its kernel as a matrix."""
    iterations: int = 1
    """Steps of power iteration per training step."""

    def __post_init__(self) -> None:
        require(
            finite_positive("layer_bound", self.layer_bound),
            finite_positive("last_layer_bound", self.last_layer_bound),
            at_least("iterations", self.iterations, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 1.3

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be read or set, or None."""
        return unreadable_reason(model, data.dataset.input_shape, writes=True)

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network with each V scaled to the norm c, so that it starts as its own W.

        The function is the same for V of any size, but a step of the optimiser turns a small V
        further: with torch's initial sizes and c = 4, 4 and 10 the network collapsed.
        """
        net = read(model, input_shape)
        h = {
            field: torch.tensor(getattr(self, field))
            for field in ("layer_bound", "last_layer_bound")
        }
        model.load_state_dict(self._converged(net, h), strict=False)
        return model

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return a random unit vector for each layer, and its norm as it is seen from there."""
        state = {}
        for number, layer in enumerate(self._layers(net)):
            vector = torch.randn(layer.input_shape, generator=rng).to(layer.weight)
            # A few steps at once: a σ far too small would make the first weights far too large.
            state[f"right_{number}"] = power_iteration(layer, vector, 15).right
        return state

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch for the normalised weights."""
        params, rights = self._normalised(net, state, h)
        outputs, buffers = net.with_params(params).train(batch.inputs)
        return batch.loss(outputs), {**state, **rights, "buffers": buffers}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the normalised weights, and the biases as they are."""
        params, _ = self._normalised(net, state, h)
        return {**net.params, **params}

    def finish(self, net: Net, state: State, data: "Data", h: Scalars) -> Params:
        """Return the weights divided by their converged norms."""
        return self._converged(net, h)

    def claims(self, net: Net) -> Claim | None:
        """Return the product of the layers' constants, and of the steps that have no layer.

        None where σ is not the operator norm, and for networks that branch.
        """
        reshaped = self.conv_norm == "reshaped"
        if reshaped and any(isinstance(layer, Convolution) for layer in net.layers):
            return None
        if not net.steps.is_chain:
            return None
        layers = self.layer_bound ** (len(net.layers) - 1) * self.last_layer_bound
        constant = layers * _rest(net.steps)
        # Weights are stored in single precision: every factor is rounded once.
        return Claim(norm=Norm(2), constant=constant, tolerance=1e-5)

    def _converged(self, net: Net, h: Scalars) -> Params:
        params = dict(net.params)
        for layer, bound in zip(self._layers(net), self._bounds(net, h), strict=True):
            factor = bound.double() / converged_norm(layer).value
            weight = net.params[layer.weight_name]
            params[layer.weight_name] = (weight.double() * factor).to(weight.dtype)
        return params

    def _normalised(self, net: Net, state: State, h: Scalars) -> tuple[Params, State]:
        params, rights = {}, {}
        layers, bounds = self._layers(net), self._bounds(net, h)
        for number, (layer, bound) in enumerate(zip(layers, bounds, strict=True)):
            sigma = power_iteration(layer, state[f"right_{number}"], self.iterations)
            params[layer.weight_name] = net.params[layer.weight_name] * (bound / sigma.value)
            rights[f"right_{number}"] = sigma.right
        return params, rights

    def _layers(self, net: Net) -> tuple[Linear, ...]:
        if self.conv_norm == "operator":
            return net.layers
        return tuple(as_kernel_matrix(layer) for layer in net.layers)

    def _bounds(self, net: Net, h: Scalars) -> list[Tensor]:
        slopes: list[float] = []
        for step in net.steps.steps:
            if isinstance(step, Linear):
                slopes.append(1.0)
            elif isinstance(step, Slope) and slopes:
                slopes[-1] *= float(step.constant)
        hidden = [h["layer_bound"] / slope for slope in slopes[:-1]]
        bounds = [*hidden, h["last_layer_bound"] / slopes[-1]]
        # A layer that stands in several places has the smallest norm that any of them asks for.
        least: dict[str, Tensor] = {}
        for layer, bound in zip(net.layers, bounds, strict=True):
            least[layer.weight_name] = torch.minimum(least.get(layer.weight_name, bound), bound)
        return [least[layer.weight_name] for layer in net.layers]


def _rest(network: Network) -> float:
    """Return the constant of all steps that no layer makes up for, such as normalisation."""
    rest = 1.0
    layer_seen = False
    for step in network.steps:
        if isinstance(step, Linear):
            layer_seen = True
        elif not (layer_seen and isinstance(step, Slope)):
            rest *= step_constant(step, Norm(2))
    return rest
