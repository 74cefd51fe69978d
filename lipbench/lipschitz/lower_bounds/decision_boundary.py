"""Points near the decision boundary, where a network is about to answer otherwise."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversarial.ascent import ascend, steepest
from lipbench.adversarial.losses import scale_free_error_odds
from lipbench.networks.network import Network
from lipbench.norm import Norm
from lipbench.threat import Box, Threat

_FIRST_STEP = 0.5


def boundary_points(
    network: Network,
    points: Float[Tensor, "points *shape"],
    reach: float,
    domain: Box | None,
    steps: int,
) -> Float[Tensor, "ends *shape"]:
    """Return where a short attack in l2 leads from each point: behind the border, or near to it.

    A network that has one output has no borders, and there are no points.

    Args:
        network: A network whose outputs, in any shape, are taken for those of classes.
        points: Where the attacks begin, in the domain.
        reach: How far they may go.
        domain: What holds them.
        steps: How many steps each has.
    """
    if math.prod(network.output_shape) < 2:
        return points[:0]

    def outputs(inputs: Tensor) -> Tensor:
        return network(inputs).flatten(1)

    with torch.no_grad():
        labels = outputs(points).argmax(dim=1)

    def objective(logits: Tensor, rows: Int[Tensor, " left"]) -> Tensor:
        return scale_free_error_odds(logits, labels[rows])

    norm = Norm(2)
    epsilon = torch.full((len(points),), reach, dtype=torch.float64)
    ascent = ascend(
        outputs,
        points,
        points,
        labels,
        Threat(norm=norm, epsilon=epsilon, domain=domain),
        objective,
        lambda gradient: steepest(gradient, norm),
        [_FIRST_STEP * (1 - step / steps) for step in range(steps)],
    )
    return ascent.points
