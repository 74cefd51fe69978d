"""Adversarial Lipschitz regularisation (ALR)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad

from lipbench.adversarial.ascent import steepest
from lipbench.adversarial.losses import divergence
from lipbench.data.splits import Batch
from lipbench.lipschitz.lower_bounds.pairs import Pairs, quotients
from lipbench.method import Method, Scalars, State, Strength
from lipbench.networks.net import Net
from lipbench.norm import Norm
from lipbench.ranges import at_least, positive, require

if TYPE_CHECKING:
    from lipbench.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class ALR(Method):
    """Penalise quotients above K between each sample and a point that an attack finds near it.

    The objective is loss + lambda·mean max(d(f(x), f(x + r))/‖r‖ - K, 0), d a distance of outputs.
    r = eps·u has a random length; its direction u follows `ip` steps of power iteration
    u ← ∇_u d(f(x), f(x + xi·u)), normalised, from a random start, with x + xi·u held in the box of
    valid inputs, as in virtual adversarial training. The weights see x and x + r as constants.

    The quotient is a lower bound of the constant at one pair per sample: no guarantee. With the
    Kullback-Leibler divergence, K = 0 and quotients times ‖r‖ it is virtual adversarial training.

    Source:
        Terjék, Adversarial Lipschitz Regularization (2020), section 4, and the author's code. There
        images range over [-1, 1], so that `xi` and the lengths of r are twice those here. It has
        the distance and K = 1 for critics, whose constant is to be 1, and the divergence with K = 0
        and without ‖r‖ for semi-supervised classification.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.5)

    lambda_: float = 1.0
    """Weight of the penalty; where the discrepancy principle starts."""
    bound: float = 1.0
    """K: quotients up to it cost nothing."""
    distance: Literal["euclidean", "divergence"] = "euclidean"
    """Of outputs: the Euclidean distance of logits, or the Kullback-Leibler divergence of the
    classes' probabilities at x + r from those at x."""
    power: Literal[1, 2] = 1
    """Of the excess over K: 1 as for classifiers in the author's code, 2 as for critics."""
    least: float = 0.05
    """Shortest ‖r‖, l2 in pixel units; lengths are uniform between the two."""
    most: float = 5.0
    """Longest ‖r‖, l2 in pixel units."""
    xi: float = 5.0
    """How far a step of power iteration looks, l2 in pixel units."""
    ip: int = 1
    """Steps of power iteration; 0 leaves the direction random."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("bound", self.bound, 0),
            positive("least", self.least),
            positive("xi", self.xi),
            (
                self.most >= self.least,
                f"most must be at least least = {self.least}, got {self.most}",
            ),
            at_least("ip", self.ip, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 3.5 + 1.2 * self.ip

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there is no divergence, or None."""
        if self.distance == "divergence" and data.task != "classification":
            return "a divergence is of classes, and this is regression: set distance = 'euclidean'"
        return None

    def draw(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Return where each direction starts, and each length as a share of the longest."""
        like = batch.inputs
        start = torch.rand(like.shape, generator=rng, dtype=like.dtype) - 0.5
        share = torch.rand(len(like), generator=rng, dtype=like.dtype)
        return {"start": start.to(like.device), "share": share.to(like.device)}

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        direction = self._direction(net.exact.frozen, batch, draw["start"], h)
        length = h["least"] + (h["most"] - h["least"]) * draw["share"]
        offset = direction * length.view(-1, *[1] * (direction.ndim - 1))
        excess = (self._quotients(net.exact, batch.inputs, offset, length) - h["bound"]).relu()
        penalty = h["lambda_"] * excess.pow(self.power).mean()
        return batch.loss(outputs) + penalty, {**state, "buffers": buffers}

    def _direction(self, frozen: Net, batch: Batch, start: Tensor, h: Scalars) -> Tensor:
        inputs, box = batch.inputs, batch.box
        direction, known = steepest(start, Norm(2)), frozen(inputs)

        def rise(towards: Tensor) -> Tensor:
            moved = inputs + h["xi"] * towards
            outputs = frozen(moved if box is None else moved.clamp(*box))
            if self.distance == "divergence":
                return divergence(known, outputs).sum()
            # Its gradient points where that of the distance does, and exists at 0.
            return (known - outputs).square().sum()

        for _ in range(self.ip):
            steeper = steepest(grad(rise)(direction), Norm(2))
            frozen.meter.gradients += len(inputs)
            # Where no step moves the outputs, one direction is as good as any other.
            still = (steeper == 0).flatten(1).all(dim=1)
            direction = torch.where(still.view(-1, *[1] * (steeper.ndim - 1)), direction, steeper)
        return direction

    def _quotients(
        self, net: Net, inputs: Tensor, offset: Tensor, length: Tensor
    ) -> Float[Tensor, " batch"]:
        if self.distance == "euclidean":
            pairs = Pairs(2 * inputs + offset, offset, length)
            return quotients(net.stem or net, pairs)
        near, far = net(torch.cat([inputs, inputs + offset])).chunk(2)
        return divergence(near, far) / length
