"""CLEVER: an estimate of the Lipschitz constant from extreme values of sampled gradient norms."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from lipbench.bound import Bound, Lipschitz, Side
from lipbench.lipschitz.lower_bounds.extreme_values import right_end
from lipbench.lipschitz.lower_bounds.witness import starting_points
from lipbench.networks.network import Network
from lipbench.norm import NORMS, Norm
from lipbench.threat import Box


@dataclass(frozen=True, kw_only=True)
class Clever(Bound):
    """Extrapolate the largest Jacobian norm by extreme value theory; it proves nothing.

    The maxima of batches of random points are taken to follow a reverse Weibull distribution,
    whose right end is the estimate. Where it fits badly, the largest norm that was seen is. It may
    lie on either side of the constant: slopes that are steep in few places are missed.

    Source:
        Weng, Zhang, Chen, Yi, Su, Gao, Hsieh, Daniel, Evaluating the Robustness of Neural Networks:
        An Extreme Value Theory Approach (ICLR 2018), https://arxiv.org/abs/1801.10578; there for
        differences of outputs near one input, here for all outputs on a domain.
    """

    batches: int = 50
    samples: int = 64
    """Points in each batch: uniform on a box, else data with standard normal noise of 0.1."""
    seed: int = 0

    side: ClassVar[Side] = "estimate"
    norms: ClassVar[frozenset[Norm]] = NORMS

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        """Return roughly the seconds that the Jacobians take."""
        weights = network.weights
        outputs = network.output_size
        return 0.2 + 1e-9 * self.batches * self.samples * outputs * weights

    def compute(
        self,
        network: Network,
        norm: Norm,
        domain: Box | None,
        known: tuple[Lipschitz, ...] = (),
        inputs: Tensor | None = None,
    ) -> Lipschitz:
        """Return the estimate; there is no proof."""
        rng = torch.Generator().manual_seed(self.seed)
        maxima = []
        for _ in range(self.batches):
            if domain is None:
                points = starting_points(network, None, inputs, self.samples, rng)
                noise = torch.randn(points.shape, generator=rng, dtype=torch.float64)
                points = points + 0.1 * noise
            else:
                points = starting_points(network, domain, None, self.samples, rng)
            maxima.append(float(_slopes(network, points, norm).max()))
        return Lipschitz(value=right_end(maxima), side="estimate", norm=norm, domain=domain)


def _slopes(
    network: Network, points: Float[Tensor, "points *shape"], norm: Norm
) -> Float[Tensor, " points"]:
    def outputs(point: Tensor) -> Tensor:
        return network(point.unsqueeze(0))[0].flatten()

    jacobians = vmap(jacrev(outputs))(points).flatten(2).detach()
    return torch.linalg.matrix_norm(jacobians, float(norm))
