"""Kinds of rows: for each metric its sides, its range, and which columns it has."""

import math
from dataclasses import dataclass

NORMS = (1.0, 2.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What all rows of one metric have in common."""

    sides: tuple[str, ...]
    least: float = 0.0
    most: float = math.inf
    may_be_nan: bool = False
    may_lack: bool = False
    """Whether a row that is done may have no value."""
    is_count: bool = False
    """Whether the value is a share of its samples."""
    has_norm: bool = False
    """Whether it speaks of a norm."""
    has_domain: bool = False
    """Whether it would say something else of another domain."""
    has_epsilon: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value is in the range."""
        return self.may_be_nan if value != value else self.least <= value <= self.most


def _fact(least: float = 0.0) -> Kind:
    return Kind(sides=("",), least=least)


_ACCURACY = Kind(sides=("exact",), most=1.0, is_count=True)
_LOSS = Kind(sides=("exact",), may_be_nan=True)
_NOISE = Kind(sides=("estimate",), most=1.0, may_lack=True)
KINDS = {
    "train_accuracy": _ACCURACY,
    "test_accuracy": _ACCURACY,
    "largest_class": Kind(sides=("",), most=1.0, is_count=True),
    "loss": _LOSS,
    "mse": _LOSS,
    "noise_accuracy": _NOISE,
    "noise_accuracy_std": _NOISE,
    "robust_accuracy": Kind(
        sides=("upper",), most=1.0, is_count=True, has_norm=True, has_epsilon=True
    ),
    "attack_queries": Kind(sides=("exact",), has_norm=True),
    "certified_accuracy": Kind(
        sides=("lower",), most=1.0, is_count=True, has_norm=True, has_epsilon=True
    ),
    "certified_radius_quantile": Kind(sides=("lower",), least=-math.inf, has_norm=True),
    "lipschitz": Kind(
        sides=("lower", "upper", "exact", "estimate"), has_norm=True, has_domain=True
    ),
    "claimed_lipschitz": Kind(sides=("upper",), has_norm=True, has_domain=True),
    "input_scale": Kind(sides=("exact",)),
    "epoch": _fact(),
    "training_seconds": _fact(),
    "network_evaluations": _fact(),
    "gradient_evaluations": _fact(),
    "strength": _fact(-math.inf),
    "validation_score": _fact(-math.inf),
    "cell": Kind(sides=("",), may_lack=True),
}
"""What is known of each metric, by its name before any bracket."""
