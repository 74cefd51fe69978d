"""Inner maximisation of adversarial training: a batch moved to where the network does worst.

Every sample takes every step, whether it is misclassified or not: pure tensor code, which runs
inside `torch.func.vmap`. The steps are those of the attacks, see `lipbench.adversarial.ascent`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from lipbench.adversarial.ascent import ascent_step, random_start, steepest
from lipbench.adversarial.losses import error_odds
from lipbench.data.splits import Batch
from lipbench.networks.net import Net
from lipbench.norm import Norm
from lipbench.threat import Threat

LARGEST = Norm(math.inf)
"""The norm of the threat that adversarial training was published for."""

Height = Callable[[Float[Tensor, "batch outputs"]], Float[Tensor, " batch"]]
"""What each sample climbs, from the outputs."""


def check_threat(norm: Norm, epsilon: float) -> None:
    """Refuse balls in which no ascent is defined.

    Raises:
        ValueError: If `norm` is neither 2 nor infinity, or `epsilon` negative or not finite.
    """
    if norm not in (Norm(2), LARGEST):
        raise ValueError(f"norm must be 2 or inf, got {norm}: ascent steps exist for these two.")
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be finite and at least 0, got {epsilon}.")


def around(batch: Batch, norm: Norm, epsilon: Float[Tensor, ""]) -> Threat:
    """Return the ball of radius `epsilon`, in pixel units, around every sample, cut by the box."""
    return Threat(norm=norm, epsilon=epsilon.expand(len(batch.inputs)), domain=batch.box)


def unit_offsets(
    like: Float[Tensor, "batch *shape"], norm: Norm, rng: torch.Generator
) -> Float[Tensor, "batch *shape"]:
    """Return vectors drawn uniformly from the unit ball of a norm, one for each sample."""
    unit = Threat(norm=norm, epsilon=like.new_ones(len(like)), domain=None)
    return random_start(torch.zeros_like(like), unit, rng)


def placed(
    batch: Batch, offsets: Float[Tensor, "batch *shape"], threat: Threat
) -> Float[Tensor, "batch *shape"]:
    """Return the inputs moved by epsilon times `offsets`, in the threat model."""
    return ascent_step(batch.inputs, batch.inputs, offsets, threat, threat.epsilon)


def error(batch: Batch) -> Height:
    """Return the objective of the ascent: the log-odds of an error, or the squared error.

    The gradients of the log-odds point where those of cross entropy do, but do not vanish where
    the network is sure.
    """
    if batch.task == "classification":
        return lambda outputs: error_odds(outputs, batch.targets)
    return batch.losses


def climb(
    net: Net,
    height: Height,
    first: Float[Tensor, "batch *shape"],
    centre: Float[Tensor, "batch *shape"],
    threat: Threat,
    *,
    steps: int,
    rel_step: Float[Tensor, ""] | float,
) -> Float[Tensor, "batch *shape"]:
    """Return the end of steepest ascent from `first`, which lies in the threat model.

    The network is in evaluation mode: batch statistics would let the samples of a batch change
    each other's outputs. No gradient reaches its parameters, and those in the inputs are counted.

    Args:
        net: The network.
        height: What is climbed.
        first: Where it starts.
        centre: The inputs themselves.
        threat: What is allowed.
        steps: How many steps are taken.
        rel_step: Length of each in units of epsilon.
    """
    frozen, points = net.frozen, first
    for _ in range(steps):
        slope = grad(lambda inputs: height(frozen(inputs)).sum())(points)
        frozen.meter.gradients += len(points)
        direction = steepest(slope, threat.norm)
        points = ascent_step(points, centre, direction, threat, rel_step * threat.epsilon)
    return points


def train_on_both(
    net: Net, inputs: Float[Tensor, "batch *shape"], moved: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, "batch outputs"], dict[str, Tensor]]:
    """Return the outputs for clean and for moved inputs, and the buffers after both.

    Each has its own batch statistics, as in two passes one after the other.
    """
    clean, buffers = net.train(inputs)
    worst, buffers = replace(net, buffers=buffers).train(moved)
    return clean, worst, buffers


def ramped(share: Float[Tensor, ""], epoch: int, ramp: int) -> Float[Tensor, ""]:
    """Return the share of epsilon in an epoch, from 1: it grows by equal amounts and then is 1.

    Args:
        share: Its present value, for device and type.
        epoch: The epoch that begins.
        ramp: How many epochs have less than all of it.
    """
    return torch.full_like(share, min(1.0, epoch / (ramp + 1)))
