"""One training run: a method, a seed, and how its strength is driven."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from lipbench.guards.guard import guarded
from lipbench.method import Method
from lipbench.norm import Norm
from lipbench.seeds import stream
from lipbench.training.settings import MethodEntry


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A member of a stack: what differs from its neighbours is only numbers."""

    entry: MethodEntry
    seed: int

    @property
    def method(self) -> Method:
        """Return the method with its hyperparameters."""
        return self.entry.method

    @property
    def points(self) -> tuple[float | None, ...]:
        """Return the strengths to train at one after the other; None is the method's own."""
        return self.entry.path or (None,)

    def guard(self, hook: str, *labels: object, **given: Any) -> AbstractContextManager[None]:
        """Return the guard of a call of the method for this trial alone.

        Args:
            hook: What is called.
            labels: What tells calls of it apart: each has global generators of its own.
            given: What the hook must not change.
        """
        name = self.entry.name
        rng = stream(self.seed, "global", name, hook, *map(str, labels))
        return guarded(f"method {name!r}", hook, rng.initial_seed(), **given)

    def unregularised(self, strength: float | None) -> bool:
        """Return whether this strength, driven to a target, is the least: without effect."""
        law = self.method.strength
        driven = law is not None and law.shrinks and self.entry.target_accuracy is not None
        return driven and law is not None and strength is not None and strength <= law.least

    def scalars(self) -> dict[str, float]:
        """Return the fields that may differ within a stack: those that are real numbers."""
        values = {}
        for item in fields(self.method):
            value = getattr(self.method, item.name)
            # A norm is a number too, but other norms are other code. Python lets a caller write 1
            # where a field says float.
            whole = item.type in (float, "float") and type(value) is int
            if whole or (isinstance(value, float) and not isinstance(value, Norm)):
                values[item.name] = float(value)
        return values

    def shared(self) -> tuple[Any, ...]:
        """Return all that must be equal for two trials to be stacked."""
        entry, scalars = self.entry, self.scalars()
        rest = tuple(
            (item.name, getattr(self.method, item.name))
            for item in fields(self.method)
            if item.name not in scalars
        )
        driven = (entry.target_accuracy is None, len(entry.path), entry.discrepancy)
        # Learning rates are numbers too: the optimiser takes one for each trial.
        training = replace(entry.training, optimizer=replace(entry.training.optimizer, lr=1.0))
        return (entry.name, type(self.method), tuple(scalars), rest, driven, training)


def representative(trials: Sequence[Trial]) -> Method:
    """Return the first trial's method, to run its hooks for all trials of a stack.

    Fields that differ within the stack, and a strength that the core drives, reach the hooks
    through `h` alone: reading one of them raises a TypeError that says so.
    """
    first = trials[0]
    scalars = [trial.scalars() for trial in trials]
    hidden = {name for name in scalars[0] if len({each[name] for each in scalars}) > 1}
    law = first.method.strength
    if law is not None and (first.entry.target_accuracy is not None or first.entry.path):
        hidden.add(law.field)
    if not hidden:
        return first.method
    kind = type(first.method)
    guarded = type(kind.__name__, (kind,), {name: _only_in_h(kind, name) for name in hidden})
    method: Method = object.__new__(guarded)
    method.__dict__.update({k: v for k, v in vars(first.method).items() if k not in hidden})
    return method


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network worth judging, and how training came to it."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    epoch: int
    """Number of the epoch, from 1, over all points of a path."""
    strength: float | None
    """The value that the method's strength field had in that epoch."""
    train_accuracy: float | None
    validation_score: float | None
    """Validation accuracy under the selection attack, if it was measured."""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one trial: its networks, its history, and what it took."""

    state: str
    """`done` or `nan`."""
    message: str
    checkpoints: dict[str, Checkpoint]
    """By name: `chosen`, `last`, and `path:0`, `path:1`, ... for the points of a path."""
    history: list[dict[str, float | int | None]]
    """One row per epoch, as train.csv has it."""
    seconds: float
    """Wall time of the stack's training divided by its number of trials."""
    forwards: int
    """Samples sent through the network in training."""
    gradients: int
    """Samples whose gradient was taken in training, in the weights or in the inputs."""


def _only_in_h(kind: type[Method], name: str) -> property:
    def refuse(method: Method) -> None:
        raise TypeError(
            f"{kind.__name__} reads self.{name} in a hook that runs for a whole stack, in which "
            f'it has no one value: read h["{name}"].'
        )

    return property(refuse)
