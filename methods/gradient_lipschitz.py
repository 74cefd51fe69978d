"""Gradient norm regularisation: a penalty on the largest input gradient over the data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lipbench.adversarial.losses import margin
from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.sensitivity import lengths, squared_slopes
from lipbench.networks.net import Net
from lipbench.ranges import at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class GradientLipschitz(Method):
    """Penalise the excess of the largest gradient over the data.

    The objective is loss + lambda·max(max_x ‖∇ₓ g(x)‖₂ - L0, 0), with g the margin or the loss of
    each sample. Its subgradient is that of the steepest sample of all. A step sees a batch, whose
    maximum is of the batch alone: less than that of the data, and at another sample each time. So
    the `kept` steepest samples met so far come along with each batch, and are measured anew with
    the present weights. Were the weights to rest for an epoch, the maximum at its end would be that
    of all samples. With `kept` 0 it is the maximum over the batch.

    The gradients are those of the network in evaluation mode. A maximum over the data is a lower
    bound of the constant of g: the method guarantees nothing.

    Source:
        Oberman, Calder, Lipschitz Regularized Deep Neural Networks Converge and Generalize (2018),
        the objective loss + lambda·max(Lip(u) - L0, 0), with the maximum over the data for the
        constant. The kept samples are this project's; with g the loss and the batch alone it is as
        in Finlay, Calder, Abbasi, Oberman, Lipschitz Regularized Deep Neural Networks Generalize
        and are Adversarially Robust (2018).
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.05)

    lambda_: float = 0.02
    """Weight of the excess; where the discrepancy principle starts."""
    bound: float = 0.0
    """L0, per pixel: a largest gradient up to it costs nothing. The paper takes the constant of
    the data's labels."""
    of: Literal["margin", "loss"] = "margin"
    """What g is: the best wrong logit less the own one, or the loss. That of cross entropy is flat
    where the network is sure, however steep its logits are."""
    kept: int = 1
    """Steepest samples that come along from step to step."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("bound", self.bound, 0),
            at_least("kept", self.kept, 0),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.9

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there is no margin, or too few samples to keep, or None."""
        if self.of == "margin" and data.task != "classification":
            return "a margin is of classes, and this is regression: set of = 'loss'"
        if self.of == "margin" and data.dataset.outputs < 2:
            return "a margin is between classes, and there is one: set of = 'loss'"
        if self.kept > len(data.train):
            return f"it keeps {self.kept} samples of {len(data.train)}: lower kept"
        return None

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return the first samples as those kept: any will do, as all are measured each step."""
        return {"rows": torch.arange(self.kept, device=data.train.inputs.device)}

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty, and the steepest samples."""
        outputs, buffers = net.train(batch.inputs)
        rows, watched = self._watched(batch, state["rows"])
        value = watched.losses if self.of == "loss" else lambda z: margin(z, watched.targets)
        squares = squared_slopes(net, watched.inputs, value)
        largest = lengths(squares).amax()
        penalty = h["lambda_"] * (largest - h["bound"]).relu()
        # No sample is kept twice: those of the batch that were kept count there alone.
        again = (rows.unsqueeze(1) == state["rows"]).any(dim=1)
        again = again & (torch.arange(len(rows), device=rows.device) >= self.kept)
        steepest = torch.where(again, -1.0, squares.detach()).topk(self.kept).indices
        state = {**state, "rows": rows.take_along_dim(steepest, dim=0), "buffers": buffers}
        return batch.loss(outputs) + penalty, state

    def _watched(self, batch: Batch, kept: Tensor) -> tuple[Int[Tensor, " samples"], Batch]:
        """Return the kept samples and those of the batch, and their rows in the training split."""
        assert batch.data is not None
        assert batch.index is not None
        train = batch.data.train
        inputs = torch.cat([train.inputs.index_select(0, kept), batch.inputs])
        targets = torch.cat([train.targets.index_select(0, kept), batch.targets])
        return torch.cat([kept, batch.index]), Batch(inputs, targets, batch.task, batch.box)
