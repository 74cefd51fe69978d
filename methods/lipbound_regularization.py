"""LipBound regularisation: the Toeplitz bound of convolutions as a penalty."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.operator_norms.layer_products import convolution
from lipbench.lipschitz.operator_norms.toeplitz import sampled_norm, too_many_taps
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.readable_layers import read, unreadable_reason
from lipbench.networks.net import Net
from lipbench.networks.steps import Linear
from lipbench.ranges import at_least, require

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class LipBoundRegularization(Method):
    """Penalise the logarithm of an upper bound of the network's constant, layer by layer.

    The objective is loss + lambda·Σ log LipBound(W_l). LipBound of a kernel K with m channels on
    its smaller side is the root of Σ_i max_w Σ_j |F_ij(w)|², i the m channels, F(w) = Σ_u K_u
    exp(-i u·w) the symbol: at each frequency w that is its squared Frobenius norm, which bounds its
    largest singular value, and the maximum over w bounds the convolution on images of any size. On
    S samples per axis the maximum is known from below; the factor that makes it an upper bound is
    the same for all kernels of one size, and the gradient of the logarithm does not see it.

    A logarithm has no smallest value: the pull on a layer grows as its weights shrink, and a large
    lambda empties the network. On the digits, with Adam at 0.02, a ReLU network of layers 64-64-10
    did well with lambda 0.1 and was gone with 0.3, one of sigmoids did with 0.03 and was gone with
    0.1. The method guarantees nothing.

    Source:
        Araujo, Negrevergne, Chevaleyre, Atif, On Lipschitz Regularization of Convolutional Layers
        using Toeplitz Matrix Theory (AAAI 2021), https://arxiv.org/abs/2006.08391: LipBound and
        the logarithmic penalty. The paper speaks of convolutions; a dense layer is a kernel of one
        tap, whose LipBound is the Frobenius norm. The other penalties are those of the authors'
        code. The default of lambda is this project's.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.01)

    lambda_: float = 0.01
    """Weight of the penalty; where the discrepancy principle starts."""
    penalty: Literal["log", "log1p", "sum"] = "log"
    """What is summed over the layers: log s, log(1 + s) or s itself."""
    samples: int = 50
    """Per period and axis; more than the taps of any kernel."""
    channels: Literal["apart", "together"] = "apart"
    """Whether each channel has its largest sample for itself, or all have one, which is smaller."""
    dense: Literal["frobenius", "spectral"] = "frobenius"
    """Norm of dense layers: what the formula gives, or their exact l2 norm."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("samples", self.samples, 2),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 1.3 if self.dense == "frobenius" else 10.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return which layer cannot be read, has too many taps or no logarithm; None if all do."""
        shape = data.dataset.input_shape
        reason = unreadable_reason(model, shape)
        if reason is not None:
            return reason
        for layer in read(model, shape).layers:
            few = too_many_taps(layer, self.samples)
            if few is not None:
                return few
            if self.penalty == "log" and not layer.weight.any():
                return f"layer {layer.name!r} is zero and has no logarithm: take penalty = 'log1p'"
        return None

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss of the batch and the penalty."""
        outputs, buffers = net.train(batch.inputs)
        bounds = torch.stack([self._norm(layer) for layer in net.layers])
        if self.penalty != "sum":
            bounds = bounds.log() if self.penalty == "log" else bounds.log1p()
        return batch.loss(outputs) + h["lambda_"] * bounds.sum(), {**state, "buffers": buffers}

    def _norm(self, layer: Linear) -> Tensor:
        kernel = convolution(layer)
        if kernel is not None:
            return sampled_norm(kernel, self.samples, apart=self.channels == "apart")
        order = 2 if self.dense == "spectral" else "fro"
        return torch.linalg.matrix_norm(layer.weight, ord=order)
