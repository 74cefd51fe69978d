"""The Fourier symbol of a convolution: its l2 norm, from a grid of frequencies.

A convolution with period N is block diagonal in the Fourier basis, with one small matrix per
frequency: its symbol F(w), the sum of K[u] exp(-i u·w) over taps u. A zero-padded convolution is
a part of a periodic one, as soon as N is so large that no other pair of input and output indices
falls on a tap; so the norm of the periodic one bounds it from above. A stride keeps every s-th
row: s frequencies that differ by multiples of 2π/s merge into one wider block.

Padding with copies is a map of its own, with one 1 in each row: the squares of a column sum to the
number of copies of an entry, so the root of the largest is its norm.

Source:
    Sedghi, Gupta, Long, The Singular Values of Convolutional Layers (ICLR 2019),
    https://arxiv.org/abs/1805.10408, for circular padding and stride 1. Zero padding: with input
    length n, padding a before and b after, dilated kernel length k, rows r and columns j meet at
    tap j - r + a, which lies between k - n - b and n - 1 + a; modulo N ≥ max(n + max(a, b), k) no
    such value outside [0, k) is congruent to a tap.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lipbench.networks.steps import Convolution

Norms = Callable[[Complex[Tensor, "batch out in"]], Float[Tensor, " batch"]]
"""Upper bounds of the l2 norms of matrices."""

_CHUNK = 2**22  # Complex entries whose singular values are computed at once.


def largest_symbol_norm(step: Convolution, norms: Norms | None = None) -> float:
    """Return an upper bound of ‖W‖₂, up to rounding; exact for most circular convolutions.

    Args:
        step: The convolution.
        norms: How to bound the norm of the symbol; None takes its largest singular value.
    """
    return float(symbol_norm(step, norms))


def symbol_norm(step: Convolution, norms: Norms | None = None) -> Float[Tensor, ""]:
    """Return an upper bound of ‖W‖₂ in pure tensor code, whose gradient is that of `norms`."""
    if step.padding_mode in ("reflect", "replicate"):
        return symbol_norm(_behind_padding(step), norms) * math.sqrt(_most_copies(step))
    periods, strides, repeats = [], [], 1.0
    for axis in range(step.weight.ndim - 2):
        period, stride, repeat = _axis(step, axis)
        periods.append(period)
        strides.append(stride)
        repeats *= repeat
    group_norms = [
        _largest(_periodic(weight, step.dilation, periods), strides, norms or _singular)
        for weight in step.weight.chunk(step.groups)
    ]
    return torch.stack(group_norms).amax() * math.sqrt(repeats)


def repetition(step: Convolution) -> float:
    """Return by how much more than its taps on an endless grid a convolution can expand.

    It is 1 beside zeros: every other kind of padding may show an entry to the taps several times.
    """
    if step.padding_mode in ("reflect", "replicate"):
        return math.sqrt(_most_copies(step))
    axes = range(step.weight.ndim - 2)
    return math.sqrt(math.prod(_axis(step, axis)[2] for axis in axes))


def _singular(blocks: Tensor) -> Tensor:
    return torch.linalg.svdvals(blocks)[:, 0]


def _behind_padding(step: Convolution) -> Convolution:
    """Return the convolution that reads the padded image, and pads no more."""
    channels, *lengths = step.input_shape
    padded = [n + sum(pair) for n, pair in zip(lengths, step.padding, strict=True)]
    none = ((0, 0),) * len(lengths)
    shapes = ((channels, *padded),)
    return replace(step, input_shapes=shapes, padding=none, padding_mode="zeros")


def _most_copies(step: Convolution) -> int:
    """Return how often the padded image has one entry: the squared norm of the padding."""
    lengths = step.input_shape[1:]
    numbers = torch.arange(math.prod(lengths), dtype=torch.float64).reshape(1, 1, *lengths)
    return int(step.pad(numbers).long().flatten().bincount().max())


def _axis(step: Convolution, axis: int) -> tuple[int, int, int]:
    """Return period, stride and how often a row is repeated, for one axis."""
    length, stride = step.input_shape[1 + axis], step.stride[axis]
    before, after = step.padding[axis]
    reach = (step.weight.shape[2 + axis] - 1) * step.dilation[axis] + 1
    if step.padding_mode == "zeros":
        least = max(length + max(before, after), reach)
        return -(-least // stride) * stride, stride, 1
    rows = range(0, stride * step.output_shape[1 + axis], stride)
    repeat = max(Counter(row % length for row in rows).values())
    # Where the stride does not divide the period, all rows are kept, which is an upper bound.
    return length, stride if length % stride == 0 else 1, repeat


def _periodic(weight: Tensor, dilation: tuple[int, ...], periods: list[int]) -> Tensor:
    """Return the kernel laid out on one period; taps that meet there are added."""
    for axis, period in enumerate(periods):
        taps = torch.arange(weight.shape[2 + axis], device=weight.device) * dilation[axis] % period
        shape = list(weight.shape)
        shape[2 + axis] = period
        weight = weight.new_zeros(shape).index_add(2 + axis, taps, weight)
    return weight


def _largest(kernel: Tensor, strides: list[int], norms: Norms) -> Tensor:
    """Return the largest norm over all frequencies of a periodic kernel."""
    axes = len(strides)
    symbol = torch.fft.fftn(kernel, dim=tuple(range(2, kernel.ndim)))
    # Frequencies that differ by a multiple of 2π/stride are aliases: they move into the columns.
    split: list[int] = []
    for n, s in zip(symbol.shape[2:], strides, strict=True):
        split += [s, n // s]
    symbol = symbol.reshape(*symbol.shape[:2], *split)
    aliases, base = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    symbol = symbol.permute(*base, 0, 1, *aliases)
    # The kernel is real, so w and -w have the same singular values: half of one axis is enough.
    symbol = symbol.narrow(axes - 1, 0, symbol.shape[axes - 1] // 2 + 1)
    blocks = symbol.reshape(math.prod(symbol.shape[:axes]), kernel.shape[0], -1)
    chunk = max(1, _CHUNK // blocks[0].numel())
    values = [norms(batch).amax() for batch in blocks.split(chunk)]
    return torch.stack(values).amax() / math.sqrt(math.prod(strides))
