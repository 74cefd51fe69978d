"""Stem: a network cut behind its first dense layer, for inputs that move step by step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lipbench.networks.network import Network
from lipbench.networks.steps import Dense, Rearrange


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem:
    """A function x ↦ rest(Wx + b) whose W is a matrix: inputs of any shape are flattened.

    A move of x by Wᵀa moves Wx by WWᵀa, which has the width of the layer and not of the input.
    """

    weight: Float[Tensor, "width inputs"]
    bias: Float[Tensor, " width"] | None = None
    rest: Callable[[Float[Tensor, "batch width"]], Float[Tensor, "batch outputs"]]
    """Goes through the layers behind the first."""

    def first(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch width"]:
        """Return Wx."""
        return F.linear(inputs.flatten(1), self.weight)

    def shifted(self, products: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Return Wx + b for what `first` returns."""
        return products if self.bias is None else products + self.bias

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs of the whole network."""
        return self.rest(self.shifted(self.first(inputs)))


def cut(network: Network) -> Stem | None:
    """Return the network cut behind a first dense layer, or None if it begins otherwise.

    Only changes of shape may stand before that layer, and nothing else may read the input.
    """
    for start, step in enumerate(network.steps, 1):
        if step.inputs != (start - 1,):
            return None
        if isinstance(step, Dense) and len(step.input_shape) == 1:
            return _cut_behind(network, start, step)
        if not isinstance(step, Rearrange):
            return None
    return None


def _cut_behind(network: Network, start: int, first: Dense) -> Stem | None:
    behind = network.steps[start:]
    read = [network.output, *(i for step in behind for i in step.inputs)]
    if min(read) < start:
        return None
    rest = Network(
        input_shape=first.output_shape,
        steps=tuple(replace(s, inputs=tuple(i - start for i in s.inputs)) for s in behind),
        output=network.output - start,
    )
    return Stem(weight=first.weight, bias=first.bias, rest=rest)
