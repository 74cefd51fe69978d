"""Training recipes: the three sides train networks of the same seeds by the same protocol."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import nn

from lipbench.speed import eager, ours, plain
from lipbench.speed.samples import Samples

Training = Callable[[], list[nn.Module]]
"""Trains, and returns the networks."""


class Recipe(Protocol):
    """A way to train the networks of the seeds 0, 1, ..."""

    def __call__(
        self, samples: Samples, *, trials: int, epochs: int, pairs: int | None
    ) -> Training:
        """Return what trains `trials` networks; with CLIP if there are `pairs`."""


def _ours(samples: Samples, *, trials: int, epochs: int, pairs: int | None) -> Training:
    stack = ours.trainer(samples.data, trials=trials, epochs=epochs, pairs=pairs)
    state = stack.begin()
    return lambda: ours.train(stack, state)


def _plain(samples: Samples, *, trials: int, epochs: int, pairs: int | None) -> Training:
    device = samples.data.train.inputs.device
    models = _networks(samples, trials)
    drawn = [pairs and plain.draw_pairs(samples.pairs, pairs, s, device) for s in range(trials)]

    def train() -> list[nn.Module]:
        for seed, model in enumerate(models):
            seed_pairs = drawn[seed] or None
            plain.train(
                model, samples.train, epochs=epochs, seed=seed, device=device, pairs=seed_pairs
            )
        return models

    return train


def _eager(samples: Samples, *, trials: int, epochs: int, pairs: int | None) -> Training:
    data, models = samples.data, _networks(samples, trials)
    drawn = [pairs and eager.draw_pairs(data.pairs.inputs, pairs, s) for s in range(trials)]

    def train() -> list[nn.Module]:
        for seed, model in enumerate(models):
            split, seed_pairs = data.train, drawn[seed] or None
            eager.train(
                model, split.inputs, split.targets, epochs=epochs, seed=seed, pairs=seed_pairs
            )
        return models

    return train


def _networks(samples: Samples, trials: int) -> list[nn.Module]:
    like, outputs = samples.data.train.inputs, samples.data.dataset.outputs
    size = math.prod(like.shape[1:])
    return [plain.network(size, outputs, seed).to(like.device) for seed in range(trials)]


SIDES: Mapping[str, Recipe] = {"ours": _ours, "plain": _plain, "eager": _eager}
