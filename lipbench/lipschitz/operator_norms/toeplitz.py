"""LipBound: the l2 norm of a convolution on an endless grid, from samples of its symbol.

What may lie between the samples is a factor: a polynomial of degree d in each of D variables, known
at S points per period and variable, is nowhere larger than (1 - 2d/S)^(-D/2) times its largest
sample. That holds for vectors of polynomials too, as one of them is the largest in some direction.

Source:
    Araujo, Negrevergne, Chevaleyre, Atif, On Lipschitz Regularization of Convolutional Layers
    using Toeplitz Matrix Theory (AAAI 2021), https://arxiv.org/abs/2006.08391.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.layer_products import convolution
from lipbench.lipschitz.operator_norms.symbol import repetition
from lipbench.networks.steps import Convolution, Linear


def sampled_norm(step: Convolution, samples: int, *, apart: bool = False) -> Float[Tensor, ""]:
    """Return an upper bound of ‖W‖₂, up to rounding; strides are not used.

    This is pure tensor code, through which gradients flow.

    Args:
        step: The convolution.
        samples: Per period and axis; more than the taps of the kernel.
        apart: Whether each channel has its largest sample for itself, as in the paper, on the side
            that has fewer channels. With one for all together the bound is smaller.
    """
    axes = step.weight.ndim - 2
    # Centred, an even number of taps reaches half of it to one side.
    degree = max(step.weight.shape[2:]) // 2
    between = (1 - 2 * degree / samples) ** (-axes / 2)
    group_norms = [_sampled(weight, samples, apart) for weight in step.weight.chunk(step.groups)]
    return torch.stack(group_norms).amax() * (repetition(step) * between)


def too_many_taps(step: Linear, samples: int) -> str | None:
    """Return why so few samples say nothing about a step, or None."""
    kernel = convolution(step)
    taps = 0 if kernel is None else max(kernel.weight.shape[2:])
    if taps // 2 * 2 < samples:
        return None
    return f"layer {step.name!r} has {taps} taps along an axis: raise samples"


def _sampled(kernel: Tensor, samples: int, apart: bool) -> Tensor:
    axes = tuple(range(2, kernel.ndim))
    # The kernel is real, so w and -w have the same absolute values.
    symbol = torch.fft.rfftn(kernel, s=[samples] * len(axes), dim=axes).flatten(2)
    if not apart:
        return torch.linalg.vector_norm(symbol, dim=(0, 1)).amax()
    inner = 0 if kernel.shape[0] >= kernel.shape[1] else 1
    return torch.linalg.vector_norm(torch.linalg.vector_norm(symbol, dim=inner).amax(dim=1))
