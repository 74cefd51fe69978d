"""Input normalisation as a layer of the network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std per channel, from pixel units to the units a network was trained in.

    As a layer it takes part in every bound: constants stay in pixel units, where it multiplies
    by 1 / min(std).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the statistics, one pair for each channel or one for all.

        Raises:
            ValueError: If the lengths differ or a standard deviation is not positive.
        """
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"Normalise needs one positive std per mean, got mean {mean!r} and std {std!r}."
            )
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the normalised inputs."""
        axes = [1] * (inputs.ndim - 2)
        return (inputs - self.mean.reshape(-1, *axes)) / self.std.reshape(-1, *axes)
