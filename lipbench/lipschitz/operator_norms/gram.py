"""Gram iteration: l2 norms from above by squaring, which doubles the digits with each step.

Both norms of a Gram matrix, the Frobenius norm and the largest absolute row sum, are at least its
largest eigenvalue; after T squarings the 2^T-th root of what they exceed it by is left.

Source:
    Delattre, Barthélemy, Araujo, Allauzen, Efficient Bound of Lipschitz Constant for Convolutional
    Layers by Gram Iteration (ICML 2023), https://arxiv.org/abs/2305.16173. Delattre,
    Barthélemy, Allauzen, Spectral Norm of Convolutional Layers with Circular and Zero Paddings
    (2024), https://arxiv.org/abs/2402.00240, for kernels on an endless grid.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lipbench.lipschitz.operator_norms.layer_products import convolution
from lipbench.lipschitz.operator_norms.symbol import symbol_norm
from lipbench.networks.steps import Linear


def gram_norm(step: Linear, iterations: int) -> Float[Tensor, ""]:
    """Return an upper bound of a linear step's l2 norm, up to rounding.

    A convolution is taken frequency by frequency, on a grid that is large enough for its padding.
    This is pure tensor code, through which gradients flow.
    """
    kernel = convolution(step)
    if kernel is None:
        return gram_norms(step.weight.unsqueeze(0), iterations)[0]
    return symbol_norm(kernel, lambda blocks: gram_norms(blocks, iterations))


def gram_norms(matrices: Tensor, iterations: int) -> Float[Tensor, " batch"]:
    """Return upper bounds of the l2 norms of real or complex matrices, up to rounding.

    They fall with the number of iterations; without any they are Frobenius norms. This is pure
    tensor code, through which gradients flow.
    """
    # Squares of entries below 1e-162 would be 0. The result does not depend on what is divided by
    # and multiplied with again, here and below, so that no gradient needs to go through it.
    largest = _positive(matrices.detach().abs().amax(dim=(1, 2)))
    matrices = matrices / largest.view(-1, 1, 1)
    squared = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    log = torch.zeros_like(largest)
    for _ in range(iterations):
        size = _positive(torch.linalg.matrix_norm(squared.detach()))
        squared = squared / size.view(-1, 1, 1)
        # (cG)(cG)* is c² times GG*, and its norm the square of that of G.
        log = 2 * (log + size.log())
        squared = squared @ squared.mH
    size = torch.linalg.matrix_norm(squared)
    power = 0.5**iterations
    return torch.where(size > 0, (power * (_positive(size).log() + log)).exp() * largest, 0.0)


def kernel_norm(kernel: Float[Tensor, "out in *taps"], iterations: int) -> float:
    """Return an upper bound of a convolution's l2 norm at any size of image, up to rounding.

    Args:
        kernel: The float64 taps, which see every entry of an endless grid once.
        iterations: At least 1; the taps along each axis double with each.
    """
    largest = float(kernel.abs().max())
    if largest == 0:
        return 0.0
    kernel = kernel / largest
    squared = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.transpose(0, 1)
    # On as many frequencies as there will be taps, a kernel times itself is a matrix times itself.
    axes, sides = kernel.ndim - 2, grown(kernel.shape[2:], iterations)
    symbol = torch.fft.rfftn(squared, s=sides, dim=tuple(range(2, 2 + axes)))
    symbol = symbol.permute(*range(2, 2 + axes), 0, 1)
    log = 0.0
    for _ in range(iterations):
        size = float(torch.linalg.vector_norm(symbol))
        symbol, log = symbol / size, 2 * (log + math.log(size))
        symbol = symbol @ symbol.mH
    grid = torch.fft.irfftn(symbol, s=sides, dim=tuple(range(axes)))
    rows = float(grid.abs().sum(dim=(*range(axes), -1)).max())
    return math.exp(0.5**iterations * (math.log(rows) + log)) * largest


def grown(taps: Sequence[int], iterations: int) -> tuple[int, ...]:
    """Return how many taps a kernel has along each axis after so many products with itself."""
    return tuple((count - 1) * 2**iterations + 1 for count in taps)


def _positive(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, torch.ones_like(size))
