"""Certified robustness from a classifier's margins and a global Lipschitz constant.

A gap between two outputs of an L-Lipschitz network changes by at most 2^(1-1/p)·L·‖x' - x‖, so no
x' closer than margin / (2^(1-1/p)·L) is classified otherwise.

Source:
    Tsuzuku, Sato, Sugiyama, Lipschitz-Margin Training (NeurIPS 2018),
    https://arxiv.org/abs/1802.04034, Proposition 1, there for p = 2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.bound import Lipschitz
from lipbench.network import Network
from lipbench.rounding import UNIT, enclose


def margins(
    network: Network,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    batch_size: int = 1000,
) -> Float[Tensor, " batch"]:
    """Return z_y - max over j ≠ y of z_j in float64, less all that rounding may have added.

    A positive margin proves that the exact network is right; others may be of either kind.
    """
    found = []
    batches = torch.split(inputs, batch_size), torch.split(labels, batch_size)
    for points, truth in zip(*batches, strict=True):
        logits = enclose(network, points.to("cpu", torch.float64))
        own = truth.to("cpu").unsqueeze(1)
        rivals = (logits.values + logits.radius).scatter(1, own, -torch.inf)
        least = (logits.values - logits.radius).take_along_dim(own, dim=1).squeeze(1)
        most = rivals.amax(dim=1)
        found.append(least - most - UNIT * (least.abs() + most.abs()))
    return torch.cat(found)


def certified_radius(
    margin: Float[Tensor, " batch"], lipschitz: Lipschitz
) -> Float[Tensor, " batch"]:
    """Return the distance, in pixel units, within which the class provably does not change.

    It is negative where the margin is, and infinite for a positive margin and constant 0.

    Raises:
        ValueError: If the constant is no upper bound, holds only in a box, or is NaN.
    """
    if lipschitz.side not in ("upper", "exact") or lipschitz.domain is not None:
        raise ValueError(
            "a certificate needs an upper bound on all of space, got side "
            f"{lipschitz.side!r} and domain {lipschitz.domain}."
        )
    if not lipschitz.value >= 0:
        raise ValueError(f"a Lipschitz constant is at least 0, got {lipschitz.value}.")
    allowed = lipschitz.norm.margin_factor() * lipschitz.value
    radius = margin / allowed if allowed > 0 else margin.sign() * torch.inf
    rounded = torch.where(radius > 0, radius * (1 - 4 * UNIT), radius)
    return torch.where(margin == 0, 0.0, rounded)


def certified_accuracy(radius: Float[Tensor, " batch"], epsilon: float) -> float:
    """Return the share of samples that are right at every x' with ‖x' - x‖ ≤ epsilon.

    It is a lower bound of robust accuracy; epsilon is in the constant's norm and pixel units.
    """
    return float((radius > epsilon).double().mean())


def radius_quantiles(radius: Float[Tensor, " batch"], levels: Sequence[float]) -> tuple[float, ...]:
    """Return the empirical quantiles of certified radii: in l2 those of margin / (√2·L).

    Each is an attained radius, the lower one between two samples.
    """
    ordered = radius.sort().values
    places = [int(level * (len(ordered) - 1)) for level in levels]
    return tuple(float(ordered[place]) for place in places)
