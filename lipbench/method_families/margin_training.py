"""Margin training: what methods share whose radius grows from epoch to epoch."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.method import Method, Scalars, State, Summary
from lipbench.method_families import differentiable_constant, margins
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, between, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class MarginTraining(Method):
    """Grow the radius in a straight line, and count the samples that keep it.

    The state holds the share of the radius that is due, and the counts of the epoch. A subclass
    has the radius, and what bounds how far logits rise within it.
    """

    stackable: ClassVar[bool] = True

    ramp: float = 0.5
    """Share of the epochs over which the radius grows to its value."""
    first: float = 0.01
    """Share of the radius in the first epoch, if it grows."""
    iterations: int = 1
    """Steps of power iteration per training step."""

    def __post_init__(self) -> None:
        require(*self.ranges())

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep; a subclass adds its own."""
        return (
            between("ramp", self.ramp, 0, 1),
            between("first", self.first, 0, 1),
            at_least("iterations", self.iterations, 1),
        )

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or None."""
        if data.task == "classification":
            return None
        return "margins need classes, and the data set is a regression"

    def due(self, like: Tensor) -> State:
        """Return the share of the radius in the first epoch, and empty counts, typed like this."""
        return margins.start(like, self.first if self.ramp > 0 else 1.0)

    def begin_epoch(
        self, net: Net, data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state with counts from 0."""
        return {**state, **margins.restarted(state)}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with the share of the radius in the next epoch."""
        return {**state, **margins.grown(state, summary, self.first, self.ramp)}

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return the share of samples that were certified by what was measured in their step."""
        return margins.report(state)


@dataclass(frozen=True, kw_only=True)
class GlobalMarginTraining(MarginTraining):
    """Hold margins against one l2 constant of the network, which is followed while weights move.

    The state holds the vectors of power iteration, too. A subclass has the radius, and what is
    minimised once logits have risen within it.
    """

    iterations: int = 1
    """Steps of power iteration per training step; they converge after each epoch."""

    @property
    def by_rows(self) -> bool:
        """Return whether each two logits have a constant of their own, or all have the same."""
        return True

    @abstractmethod
    def radius(self, h: Scalars) -> Float[Tensor, ""]:
        """Return the radius that margins shall have when it has grown."""

    @abstractmethod
    def objective(
        self,
        outputs: Float[Tensor, "batch classes"],
        batch: "Batch",
        gaps: Float[Tensor, "classes classes"],
        radius: Float[Tensor, ""],
        h: Scalars,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]:
        """Return the objective, and by how much each logit can rise against that of the label.

        Args:
            outputs: The logits.
            batch: The samples that they belong to.
            gaps: For each two classes the constant of the difference of their logits.
            radius: How far a sample may move at present.
            h: The fields.
        """

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or no constant to hold them against, or None."""
        reason = super().refuses(model, data)
        return reason or differentiable_constant.why_not(model, data.dataset.input_shape)

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return converged power vectors, the share of the radius that is due, and no counts."""
        return {**differentiable_constant.start(net.steps, rng), **self.due(net.layers[-1].weight)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective, and the state with the vectors moved on."""
        outputs, buffers = net.train(batch.inputs)
        network = replace(net, buffers=buffers).steps
        gaps, vectors = differentiable_constant.gaps(
            network, state, self.iterations, by_rows=self.by_rows
        )
        radius = self.radius(h) * state["share"]
        value, rises = self.objective(outputs, batch, gaps, radius, h)
        # A sample that is wrong is not safe, whatever rises.
        certified = margins.safe(outputs.detach(), batch.targets, rises.detach())
        counts = margins.counted(state, certified)
        return value, {**state, **vectors, **counts, "buffers": buffers}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with converged vectors, and the share of the radius that comes next."""
        vectors = differentiable_constant.converged(net.steps, state)
        return super().end_epoch(net, summary, state, h) | vectors
