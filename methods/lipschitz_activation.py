"""Learnt spline activations of controlled Lipschitz constant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.layers.splines import Spline, piece_slopes, variation_norms
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.learnt_splines import activation_widths, with_splines
from lipbench.method_families.penalty import parameter_penalty
from lipbench.networks.net import Net
from lipbench.ranges import at_least, finite_positive, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class LipschitzActivation(Method):
    """Learn the activations as linear splines, and penalise a bound of their constants.

    Every activation layer is replaced by functions φ(t) = b₀ + b₁t + Σ aₖ(t - tₖ)₊ with knots tₖ
    in fixed places. They start as the activation itself, interpolated at the knots, and their
    values there are trained. The objective is

        loss + lambda·Σ (‖a‖₁ + |φ(0)| + |φ(1)|) + mu·½Σ‖W‖²,

    the first sum over all functions, the second over the weights of all layers. A term of the
    first is no less than the Lipschitz constant of its φ, max |b₁ + a₁ + … + aⱼ| over j ≥ 0, and
    ‖a‖₁ favours few bends. Slopes and weights are penalised and not bounded: the method
    guarantees nothing. Bounds read the slopes as they are. The column `steepest` is the largest
    constant of an activation.

    A target accuracy drives mu. Lambda would not do: larger weights make up for flatter
    activations, and on the digits the accuracy was the same at lambda 0.03 and at 0.3.

    A layer of n neurons takes the memory of n times `knots`.

    Source:
        Aziznejad, Gupta, Campos, Unser, Deep Neural Networks with Trainable Activations and
        Controlled Lipschitz Constant (2020), https://arxiv.org/abs/2001.06263. Coordinates and
        defaults are those of the authors' library DeepSplines, except that it starts from leaky
        ReLUs and has an optimiser of its own for the splines. Knots are never removed here.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="mu", scale=0.01)

    lambda_: float = 1e-4
    """Weight of the bound of the activations' constants."""
    mu: float = 5e-4
    """Weight of half the square of the weights; where the discrepancy principle starts."""
    knots: int = 51
    """Of each function, spread evenly over [-reach, reach]; odd, so that one of them is 0."""
    reach: float = 4.0
    """Where the last knots are."""
    shared: bool = False
    """One function for each layer, instead of one for each neuron, or channel of a convolution."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("mu", self.mu, 0),
            (
                self.knots >= 3 and self.knots % 2 != 0,
                f"knots must be odd and at least 3, got {self.knots}",
            ),
            finite_positive("reach", self.reach),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 3.5 + 0.02 * self.knots

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there is no activation to learn, or None."""
        channels = activation_widths(model, data.dataset.input_shape)
        if not channels:
            return "the network has no activation layer that a spline can stand for"
        several = [widths for widths in channels.values() if len(set(widths)) > 1]
        if several and not self.shared:
            return (
                f"an activation layer is used where there are {several[0][0]} and where there are "
                f"{several[0][1]} channels: set shared, or give each place its own layer"
            )
        return None

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network with splines for activations."""
        knots = torch.linspace(-self.reach, self.reach, self.knots)
        return with_splines(model, input_shape, knots, shared=self.shared)

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective of a step."""
        outputs, buffers = net.train(batch.inputs)
        splines = _splines(net)
        bound = torch.stack([variation_norms(*each).sum() for each in splines.values()]).sum()
        weights = {name: value for name, value in net.params.items() if name not in splines}
        decay = parameter_penalty(weights, power=2, biases=False)
        value = batch.loss(outputs) + h["lambda_"] * bound + h["mu"] * decay
        return value, {**state, "buffers": buffers}

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return the largest Lipschitz constant of an activation."""
        constants = [float(piece_slopes(*each).abs().max()) for each in _splines(net).values()]
        return {"steepest": max(constants)}


def _splines(net: Net) -> dict[str, tuple[Tensor, Tensor]]:
    """Return heights and knots of all splines, under the names of the heights."""
    modules = net.skeleton.module.named_modules()
    paths = [path for path, module in modules if isinstance(module, Spline)]
    return {
        f"{path}.heights": (net.params[f"{path}.heights"], net.buffers[f"{path}.knots"])
        for path in paths
    }
