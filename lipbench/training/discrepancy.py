"""The discrepancy principle: drive a method's strength until a target accuracy is met."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.method import Strength
from lipbench.ranges import between, optional, positive, require

Course = dict[str, Float[Tensor, " trials"]]
"""The strength of each trial, its current relative step, and the side of the target it was on."""


_NEAR = 0.02
"""Within this of the target the `adaptive` rule takes smaller steps, in proportion."""


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """How the strength follows the accuracy; the fields are keys of `benchmarks.toml`.

    While the network is more accurate than its target, the strength moves to where the Lipschitz
    constant is smaller; else the other way. It never falls below the least value the method
    allows.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), Algorithm 2. The paper moves by a constant that it does not print;
        that is the rule `additive`.
    """

    every: Literal["epoch", "step"] = "epoch"
    """When the strength moves: after each epoch, or after each step as the paper typesets it."""
    measure: Literal["batch", "train", "validation"] = "batch"
    """Accuracy on the batches of the epoch, each after its step; on the training set after the
    epoch; or on validation data. Close to collapse the accuracy of one moment jumps by several
    points, and its mean over the batches is what can be steered. After each step only the batch
    is known."""
    rule: Literal["adaptive", "relative", "additive"] = "adaptive"
    """A step is a share of the strength (`relative`), or of `scale` alone (`additive`). The
    `adaptive` share is halved when the accuracy changes side of its target, down to a quarter,
    recovers while it stays on one side, and is smaller within two points of the target."""
    step: float = 0.2
    """The share; the largest if `adaptive`."""
    scale: float | None = None
    """A strength below this is moved as if it had this size; None takes the method's."""

    def __post_init__(self) -> None:
        require(
            between("step", self.step, 0, 1, without_low=True),
            optional(positive, "scale", self.scale),
            (
                self.every != "step" or self.measure == "batch",
                f"measure must be 'batch' if the strength moves every step, got {self.measure!r}",
            ),
        )

    def start(self, strength: Float[Tensor, " trials"]) -> Course:
        """Return the course before the first move."""
        return {
            "strength": strength,
            "step": torch.full_like(strength, self.step),
            "side": torch.zeros_like(strength),
        }

    def move(
        self,
        course: Course,
        accuracy: Float[Tensor, " trials"],
        target: Float[Tensor, " trials"],
        law: Strength,
    ) -> Course:
        """Return the course after one comparison of accuracy and target. Pure tensor code."""
        above = torch.where(accuracy > target, 1.0, -1.0).to(course["strength"].dtype)
        step = course["step"]
        if self.rule == "adaptive":
            turned = above * course["side"] < 0
            repeated = above * course["side"] > 0
            step = torch.where(turned, step / 2, torch.where(repeated, step * 1.2, step))
            # Never beyond the first step: the network answers epochs later, and a strength that
            # has run ahead of it makes it collapse.
            step = step.clamp(self.step / 4, self.step)
        scale = law.scale if self.scale is None else self.scale
        strength = course["strength"]
        size = torch.full_like(strength, scale)
        if self.rule != "additive":
            size = strength.clamp_min(scale)
        if self.rule == "adaptive":
            size = size * ((accuracy - target).abs() / _NEAR).clamp(max=1.0)
        direction = above if law.shrinks else -above
        return {
            "strength": (strength + direction * step * size).clamp_min(law.least),
            "step": step,
            "side": above,
        }
