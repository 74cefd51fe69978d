"""Norms of matrices of which only the largest absolute entries are known."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.relaxations.intervals import derivatives
from lipbench.lipschitz.relaxations.neuron_blocks import NeuronBlocks
from lipbench.norm import Norm
from lipbench.threat import Box


def interval_norm(
    network: NeuronBlocks, norm: Norm, domain: Box | None
) -> tuple[float, Float[Tensor, "outputs inputs"]]:
    """Return a certified Lipschitz constant on a domain, and bounds of all derivatives there."""
    entries = derivatives(network, domain).largest
    return norm_of_entries(entries, norm), entries


def norm_of_entries(entries: Float[Tensor, "rows columns"], norm: Norm) -> float:
    """Return an upper bound of the norm of every matrix whose absolute values are no larger.

    In the norms 1, 2 and infinity none has a larger norm than the matrix of these values.
    """
    if not entries.numel():
        return 0.0
    if not bool(entries.isfinite().all()):  # of which LAPACK takes no norm
        return math.inf
    value = float(torch.linalg.matrix_norm(entries, float(norm)))
    return value * (1 + 1e-12 * max(entries.shape))
