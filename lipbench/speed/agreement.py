"""Check that all sides learn the same: a side that does less would be no yardstick."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lipbench.data.splits import Split
from lipbench.speed.bench import Bench
from lipbench.speed.sides import SIDES


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The accuracies of the sides."""

    means: Mapping[str, float]
    """Mean test accuracy of each side."""
    remark: str
    problems: tuple[str, ...]
    """Says so where they differ too much."""


def agreement(bench: Bench, pairs: int | None) -> Agreement:
    """Return the mean test accuracies after a few epochs, and whether they agree."""
    scale, data = bench.scale, bench.samples.data
    means = {}
    for name, side in SIDES.items():
        bench.say(f"accuracy of {name}: {scale.seeds} seeds, {scale.epochs} epochs")
        train = side(bench.samples, trials=scale.seeds, epochs=scale.epochs, pairs=pairs)
        means[name] = statistics.mean(_accuracy(network, data.test) for network in train())
    accuracies = ", ".join(f"{name} {100 * mean:.2f} %" for name, mean in means.items())
    remark = (
        f"test accuracy after {scale.epochs} epochs, mean of {scale.seeds} seeds: {accuracies} "
        f"(may differ by {100 * scale.tolerance:g} points)"
    )
    agreed = max(means.values()) - min(means.values()) <= scale.tolerance
    problems = () if agreed else (f"the sides do not learn the same: {remark}",)
    return Agreement(means=means, remark=remark, problems=problems)


def _accuracy(network: nn.Module, split: Split) -> float:
    with torch.no_grad():
        correct = network(split.inputs).argmax(dim=1) == split.targets
    return float(correct.double().mean())
