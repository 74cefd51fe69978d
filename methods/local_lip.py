"""Local-Lip: margins against a local Lipschitz constant around each sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lipbench.method import Scalars, State, Strength
from lipbench.method_families import differentiable_constant, differentiable_local_constant, margins
from lipbench.method_families.margin_training import MarginTraining
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, between, finite_at_least
from lipbench.refused import Refused

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class LocalLip(MarginTraining):
    """Train margins against what the network can do within epsilon of each sample.

    A neuron that is constant while x' stays in the ball does not count in the norms of the layers
    beside it, so that the constant is smaller than the global one, and gets smaller still when
    training turns neurons off. A logit rises against another by the local constant times the
    distance of their rows, or by what intervals allow if that is less.

    With `form` "bottom" the objective is cross entropy over the classes and a class ⊥, whose logit
    is the largest that a class other than the predicted one can rise to: the loss of GloRo. With
    "worst" it is kappa times cross entropy plus 1 - kappa times that of the logits which have all
    risen against the label, where kappa falls from 1 as epsilon grows.

    The network is a chain of dense and convolutional layers, padded with zeros, maxima over
    windows, and activations that rise everywhere, such as ReLU, also clipped. A normalisation by
    fixed numbers may stand before it; batch normalisation may not.
    Norms are followed by power iteration on one vector per training sample and layer, and lie a
    little below the true ones. Nothing is guaranteed in advance.

    Source:
        Huang, Zhang, Shi, Kolter, Anandkumar, Training Certifiably Robust Neural Networks with
        Efficient Local Lipschitz Bounds (NeurIPS 2021), https://arxiv.org/abs/2111.01395, section
        3, and the authors' code for the schedules, which run over half of 300 epochs. There the
        worst logits are searched in the ball and the box at once; here the better of both counts.
    """

    strength: ClassVar[Strength] = Strength(field="epsilon", scale=0.1)

    epsilon: float = 1.75
    """Radius of the balls in pixel units, l2 norm. The authors train at 1.75 for MNIST, to certify
    at 1.58; images of the digits are smaller."""
    form: Literal["bottom", "worst"] = "bottom"
    """Which logits have risen: that of ⊥, or all wrong ones."""
    kappa: float = 0.0
    """Weight of plain cross entropy in the form "worst", once epsilon has grown to its value."""
    iterations: int = 5
    """Steps of power iteration each time a sample is seen; the authors take 5 for MNIST and 2 for
    CIFAR-10. Vectors are kept, and converge over epochs."""
    largest: int = 2**27
    """Most numbers that the vectors of all training samples may be; each step copies them."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            finite_at_least("epsilon", self.epsilon, 0),
            between("kappa", self.kappa, 0, 1),
            at_least("largest", self.largest, 1),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 7.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no margins, or no local constant to hold them against, or None."""
        reason = super().refuses(model, data)
        if reason is not None:
            return reason
        try:
            network = differentiable_constant.read(model, data.dataset.input_shape)
            trunk, _ = differentiable_constant.split(network)
        except Refused as error:
            return str(error).rstrip(".")
        reason = differentiable_local_constant.why_not(trunk)
        size = len(data.train) * differentiable_local_constant.entries(trunk)
        if reason is None and size > self.largest:
            return (
                f"its vectors for {len(data.train)} samples are {size} numbers, more than largest "
                f"= {self.largest}: raise it, or lower train_size"
            )
        return reason

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return random vectors for each sample, the share of epsilon that is due, no counts."""
        trunk, last = differentiable_constant.split(net.steps)
        vectors = differentiable_local_constant.start(trunk, len(data.train), rng)
        return {**vectors, **self.due(last.weight)}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective, and the state with the vectors of the batch moved on."""
        assert batch.index is not None
        outputs, buffers = net.train(batch.inputs)
        trunk, last = differentiable_constant.split(net.steps)
        net.meter.forwards += len(batch.inputs)
        net.meter.gradients += len(batch.inputs)
        radius = h["epsilon"] * state["share"]
        vectors = differentiable_local_constant.read(state, trunk, batch.index)
        local, moved = differentiable_local_constant.local_constant(
            trunk, batch.inputs, radius, vectors, self.iterations
        )
        if self.form == "bottom":
            predicted = outputs.argmax(dim=1)
            rises = local.rises(last, predicted)
            bottom = margins.bottom(outputs, predicted, rises)
            value = batch.loss(outputs) + F.softplus(bottom - outputs.logsumexp(dim=1)).mean()
        else:
            rises = local.rises(last, batch.targets)
            risen = (1 - h["kappa"]) * state["share"]
            value = (1 - risen) * batch.loss(outputs) + risen * batch.loss(outputs + rises)
        # A sample that is wrong is not safe, whatever rises.
        certified = margins.safe(outputs.detach(), batch.targets, rises.detach())
        counts = margins.counted(state, certified)
        vectors = differentiable_local_constant.replaced(state, moved, batch.index)
        return value, {**state, **vectors, **counts, "buffers": buffers}
