"""Lipschitz constant constraint (LCC): each layer's norm projected after every step."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.composition import composed
from lipbench.lipschitz.operator_norms.constants import constant
from lipbench.lipschitz.operator_norms.dense_and_convolution import power_iteration
from lipbench.method import Claim, Method, Params, Scalars, State, Strength
from lipbench.method_families import differentiable_constant
from lipbench.networks.net import Net
from lipbench.networks.network import Network
from lipbench.networks.steps import Linear, Scale
from lipbench.norm import Norm
from lipbench.ranges import at_least, positive, require
from lipbench.refused import Refused

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data

_EUCLIDEAN = Norm(2)


@dataclass(frozen=True, kw_only=True)
class LCC(Method):
    """Scale every layer back to the norm lambda after each step that took it beyond.

    The projection is W ← W / max(1, ‖W‖ / lambda), with the operator norm on inputs of the layer's
    size: for norm 1 the largest column sum of absolute values, for infinity the largest row sum,
    for 2 the largest singular value, which power iteration follows. Batch normalisation is scaled
    back in the same way, to lambda_bn: its matrix is diagonal, of gamma over the root of the
    running variance. The objective is the mean loss; with lambda = lambda_bn = inf training is
    standard.

    The saved network is scaled once more, by norms that the core certifies, and claims what the
    product bound then proves: lambda for each layer, lambda_bn for each trained normalisation, and
    for every other step its own constant. For a padded convolution in l2 the certified norm is that
    of a periodic convolution that contains it, so that it may be saved a little smaller than it was
    trained.

    Source:
        Gouk, Frank, Pfahringer, Cree, Regularisation of neural networks by enforcing Lipschitz
        continuity (Machine Learning 110, 2021), https://arxiv.org/abs/1804.04368. There each
        projection takes two steps of power iteration from a random vector; here the vector is kept
        from step to step.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", shrinks=False, least=1e-3)

    lambda_: float = 8.0
    """Largest norm of a layer's weight. The paper has 8 for MNIST in l2, 32 in norm 1 and 16 in
    norm infinity; 1, 4 and 3 beside batch normalisation."""
    lambda_bn: float = 16.0
    """Largest factor of a batch normalisation."""
    norm: Norm = _EUCLIDEAN
    """The norm in which inputs and outputs of layers are measured: 1, 2 or infinity."""
    iterations: int = 2
    """Steps of power iteration per training step, for norm 2."""

    def __post_init__(self) -> None:
        require(
            positive("lambda", self.lambda_),
            positive("lambda_bn", self.lambda_bn),
            at_least("iterations", self.iterations, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.3 if self.norm == _EUCLIDEAN else 1.5

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be projected, or None."""
        try:
            network = differentiable_constant.read(model, data.dataset.input_shape)
        except Refused as error:
            return str(error).rstrip(".")
        params = dict(model.named_parameters())
        for layer in network.layers:
            if layer.weight_name not in params:
                return f"the weight of layer {layer.name!r} is made of others, not a parameter"
        return None

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return a vector for each layer that has converged for its first weight, for norm 2."""
        if self.norm != _EUCLIDEAN:
            return {}
        vectors = {}
        for number, layer in enumerate(net.layers):
            random = torch.randn(layer.input_shape, generator=rng).to(layer.weight)
            vectors[_right(number)] = differentiable_constant.settled(layer, random)
        return vectors

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch."""
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def project(self, net: Net, state: State, h: Scalars) -> tuple[Params, State]:
        """Return the parameters with every layer within its norm, and the vectors moved on."""
        return self._projected(net, state, h, self.iterations)

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the parameters after a projection with more steps of power iteration.

        A few lag behind the weights: what is measured shall be nearly what is saved.
        """
        return self._projected(net, state, h, 30)[0]

    def finish(self, net: Net, state: State, data: "Data", h: Scalars) -> Params:
        """Return the parameters, within their norms by what the core certifies."""
        excesses = [
            (name, h[field].new_tensor(constant(step, self.norm), dtype=torch.float64) / h[field])
            for name, field, step in _limited(net.steps)
        ]
        return _scaled(net.params, excesses)

    def claims(self, net: Net) -> Claim | None:
        """Return the product of the limits, and of the constants of steps that have none.

        None where a limit is infinite.
        """
        network = net.steps
        limits = {id(step): getattr(self, field) for _, field, step in _limited(network)}
        if math.inf in limits.values():
            return None
        constants = [
            limits[id(step)] if id(step) in limits else constant(step, self.norm)
            for step in network.steps
        ]
        # Weights are stored in single precision: every factor is rounded once.
        bound = composed(network, constants, self.norm)
        return Claim(norm=self.norm, constant=bound, tolerance=1e-5)

    def _projected(
        self, net: Net, state: State, h: Scalars, iterations: int
    ) -> tuple[Params, State]:
        vectors, excesses, number = dict(state), [], 0
        for name, field, step in _limited(net.steps):
            if isinstance(step, Scale):
                size = step.factor.abs().amax()
            elif self.norm == _EUCLIDEAN:
                sigma = power_iteration(step, vectors[_right(number)], iterations)
                size, vectors[_right(number)] = sigma.value, sigma.right
            else:
                size = _largest_sum(step, self.norm)
            number += isinstance(step, Linear)
            excesses.append((name, size / h[field]))
        return _scaled(net.params, excesses), vectors


def _limited(network: Network) -> Iterator[tuple[str, str, Linear | Scale]]:
    """Return the steps that have a limit, the names of their weights, and the field with it."""
    for step in network.steps:
        if isinstance(step, Linear):
            yield step.weight_name, "lambda_", step
        elif isinstance(step, Scale) and step.weight_name is not None:
            yield step.weight_name, "lambda_bn", step


def _scaled(params: Params, excesses: Iterable[tuple[str, Tensor]]) -> Params:
    """Return the parameters divided by the largest excess over the limit that each has."""
    most: dict[str, Tensor] = {}
    for name, excess in excesses:  # a layer that is used twice is here twice
        most[name] = torch.maximum(most.get(name, torch.ones_like(excess)), excess)
    scaled = {
        name: (params[name].to(excess) / excess).to(params[name]) for name, excess in most.items()
    }
    return {**params, **scaled}


def _largest_sum(step: Linear, norm: Norm) -> Float[Tensor, ""]:
    """Return the largest column (norm 1) or row (norm infinity) sum of absolute values."""
    like, absolute = step.weight.new_ones, step.absolute()
    if norm == Norm(1):
        return absolute.adjoint(like(1, *step.output_shape)).amax()
    return absolute.apply(like(1, *step.input_shape)).amax()


def _right(number: int) -> str:
    return f"right_{number}"
