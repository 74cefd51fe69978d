"""The "fantastic four" bound: a convolution's norm from four reshapings of its kernel.

With taps K[u, v] the matrix of a frequency is Σ K[u, v]·exp(-i(u·ω + v·η)). That is the kernel as
one matrix, whose rows and columns are outputs and inputs, each with no, one or both axes of taps,
between phases: from the left and right they have norms whose product is √(h·w). So it bounds the
norm on endless and periodic grids, and beside zeros.

Source:
    Singla, Feizi, Fantastic Four: Differentiable Bounds on Singular Values of Convolution Layers
    (ICLR 2021), https://arxiv.org/abs/1911.10258.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def kernel_bound(kernel: Float[Tensor, "out in h w"]) -> Float[Tensor, ""]:
    """Return √(h·w) times the least norm of the four matrices, which bounds the convolution's.

    This is pure tensor code that runs under `torch.func.vmap`.
    """
    outputs, inputs, height, width = kernel.shape
    matrices = [
        kernel.reshape(outputs, -1),
        kernel.permute(0, 2, 1, 3).reshape(outputs * height, -1),
        kernel.permute(0, 3, 1, 2).reshape(outputs * width, -1),
        kernel.transpose(0, 1).reshape(inputs, -1),
    ]
    norms = torch.stack([torch.linalg.matrix_norm(matrix, 2) for matrix in matrices])
    return math.sqrt(height * width) * norms.amin()
