"""Training settings of a benchmark: epochs, batches, optimiser, how a strength is driven."""

import math
from dataclasses import dataclass, field
from typing import Literal

from lipbench import fields
from lipbench.method import Method
from lipbench.networks.precision import Precision
from lipbench.ranges import Rule, at_least, finite_at_least, require
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.optimiser import Optimizer


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How every method of a benchmark is trained."""

    epochs: int
    batch_size: int = 128
    optimizer: Optimizer = field(default_factory=Optimizer)
    warmup: int = 5
    """Epochs before the strength may move and before a checkpoint may be chosen."""
    dtype: Literal["float32", "float64"] = "float32"
    precision: Precision = "full"
    """Of the network's products in the loss of a training step; all else is computed in full."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            at_least("epochs", self.epochs, 1),
            at_least("batch_size", self.batch_size, 1),
            at_least("warmup", self.warmup, 0),
            (
                self.precision == "full" or self.dtype == "float32",
                f"precision {self.precision!r} goes with dtype 'float32' alone, got {self.dtype!r}",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A method with its hyperparameters, and how a benchmark trains it: a row of its table."""

    name: str
    method: Method
    training: TrainingSettings
    """The benchmark's settings with the overrides of this entry."""
    target_accuracy: float | None = None
    """Training accuracy, as a fraction, to which the core drives the method's strength."""
    path: tuple[float, ...] = ()
    """Strengths to be trained one after the other, each from the network of the one before."""
    discrepancy: Discrepancy | None = None
    """How the strength is driven; given exactly where there is a target accuracy."""

    def __post_init__(self) -> None:
        """Check that the method has a strength to drive, and the ranges."""
        target, strength, training = self.target_accuracy, self.method.strength, self.training
        driven = [name for name, set_ in (("target_accuracy", target), ("path", self.path)) if set_]
        least = -math.inf if strength is None else strength.least
        require(
            *(
                (False, f"{name} needs a method with a strength; {self.name!r} declares none")
                for name in driven
                if strength is None
            ),
            strength_rule(self.method),
            (len(driven) < 2, "target_accuracy and path exclude each other: leave one out"),
            (
                target is None or 0 < target < 1,
                f"target_accuracy must be a fraction between 0 and 1, got {target}",
            ),
            *(finite_at_least("path", value, least) for value in self.path),
            (
                target is None or training.warmup < training.epochs,
                f"target_accuracy needs epochs after the warm-up, got epochs = {training.epochs} "
                f"and warmup = {training.warmup}",
            ),
            (
                self.discrepancy is None or target is not None,
                "discrepancy has no effect without target_accuracy",
            ),
        )


def strength_rule(method: Method) -> Rule:
    """Return the rule for the strength of a method.

    A weight or a radius must be finite. A limit may be infinite, and then limits nothing: whether
    that has a meaning the method decides.
    """
    strength = method.strength
    value = None if strength is None else getattr(method, strength.field)
    if strength is None or not isinstance(value, int | float):
        return True, ""
    holds = math.isfinite(value) or (value == math.inf and not strength.shrinks)
    return holds, f"{fields.key(strength.field)} must be finite, got {value}"
