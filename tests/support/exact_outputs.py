"""Outputs of networks in fractions, computed from the steps' own tensors: the naive twin."""

import math
from fractions import Fraction

import torch
from support.matrices import matrix_of
from support.written import Written
from torch import nn

import lipbench
from lipbench.layers.sandwich import CircularSandwich, SandwichLayer


def fractions(tensor):
    return [Fraction(number) for number in tensor.flatten().tolist()]


def exactly(network, x):
    """Return the outputs for one sample, computed in fractions from the steps' own tensors."""
    values = [fractions(x)]
    for step in network.steps:
        sources = [values[i] for i in step.inputs]
        values.append(EXACT[type(step).__name__](step, *sources))
    return values[network.output]


def _linear(step, x):
    if type(step).__name__ == "Dense":
        return _sums(step.weight.tolist(), step, x)
    # Entries of the matrix without padding are single weights, and padding copies: both exact.
    inner = step.mirror if type(step).__name__ == "TransposedConvolution" else step
    padded = (inner.input_shape[0], *_padded(inner))
    zeros = torch.zeros(1, *inner.input_shape, dtype=torch.float64)
    taps = matrix_of(lambda basis: _without_padding(inner)(basis), padded)
    copies = matrix_of(inner.pad, inner.input_shape) if any(map(any, inner.padding)) else None
    assert inner.pad(zeros).shape[1:] == padded
    matrix = [[Fraction(0)] * math.prod(inner.input_shape) for _ in taps]
    for row, line in enumerate(taps.tolist()):
        for column, tap in enumerate(line):
            if tap:
                for entry in [column] if copies is None else copies[column].nonzero().flatten():
                    matrix[row][int(entry)] += Fraction(tap)
    if inner is not step:
        matrix = [list(column) for column in zip(*matrix, strict=True)]
    return _sums(matrix, step, x)


def _sums(matrix, step, x):
    image = [sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) for row in matrix]
    if step.bias is None:
        return image
    bias = fractions(step.broadcast(step.bias).expand(step.output_shape))
    return [v + b for v, b in zip(image, bias, strict=True)]


def _padded(step):
    return [n + sum(pair) for n, pair in zip(step.input_shape[1:], step.padding, strict=True)]


def _without_padding(step):
    convolve = {1: nn.functional.conv1d, 2: nn.functional.conv2d}[step.weight.ndim - 2]
    return lambda x: convolve(x, step.weight, None, step.stride, 0, step.dilation, step.groups)


def _pool(step, x):
    matrix = matrix_of(step, step.input_shape)
    counts = (matrix > 0).sum(dim=1).tolist()
    return [
        sum(v for v, w in zip(x, row, strict=True) if w) / count
        for row, count in zip(matrix.tolist(), counts, strict=True)
    ]


def _sort(step, x):
    rest = math.prod(step.input_shape[1:])
    ordered = list(x)
    for first in range(0, len(x), step.group * rest):
        for offset in range(rest):
            rows = range(first + offset, first + step.group * rest, rest)
            for row, v in zip(rows, sorted((x[r] for r in rows), reverse=True), strict=True):
                ordered[row] = v
    return ordered


def _two_sided(step, x):
    left, right = (
        fractions(torch.as_tensor(side, dtype=torch.float64).expand(step.input_shape))
        for side in step.sides
    )
    return [(a if v < 0 else b) * v for a, b, v in zip(left, right, x, strict=True)]


def _max_pool(step, x):
    # Each output is the largest of the entries that reach it alone.
    low = torch.full((math.prod(step.input_shape),) * 2, -1.0, dtype=torch.float64)
    reached = step(low.fill_diagonal_(1.0).reshape(-1, *step.input_shape)).flatten(1) > 0
    return [max(v for v, w in zip(x, column, strict=True) if w) for column in reached.T.tolist()]


def _sandwich(step, x):
    # Entries of both matrices are single weights.
    root, hidden = Fraction(math.isqrt(2 * 10**80), 10**40), step.inner.output_shape
    scale, bias = (fractions(tensor.expand(hidden)) for tensor in (step.scale, step.bias))
    pull = matrix_of(step.inner.apply, step.input_shape).tolist()
    push = matrix_of(step.outer.adjoint, hidden).tolist()
    inner = [
        max(Fraction(0), root * sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) / s + b)
        for row, s, b in zip(pull, scale, bias, strict=True)
    ]
    return [
        root * sum(Fraction(w) * s * v for w, s, v in zip(row, scale, inner, strict=True))
        for row in push
    ]


def a_sandwich(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


def scaling(factor):
    # The map relu(factor·x).
    layer = SandwichLayer(4, 4, 4).double()
    with torch.no_grad():
        layer.outer.weight.copy_(torch.eye(4) * factor / 2**0.5)
        layer.inner.weight.copy_(torch.eye(4) / 2**0.5)
    return layer


EXACT = {
    "Sandwich": _sandwich,
    "Dense": _linear,
    "Slope": _two_sided,
    "MaxPool": _max_pool,
    "Convolution": _linear,
    "TransposedConvolution": _linear,
    "Copy": lambda step, x: [
        sum(v for v, w in zip(x, row, strict=True) if w)
        for row in matrix_of(step, step.input_shape).tolist()
    ],
    "AveragePool": _pool,
    "GroupSort": _sort,
    "Rearrange": lambda step, x: x,
    "Concatenation": lambda step, *sources: [v for source in sources for v in source],
    "Sum": lambda step, *sources: [
        sum(
            Fraction(c).limit_denominator(1000) * v
            for c, v in zip(step.coefficients, at, strict=True)
        )
        + Fraction(step.offset)
        for at in zip(*sources, strict=True)
    ],
}

MODELS = {
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), (2, 2, 3)),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(2, 2, 2, 1, 0, 1, dilation=2), (2, 4)),
    "reflected": (lambda: nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect"), (2, 3, 3)),
    "replicated": (lambda: nn.Conv1d(2, 2, 2, padding=2, padding_mode="replicate"), (2, 3)),
    "padding": (lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 2), nn.ReflectionPad1d(2)), (1, 3)),
    "sorted": (lambda: nn.Sequential(nn.Conv1d(2, 6, 2), lipbench.GroupSort(3)), (2, 4)),
    "sums": (lambda: Written(lambda self, x: (1 - x) / 3 + x / 7 - 5 * (x + x / 9)), (4,)),
    "joined": (lambda: Written(lambda self, x: torch.cat([x / 3, x - 1, x / 7], dim=1)), (4,)),
    "means": (lambda: Written(lambda self, x: x.mean((2, 3)) / 3), (2, 3, 5)),
    "sandwiched": (lambda: a_sandwich(SandwichLayer(3, 5, 4)), (3,)),
    "sandwiched, circular": (
        lambda: a_sandwich(CircularSandwich((3, 2), (2, 3), (1, 1))),
        (2, 2, 3),
    ),
    "residual": (
        lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), Written(lambda self, x: x + x / 3)),
        (2, 4),
    ),
}
