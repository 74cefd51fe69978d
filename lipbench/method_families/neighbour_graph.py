"""Neighbour graphs on samples: nearest neighbours, and random edges."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROWS = 1024
"""Samples whose distances are computed at once."""


def nearest(
    samples: Float[Tensor, "samples *shape"],
    count: int,
    candidates: Int[Tensor, " candidates"] | None = None,
) -> Int[Tensor, "samples count"]:
    """Return the rows of the `count` nearest others of each sample in l2, the nearest first.

    Args:
        samples: The samples.
        count: How many; fewer than there are candidates.
        candidates: Rows of the samples that may be neighbours; None allows all.
    """
    flat = samples.flatten(1)
    if candidates is None:
        candidates = torch.arange(len(flat), device=flat.device)
    allowed, neighbours = flat[candidates], []
    for rows in torch.arange(len(flat), device=flat.device).split(_ROWS):
        distances = torch.cdist(flat[rows], allowed)
        # A sample is no neighbour of itself; another one that equals it is.
        distances.masked_fill_(rows.unsqueeze(1) == candidates, torch.inf)
        neighbours.append(candidates[distances.topk(count, largest=False).indices])
    return torch.cat(neighbours)


def random_neighbours(
    samples: int, count: int, rng: torch.Generator
) -> Int[Tensor, "samples count"]:
    """Return rows of others, drawn for each sample, on the CPU."""
    ahead = torch.randint(1, samples, (samples, count), generator=rng)
    return (torch.arange(samples).unsqueeze(1) + ahead) % samples
