"""Certified radius and certified accuracy from logits and a global Lipschitz constant.

The gap z_y - z_j changes by at most the constant of that difference times ‖x' - x‖, so no x' closer
than the smallest quotient of a gap and its constant is classified otherwise. The constant is at
most 2^(1-1/p)·L for an L-Lipschitz network, and mostly less.

Source:
    Tsuzuku, Sato, Sugiyama, Lipschitz-Margin Training (NeurIPS 2018),
    https://arxiv.org/abs/1802.04034, Proposition 1, there for p = 2 and one constant; section 3.3
    of that paper has constants of the differences.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.lipschitz.enclosures.enclosure import enclose
from lipbench.lipschitz.output_differences import difference_constants
from lipbench.lipschitz.relaxations.rounding import LEAST, UNIT
from lipbench.networks.network import Network


def gaps(
    network: Network,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    batch_size: int = 1000,
) -> Float[Tensor, "batch classes"]:
    """Return z_y - z_j for all j in float64, less all that rounding may have added.

    At j = y they are infinite. A positive gap proves that the exact network prefers its label.
    """
    margins = []
    batches = torch.split(inputs, batch_size), torch.split(labels, batch_size)
    for points, truth in zip(*batches, strict=True):
        logits = enclose(network, points.to("cpu", torch.float64))
        index = truth.to("cpu").unsqueeze(1)
        least = (logits.values - logits.radius).take_along_dim(index, dim=1)
        most = logits.values + logits.radius
        gap = least - most - UNIT * (least.abs() + most.abs())
        margins.append(gap.scatter(1, index, torch.inf))
    return torch.cat(margins)


def certified_radius(
    gaps: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    network: Network,
    lipschitz: Lipschitz,
) -> Float[Tensor, " batch"]:
    """Return the distance, in pixel units, within which the class provably does not change.

    It is negative where a gap is, and infinite where all are positive and all constants 0.

    Args:
        gaps: Those of `gaps`.
        labels: The classes that they belong to.
        network: The network, in float64.
        lipschitz: An upper bound of its constant.

    Raises:
        ValueError: If the constant is no upper bound, holds only in a box, or is NaN.
    """
    if lipschitz.domain is not None:
        raise ValueError(
            f"a certificate needs a bound on all of space, got one on {lipschitz.domain}."
        )
    constants = difference_constants(network, lipschitz)[labels.to("cpu")]
    radius = gaps / constants
    radius = torch.where(gaps > 0, radius * (1 - 4 * UNIT) - LEAST, radius)
    # A gap of 0 that never changes is no number.
    return torch.where(radius.isnan(), 0.0, radius).amin(dim=1)


def certified_accuracy(radius: Float[Tensor, " batch"], epsilon: float) -> float:
    """Return the share of samples that are right at every x' with ‖x' - x‖ ≤ epsilon.

    It is a lower bound of robust accuracy; epsilon is in the constant's norm and pixel units.
    """
    return float((radius > epsilon).double().mean())


def radius_quantiles(radius: Float[Tensor, " batch"], levels: Sequence[float]) -> tuple[float, ...]:
    """Return the empirical quantiles of certified radii.

    Each is an attained radius, the lower one between two samples.
    """
    ordered = radius.sort().values
    indices = [int(level * (len(ordered) - 1)) for level in levels]
    return tuple(float(ordered[index]) for index in indices)
