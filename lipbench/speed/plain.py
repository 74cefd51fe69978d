"""A yardstick: the protocol as it is usually written, one network at a time.

Images come from torchvision's data set through a DataLoader, gradients from `loss.backward()`, the
attack from torchattacks. Nothing of this package is used.

Source:
    The update of the pairs follows Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz
    Training of Neural Networks (2021), Algorithm 1, with the accept test and the growing steps of
    the authors' public code; the squared quotient is replaced by the quotient in the loss.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 128
LEARNING_RATE, MOMENTUM = 0.1, 0.9
STRENGTH = 0.1
"""Weight of the Lipschitz term."""
TAU, FACTOR, NOISE = 1.0, 1.3, 0.1


def network(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    """Return two hidden layers of 64 sigmoids, initialised as torch does it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(inputs, 64), nn.Sigmoid()),
            *(nn.Linear(64, 64), nn.Sigmoid()),
            nn.Linear(64, outputs),
        )


class PlainPairs:
    """Pairs of inputs that climb towards the Lipschitz constant, each with its own step size.

    They are drawn once: drawing them afresh after 2,000 steps, as the protocol does, would begin
    in a later epoch than is ever timed.
    """

    def __init__(self, u: Tensor, v: Tensor) -> None:
        self.u, self.v = u, v
        self.step = torch.full((len(u),), TAU, dtype=u.dtype, device=u.device)
        self.square = torch.zeros_like(self.step)

    def climb(self, model: nn.Module) -> None:
        """Try a step up each squared quotient, and keep it where it raised the quotient."""
        u, v = self.u.detach().requires_grad_(), self.v.detach().requires_grad_()
        before = squared_quotients(model, u, v)
        towards_u, towards_v = torch.autograd.grad(before.sum(), (u, v))
        with torch.no_grad():
            half = self.step.view(-1, *[1] * (u.ndim - 1)) / 2
            moved_u, moved_v = u + half * towards_u, v + half * towards_v
            after = squared_quotients(model, moved_u, moved_v)
            better = after > before
            rows = better.view(half.shape)
            self.u, self.v = torch.where(rows, moved_u, u), torch.where(rows, moved_v, v)
            self.step = torch.where(better, self.step * FACTOR, self.step / FACTOR)
            self.square = torch.where(better, after, before)

    def constant(self, model: nn.Module) -> Tensor:
        """Return the largest quotient, to be differentiated in the weights."""
        worst = self.square.argmax().unsqueeze(0)
        return squared_quotients(model, self.u[worst], self.v[worst]).sqrt().squeeze()


def squared_quotients(model: nn.Module, u: Tensor, v: Tensor) -> Tensor:
    """Return ‖f(u) - f(v)‖² / ‖u - v‖² of each pair."""
    rise = (model(u) - model(v)).square().sum(dim=1)
    return rise / (u - v).flatten(1).square().sum(dim=1)


def draw_pairs(images: Dataset[Any], count: int, seed: int, device: torch.device) -> PlainPairs:
    """Return pairs of `count` drawn images and noisy copies of them."""
    rng = torch.Generator().manual_seed(seed)
    u, _ = next(iter(DataLoader(images, batch_size=count, shuffle=True, generator=rng)))
    return PlainPairs(u.to(device), (u + NOISE * torch.rand(u.shape, generator=rng)).to(device))


def train(
    model: nn.Module,
    images: Dataset[Any],
    *,
    epochs: int,
    seed: int,
    device: torch.device,
    pairs: PlainPairs | None = None,
) -> None:
    """Train `model` in place."""
    rng = torch.Generator().manual_seed(seed)
    loader = DataLoader(images, batch_size=BATCH_SIZE, shuffle=True, generator=rng)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for _ in range(epochs):
        for inputs, targets in loader:
            step(model, optimizer, inputs.to(device), targets.to(device), pairs)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    pairs: PlainPairs | None,
) -> None:
    """Take a step."""
    if pairs is not None:
        pairs.climb(model)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), targets)
    if pairs is not None:
        loss = loss + STRENGTH * pairs.constant(model)
    loss.backward()
    optimizer.step()


def robust_accuracy(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    batch_size: int,
) -> float:
    """Return the accuracy under torchattacks' PGD in the norm inf; epsilon is in pixel units."""
    import torchattacks

    library: Any = torchattacks  # it has no types
    attack = library.PGD(model, eps=epsilon, alpha=step_size, steps=steps)
    correct = 0
    with torch.random.fork_rng(devices=[]):  # the library starts from the global generator
        for batch, labels in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            attacked = attack(batch, labels)
            with torch.no_grad():
                correct += int((model(attacked).argmax(dim=1) == labels).sum())
    return correct / len(targets)
