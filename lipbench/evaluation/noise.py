"""Accuracy under Gaussian noise."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.adversary import Classifier
from lipbench.data.splits import Batch
from lipbench.networks.modes import evaluation_mode
from lipbench.threat import Box


def noise_accuracy(
    model: Classifier,
    inputs: Float[Tensor, "batch *shape"],
    labels: Int[Tensor, " batch"],
    sigma: float | int,
    clamp: Box | None,
    draws: int,
    rng: torch.Generator,
    batch_size: int = 1000,
) -> tuple[float, ...]:
    """Return the share of correct answers to noisy inputs, one for each draw of the noise.

    Args:
        model: The classifier.
        inputs: Clean inputs.
        labels: Their classes.
        sigma: Standard deviation of the noise of each coordinate, in pixel units.
        clamp: Box that noisy inputs are clipped to, or None.
        draws: How often the noise of the whole set is drawn.
        rng: Source of the noise, on the CPU; the result does not depend on the batches.
        batch_size: Samples at a time.

    Raises:
        ValueError: If `sigma` is negative or not finite, or `draws` less than 1.
    """
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be finite and at least 0, got {sigma}.")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    accuracies = []
    with evaluation_mode(model), torch.no_grad():
        for _ in range(draws):
            noise = torch.randn(inputs.shape, generator=rng).to(inputs)
            noisy = inputs + sigma * noise
            if clamp is not None:
                noisy = noisy.clamp(*clamp)
            accuracies.append(_accuracy(model, noisy, labels, batch_size))
    return tuple(accuracies)


def _accuracy(model: Classifier, inputs: Tensor, labels: Tensor, batch_size: int) -> float:
    correct = 0.0
    for rows in torch.split(torch.arange(len(inputs), device=inputs.device), batch_size):
        batch = Batch(inputs[rows], labels[rows])
        correct += batch.correct(model(batch.inputs)).sum().item()
    return correct / len(inputs)
