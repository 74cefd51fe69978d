"""The configurations of whole runs that are timed."""

import math
from typing import Any

Table = dict[str, Any]
"""A configuration, as a file would give it."""


def digits() -> Table:
    """Return a benchmark as those that are published, on data that need no download."""
    return _benchmark(
        seeds=range(3),
        dataset={"name": "digits", "train_size": 1077, "pair_size": 180, "validation_size": 180},
        model={"name": "mlp", "widths": [64, 64], "activation": "sigmoid"},
        training={
            "epochs": 40,
            "batch_size": 128,
            "warmup": 5,
            "optimizer": {"name": "adam", "lr": 0.02},
        },
        selection={"attack": "pgd_l2_sign", "epsilon": 0.5, "alpha": 0.0625, "steps": 10},
        evaluation={
            "noise": [
                {"sigma": sigma, "clamp": c} for sigma in (0.3081, 1.0) for c in (True, False)
            ],
            "attack": [
                {"name": "pgd_l2_sign", "epsilon": [0.5], "alpha": 0.0625, "steps": 100},
                {"name": "pgd", "norm": 2, "epsilon": [0.25, 0.5, 1.0, 1.58, 2.0], "starts": 2},
                {"name": "pgd", "norm": math.inf, "epsilon": [0.05, 0.1, 0.2, 0.3], "starts": 2},
            ],
            "bound": ["product", "jacobian", "pair_ascent"],
        },
        method=["standard", {"name": "clip", "target_accuracy": 0.9}],
    )


def many_cells(count: int) -> Table:
    """Return a benchmark of cells that take no time, with one evaluation of each kind."""
    return _benchmark(
        seeds=range(count),
        dataset={"name": "digits", "train_size": 128},
        model={"name": "mlp", "widths": [16], "activation": "relu"},
        training={
            "epochs": 2,
            "batch_size": 16,
            "warmup": 0,
            "optimizer": {"name": "adam", "lr": 0.02},
        },
        selection="last",
        evaluation={
            "test_size": 40,
            "noise": [{"sigma": 0.3, "clamp": True, "draws": 1}],
            "attack": [{"name": "pgd", "norm": 2, "epsilon": [0.5], "steps": 1, "starts": 1}],
            "bound": ["product"],
        },
        method=["standard"],
    )


def _benchmark(seeds: range, **table: Any) -> Table:
    return {"schema": 1, "seeds": list(seeds), "benchmark": [{"name": "speed", **table}]}
