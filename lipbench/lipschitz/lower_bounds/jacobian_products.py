"""Jacobian-vector products of a network at points, and power iteration on them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.networks.network import Network
from lipbench.norm import Norm, steepest, support

_NUMBERS = 2**24


class Linearised:
    """A network's linear parts J at points, one for each."""

    @torch.enable_grad()
    def __init__(self, network: Network, points: Float[Tensor, "points *shape"]) -> None:
        """Evaluate the network once; products cost about as much again."""
        self._points = points.detach().requires_grad_()
        self._outputs = network(self._points).flatten(1)
        self._weights = torch.zeros_like(self._outputs).requires_grad_()
        (self._pulled,) = torch.autograd.grad(
            self._outputs, self._points, self._weights, create_graph=True
        )

    def times(self, directions: Float[Tensor, "points *shape"]) -> Float[Tensor, "points outputs"]:
        """Return Jv for one direction at each point."""
        # J'w is linear in w, and J what turns a change of it back.
        (images,) = torch.autograd.grad(self._pulled, self._weights, directions, retain_graph=True)
        return images

    def transposed(
        self, weights: Float[Tensor, "points outputs"]
    ) -> Float[Tensor, "points *shape"]:
        """Return J'w for one vector at each point."""
        (product,) = torch.autograd.grad(self._outputs, self._points, weights, retain_graph=True)
        return product


def power_iteration(
    network: Network,
    points: Float[Tensor, "points *shape"],
    directions: Float[Tensor, "points *shape"],
    norm: Norm,
    steps: int,
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points *shape"]]:
    """Return ‖Jv‖ at each point, and the unit direction v, after steps from a first direction.

    No step lowers the value, which never exceeds the norm of the Jacobian but for rounding. In l2
    it tends to that norm from almost every first direction, in the norms 1 and infinity to a local
    maximum. At a kink the Jacobian is autograd's, which may be that of no side.

    Source:
        Boyd, The power method for l^p norms, Linear Algebra and its Applications 9 (1974), 95-101;
        in the norm 1 that is the method of Hager, Condition estimates (1984).
    """
    values, vectors = [], []
    batches = zip(split(network, points), split(network, directions), strict=True)
    for batch, first in batches:
        linear, along = Linearised(network, batch), first
        images = linear.times(along)
        for _ in range(steps):
            gradients = linear.transposed(support(images, norm))
            along = steepest(gradients.flatten(1), norm).view_as(along)
            images = linear.times(along)
        values.append(norm.length(images))
        vectors.append(along)
    return torch.cat(values), torch.cat(vectors)


def split(
    network: Network, points: Float[Tensor, "points *shape"]
) -> tuple[Float[Tensor, "batch *shape"], ...]:
    """Return points in batches whose numbers on the way through a network fit the memory."""
    numbers = points[0].numel() + sum(math.prod(step.output_shape) for step in network.steps)
    return points.split(max(1, _NUMBERS // numbers))


def products(network: Network) -> int:
    """Return how many products the linear steps of a network take for one input."""
    return sum(layer.fan_in * math.prod(layer.output_shape) for layer in network.layers)
