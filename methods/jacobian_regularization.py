"""Jacobian regularisation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.sensitivity import pulled_squares
from lipbench.networks.net import Net
from lipbench.ranges import at_least, require


@dataclass(frozen=True, kw_only=True)
class JacobianRegularization(Method):
    """Penalise the Frobenius norm of the Jacobian of the outputs (the logits) at the data.

    The objective is loss + lambda/2·mean ‖J(x)‖_F². As E ‖vᵀJ‖² = ‖J‖_F²/C for v uniform on the
    unit sphere of the C outputs, C·‖vᵀJ‖² is unbiased; it is the mean over some such v, drawn for
    each sample and step, or with `projections` -1 the exact sum over unit vectors.

    The Jacobian is that of the network in evaluation mode. It is small at the data and anything
    elsewhere, so the method guarantees nothing.

    Source:
        Hoffman, Roberts, Yaida, Robust Learning with Jacobian Regularization (2019), section 2 and
        Algorithm 1; factors, n = -1 and the weight 0.01 are those of the authors' code.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.1)

    lambda_: float = 0.01
    """Weight of half the squared norm; where the discrepancy principle starts."""
    projections: int = 1
    """Random directions v for each sample (n in the paper); -1 is exact, as many passes backwards
    as there are outputs."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            (
                self.projections >= 1 or self.projections == -1,
                f"projections must be at least 1, or -1, got {self.projections}",
            ),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.4 + 0.06 * (10 if self.projections == -1 else self.projections)

    def draw(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the directions, or nothing where all unit vectors are taken."""
        if self.projections == -1:
            return {}
        assert batch.data is not None
        like, outputs = batch.inputs, batch.data.dataset.outputs
        shape = (self.projections, len(like), outputs)
        normal = torch.randn(shape, generator=rng, dtype=like.dtype)
        return {"directions": (normal / normal.norm(dim=2, keepdim=True)).to(like.device)}

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        directions = draw.get("directions")
        if directions is None:
            units = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
            directions = units.unsqueeze(1).expand(-1, len(outputs), -1)
        squares = pulled_squares(net, batch.inputs, directions).mean()
        penalty = h["lambda_"] / 2 * outputs.shape[1] * squares
        return batch.loss(outputs) + penalty, {**state, "buffers": buffers}
