"""A yardstick: the plain loop over a tensor in memory, without torchvision and DataLoader.

Network, step and pairs are those of the other yardstick; nothing else of this package is used.
"""

import torch
from torch import Tensor, nn

from lipbench.speed.plain import BATCH_SIZE, LEARNING_RATE, MOMENTUM, NOISE, PlainPairs, step


def draw_pairs(images: Tensor, count: int, seed: int) -> PlainPairs:
    """Return pairs of `count` drawn images and noisy copies of them."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=rng)[:count]
    u = images[chosen.to(images.device)]
    return PlainPairs(u, u + NOISE * torch.rand(u.shape, generator=rng).to(u))


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    seed: int,
    pairs: PlainPairs | None = None,
) -> None:
    """Train `model` in place."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=rng).to(inputs.device)
        for rows in order.split(BATCH_SIZE):
            step(model, optimizer, inputs[rows], targets[rows], pairs)
