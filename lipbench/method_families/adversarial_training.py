"""Adversarial training: what methods share that train on inputs moved within a ball."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lipbench.adversarial.worst_case import LARGEST, around, check_threat, ramped
from lipbench.method import Method, Scalars, State
from lipbench.networks.net import Net
from lipbench.norm import Norm
from lipbench.ranges import Rule, at_least, require
from lipbench.threat import Threat

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Method):
    """Know the ball, whose radius may grow over the first epochs.

    The state holds the share of epsilon that is in force. A subclass moves the inputs.
    """

    stackable: ClassVar[bool] = True

    epsilon: float = 0.3
    """Radius of the ball, in pixel units of `norm`."""
    norm: Norm = LARGEST
    """Of the ball, 2 or inf."""
    ramp: int = 0
    """Epochs in which epsilon is smaller, growing in equal parts."""

    def __post_init__(self) -> None:
        check_threat(self.norm, self.epsilon)
        require(*self.ranges())

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep; a subclass adds its own."""
        return (at_least("ramp", self.ramp, 0),)

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return the share of epsilon that is in force."""
        return {"share": data.train.inputs.new_ones(())}

    def begin_epoch(
        self, net: Net, data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state with the share of this epoch."""
        return {**state, "share": ramped(state["share"], epoch, self.ramp)}

    def due(self, state: State, h: Scalars) -> Tensor:
        """Return the epsilon that is in force."""
        return h["epsilon"] * state["share"]

    def threat(self, batch: "Batch", state: State, h: Scalars) -> Threat:
        """Return the ball around every sample, cut by the box of valid inputs."""
        return around(batch, self.norm, self.due(state, h))
