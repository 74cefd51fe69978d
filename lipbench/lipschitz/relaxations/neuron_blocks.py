"""Neuron blocks: a network of any architecture as matrices between single neurons.

Every step is either linear, and is multiplied out, or acts on each entry by itself. So all
pre-activations, and the output, are affine in the input and in the neurons before them, whatever
the architecture: skips, convolutions and pooling need no rules of their own in what is built on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import accumulate, pairwise
from operator import methodcaller

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lipbench.layers.elementwise import Derivative, Elementwise
from lipbench.lipschitz.relaxations.affine import Affine, Matrix
from lipbench.lipschitz.relaxations.magnitudes import refuse_extremes
from lipbench.lipschitz.relaxations.rounding import UNIT
from lipbench.networks.network import Network
from lipbench.networks.steps import (
    AFFINE,
    AveragePool,
    Concatenation,
    Contraction,
    ConvContraction,
    Convolution,
    Copy,
    Dense,
    GroupSort,
    Linear,
    MaxPool,
    Rearrange,
    Sandwich,
    Scale,
    Slope,
    Softmax,
    Step,
    Sum,
    TransposedConvolution,
    refuse_kind,
)
from lipbench.refused import Refused

Ends = tuple[Float[Tensor, " neurons"], Float[Tensor, " neurons"]]

LARGEST = 2**26
"""Entries of all matrices together; more do not fit the methods that are built on them."""


@dataclass(frozen=True, kw_only=True)
class NeuronBlock:
    """Neurons s(z) that read affine numbers z, each for itself."""

    name: str
    """Path of the module that they come from."""
    reads: Affine
    function: Elementwise
    lo: Float[Tensor, " neurons"]
    """Least slope of each neuron's function, and the largest; they differ."""
    hi: Float[Tensor, " neurons"]
    sides: Ends | None
    """Slopes left and right of 0, if the functions are 0 there and linear on both sides."""
    derivative: Derivative | None = None
    """Derivative of the functions, if it is known and the same for all neurons."""

    def __len__(self) -> int:
        return len(self.lo)


@dataclass(frozen=True, kw_only=True)
class NeuronBlocks:
    """A function of vectors: blocks of neurons, and an output that is affine in all of them."""

    inputs: int
    blocks: tuple[NeuronBlock, ...]
    output: Affine
    flags: tuple[str, ...] = ()
    """What was tested and not proved, for the values that rest on it."""

    def __call__(self, inputs: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Return the outputs, through the blocks."""
        values = [inputs]
        for block in self.blocks:
            values.append(block.function(block.reads(values)))
        return self.output(values)

    def differences(self, pairs: Sequence[tuple[int, int]]) -> "NeuronBlocks":
        """Return the same network with the differences y_i - y_j as its outputs."""
        first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
        negative = self.output.rows(second).negative
        return replace(self, output=self.output.rows(first).plus(negative))


def as_neuron_blocks(
    network: Network, largest: int = LARGEST, kind: type[Matrix] = Matrix
) -> NeuronBlocks:
    """Return a float64 network on the CPU as matrices between neurons.

    Args:
        network: The network.
        largest: Most entries of all matrices together.
        kind: What the matrices are: they may know more of themselves.

    Raises:
        Refused: If it has more, a step that has no rule, or numbers whose products overflow or
            vanish.
    """
    refuse_extremes(network)
    size = network.input_size
    builder = _Builder(largest, kind)
    identity = Affine(
        matrices={0: kind.exact(torch.eye(size, dtype=torch.float64))},
        offset=kind.exact(torch.zeros(size, 1, dtype=torch.float64)),
    )
    values = [identity]
    with torch.no_grad():
        for step in network.steps:
            read = [values[i] for i in step.inputs]
            columns = sum(
                matrix.values.shape[1] for value in read for matrix in value.matrices.values()
            )
            builder.reserve(math.prod(step.output_shape) * columns, step.name)
            values.append(_read(step, builder, *read))
    return NeuronBlocks(
        inputs=size,
        blocks=tuple(builder.blocks),
        output=values[network.output],
        flags=network.flags,
    )


def neurons(network: Network) -> int:
    """Return about how many neurons a network has as matrices, without computing these."""
    return sum(widths(network)[1:-1])


def widths(network: Network) -> tuple[int, ...]:
    """Return the numbers of inputs, about those of each step's neurons, and that of outputs.

    Raises:
        Refused: If a step is of a kind that has no rule.
    """
    counts = [_count(step) for step in network.steps if not isinstance(step, _WITHOUT_NEURONS)]
    return (network.input_size, *counts, network.output_size)


_WITHOUT_NEURONS = (*AFFINE, Softmax)  # which is not read neuron by neuron


def _count(step: Step) -> int:
    if isinstance(step, Slope):
        return math.prod(step.output_shape)
    if isinstance(step, MaxPool):
        return math.prod(step.output_shape) * (math.prod(step.window) - 1)
    if isinstance(step, GroupSort):
        return math.prod(step.output_shape) * (step.group - 1) // 2
    if isinstance(step, Contraction):
        return len(step.diagonal)
    if isinstance(step, ConvContraction):
        return math.prod(step.operator.output_shape)
    if isinstance(step, Sandwich):
        return math.prod(step.inner.output_shape)
    refuse_kind(step, "has no number of neurons", __name__)


class _Builder:
    """The blocks so far, and how much room is left."""

    def __init__(self, largest: int, kind: type[Matrix]) -> None:
        self.kind = kind
        self.blocks: list[NeuronBlock] = []
        self.largest = largest
        self.entries = 0

    def reserve(self, entries: int, name: str) -> None:
        """Take room for matrices, before there are any.

        Raises:
            Refused: If there is none.
        """
        self.entries += entries
        if self.entries > self.largest:
            raise Refused(
                f"step {name!r}: the network as matrices has more than {self.largest} entries."
            )

    def add(
        self,
        name: str,
        reads: Affine,
        function: Elementwise,
        slopes: Ends,
        sides: Ends | None,
        derivative: Derivative | None = None,
    ) -> Affine:
        """Add a block of neurons.

        Returns:
            The new neurons as affine numbers: themselves.

        Raises:
            Refused: If there is no room for them.
        """
        self.reserve(len(reads) ** 2, name)
        lo, hi = slopes
        self.blocks.append(
            NeuronBlock(
                name=name,
                reads=reads,
                function=function,
                lo=lo,
                hi=hi,
                sides=sides,
                derivative=derivative,
            )
        )
        count = len(reads)
        return Affine(
            matrices={len(self.blocks): self.kind.exact(torch.eye(count, dtype=torch.float64))},
            offset=self.kind.exact(torch.zeros(count, 1, dtype=torch.float64)),
        )


@singledispatch
def _read(step: Step, builder: _Builder, *values: Affine) -> Affine:
    refuse_kind(step, "is not read neuron by neuron", __name__)


@_read.register(Softmax)
def _(step: Softmax, builder: _Builder, value: Affine) -> Affine:
    raise Refused(f"step {step.name!r} (Softmax) is not read neuron by neuron.")


@_read.register(Linear)
def _(step: Linear, builder: _Builder, value: Affine) -> Affine:
    absolute, sums = step.absolute(), _sums_weights(step)

    def applied(matrix: Matrix) -> Matrix:
        return matrix.through(step.apply, absolute.apply, step.input_shape, step.fan_in, sums=sums)

    mapped = value.each(applied)
    if step.bias is None:
        return mapped
    bias = step.broadcast(step.bias).expand(step.output_shape).reshape(-1, 1)
    return replace(mapped, offset=mapped.offset.plus(Matrix.exact(bias)))


def _sums_weights(step: Linear) -> bool:
    if isinstance(step, Dense | TransposedConvolution):
        return False
    if not isinstance(step, Convolution):
        refuse_kind(step, "is not read neuron by neuron", __name__)
    if step.padding_mode == "zeros":
        return False
    # Borders that repeat what is inside may read one entry through several weights.
    counting = replace(step, weight=torch.ones_like(step.weight))
    units = torch.eye(math.prod(step.input_shape), dtype=step.weight.dtype)
    return bool((counting.apply(units.reshape(-1, *step.input_shape)) > 1).any())


@_read.register(AveragePool)
def _(step: AveragePool, builder: _Builder, value: Affine) -> Affine:
    terms = len(value)  # more than any window has

    def pool(matrix: Matrix) -> Matrix:
        pooled = matrix.through(step.pool, step.pool, step.input_shape, terms)
        # Its weights are quotients, and rounded themselves.
        return pooled.blurred(UNIT * pooled.values.abs())

    return value.each(pool)


@_read.register(Scale)
def _(step: Scale, builder: _Builder, value: Affine) -> Affine:
    factor, offset = (
        values.expand(step.input_shape).reshape(-1, 1) for values in (step.factor, step.offset)
    )
    scaled = value.each(lambda matrix: matrix.scaled(factor, held=True))
    # Factor and offset are made of a few operations on what the layer stores.
    held = builder.kind.held(offset, 8 * UNIT * offset.abs())
    return replace(scaled, offset=scaled.offset.plus(held))


@_read.register(Rearrange)
def _(step: Rearrange, builder: _Builder, value: Affine) -> Affine:
    return value


@_read.register(Slope)
def _(step: Slope, builder: _Builder, value: Affine) -> Affine:
    shape, like = step.input_shape, value.offset.values

    def entries(ends: tuple[float | Tensor, float | Tensor]) -> Ends:
        first, second = (torch.as_tensor(end, dtype=like.dtype).expand(shape) for end in ends)
        return first.flatten(), second.flatten()

    lo, hi = entries((step.lo, step.hi))
    bent = lo < hi
    indices = bent.nonzero().squeeze(1)

    def curve(numbers: Tensor) -> Tensor:
        whole = numbers.new_zeros(len(numbers), len(lo))
        whole[:, indices] = numbers
        return step.function(whole.reshape(-1, *shape)).flatten(1)[:, indices]

    sides = step.sides and entries(step.sides)
    if bool(bent.all()):
        return builder.add(step.name, value, curve, (lo, hi), sides, step.derivative)
    # Where all slopes are one number the function is affine, and no neuron.
    zero = step.function(like.new_zeros(1, *shape)).reshape(-1, 1)
    straight = value.each(lambda matrix: matrix.scaled(torch.where(bent, 0.0, lo).unsqueeze(1)))
    straight = replace(
        straight,
        offset=straight.offset.plus(Matrix.exact(torch.where(bent.unsqueeze(1), 0.0, zero))),
    )
    if not len(indices):
        return straight
    sides = sides and (sides[0][indices], sides[1][indices])
    ends = lo[indices], hi[indices]
    reads = value.rows(indices)
    neurons = builder.add(step.name, reads, curve, ends, sides, step.derivative)
    return straight.plus(neurons.each(lambda matrix: matrix.among(indices, len(lo))))


@_read.register(Sum)
def _(step: Sum, builder: _Builder, *values: Affine) -> Affine:
    total = _weighted(values[0], step.coefficients[0])
    for value, coefficient in zip(values[1:], step.coefficients[1:], strict=True):
        total = total.plus(_weighted(value, coefficient))
    offset = torch.full_like(total.offset.values, step.offset)
    return replace(total, offset=total.offset.plus(Matrix.exact(offset)))


@_read.register(Concatenation)
def _(step: Concatenation, builder: _Builder, *values: Affine) -> Affine:
    ends = list(accumulate(map(len, values), initial=0))
    numbers = [
        torch.arange(start, stop).reshape(shape)
        for (start, stop), shape in zip(pairwise(ends), step.input_shapes, strict=True)
    ]
    positions = torch.cat(numbers, dim=step.axis - 1).flatten().argsort()
    return _assembled(values, [positions[start:stop] for start, stop in pairwise(ends)])


@_read.register(Copy)
def _(step: Copy, builder: _Builder, value: Affine) -> Affine:
    # Which entry is copied to each position, from 1; 0 where nothing is.
    numbers = torch.arange(1, len(value) + 1, dtype=torch.float64).reshape(1, *step.input_shape)
    copied = step.copy(numbers).flatten().long()
    mask = (copied > 0).to(torch.float64).unsqueeze(1)
    return value.rows((copied - 1).clamp_min(0)).each(lambda matrix: matrix.scaled(mask))


@_read.register(GroupSort)
def _(step: GroupSort, builder: _Builder, value: Affine) -> Affine:
    numbers = torch.arange(len(value)).reshape(-1, step.group, *step.input_shape[1:])
    positions = [numbers[:, index].flatten() for index in range(step.group)]
    members = [value.rows(rows) for rows in positions]
    for last in range(step.group - 1, 0, -1):  # bubbles, the smallest to the end
        for index in range(last):
            left, right = members[index : index + 2]
            rise = _bend(step.name, builder, right.plus(left.negative))
            members[index : index + 2] = left.plus(rise), right.plus(rise.negative)
    return _assembled(members, positions)


@_read.register(MaxPool)
def _(step: MaxPool, builder: _Builder, value: Affine) -> Affine:
    windows = _windows(step)
    candidates = [value.rows(windows[:, tap]) for tap in range(windows.shape[1])]
    while len(candidates) > 1:  # a tournament, in which the larger of two numbers goes on
        pairs = zip(candidates[::2], candidates[1::2], strict=False)
        winners = [_larger(step.name, builder, *pair) for pair in pairs]
        candidates = winners + candidates[len(winners) * 2 :]
    return candidates[0]


@_read.register(Contraction)
def _(step: Contraction, builder: _Builder, value: Affine) -> Affine:
    count = len(step.diagonal)
    pulled = value.each(lambda matrix: matrix.times(step.weight.T))
    pulled = replace(pulled, offset=pulled.offset.plus(Matrix.exact(step.bias.unsqueeze(1))))
    zero = step.diagonal.new_zeros(count)
    hidden = builder.add(step.name, pulled, step.function, (zero, zero + 1), None)
    back = hidden.each(lambda matrix: matrix.scaled(-2 / step.diagonal.unsqueeze(1)))
    return value.plus(back.each(lambda matrix: matrix.times(step.weight)))


@_read.register(ConvContraction)
def _(step: ConvContraction, builder: _Builder, value: Affine) -> Affine:
    operator = step.operator
    pulled = _read(operator, builder, value)
    zero = torch.zeros(len(pulled), dtype=torch.float64)
    hidden = builder.add(step.name, pulled, step.function, (zero, zero + 1), None)
    back, terms = operator.absolute().adjoint, operator.weight[:, 0].numel()
    pushed = hidden.each(
        lambda matrix: matrix.through(operator.adjoint, back, operator.output_shape, terms)
    )
    return value.plus(_weighted(pushed, -2.0))


@_read.register(Sandwich)
def _(step: Sandwich, builder: _Builder, value: Affine) -> Affine:
    inner, outer, root = step.inner, step.outer, math.sqrt(2)
    hidden = outer.output_shape
    scale, bias = (values.expand(hidden).reshape(-1, 1) for values in (step.scale, step.bias))
    pulled = _read(inner, builder, value).each(lambda matrix: matrix.scaled(root / scale))
    pulled = replace(pulled, offset=pulled.offset.plus(Matrix.exact(bias)))
    zero = torch.zeros(len(pulled), dtype=torch.float64)
    ends = zero, zero + 1
    sides = ends if step.function is torch.relu else None

    def curve(numbers: Tensor) -> Tensor:
        return step.function(numbers.reshape(-1, *hidden)).flatten(1)

    neurons = builder.add(step.name, pulled, curve, ends, sides)
    back, terms = outer.absolute().adjoint, outer.weight[:, 0].numel()
    return neurons.each(
        lambda matrix: matrix.scaled(root * scale).through(outer.adjoint, back, hidden, terms)
    )


def _larger(name: str, builder: _Builder, left: Affine, right: Affine) -> Affine:
    """Add the neurons that the larger of two numbers takes.

    Returns:
        max(a, b) = a + relu(b - a).
    """
    return left.plus(_bend(name, builder, right.plus(left.negative)))


def _bend(name: str, builder: _Builder, value: Affine) -> Affine:
    """Add a neuron for every number.

    Returns:
        relu of every number.
    """
    zero = torch.zeros(len(value), dtype=torch.float64)
    ends = zero, zero + 1
    return builder.add(name, value, torch.relu, ends, ends)


def _weighted(value: Affine, coefficient: float) -> Affine:
    factor = torch.full_like(value.offset.values, coefficient)
    return value.each(lambda matrix: matrix.scaled(factor, held=True))


def _assembled(values: Sequence[Affine], positions: Sequence[Tensor]) -> Affine:
    """Return the numbers of all values, each at its position in one list."""
    count = sum(map(len, values))
    total: Affine | None = None
    for value, rows in zip(values, positions, strict=True):
        spread = value.each(methodcaller("among", rows, count))
        total = spread if total is None else total.plus(spread)
    assert total is not None
    return total


def _windows(step: MaxPool) -> Int[Tensor, "outputs taps"]:
    """Return which inputs are in the window of each output; padding repeats one of these."""
    channels, *lengths = step.input_shape
    windows = torch.arange(channels).reshape(-1, 1)
    for axis, length in enumerate(lengths):
        first = torch.arange(step.output_shape[1 + axis]) * step.stride[axis] - step.padding[axis]
        taps = first.unsqueeze(1) + torch.arange(step.window[axis]) * step.dilation[axis]
        taps = torch.where((taps >= 0) & (taps < length), taps, -1)
        rows, columns = windows.reshape(-1, 1, windows.shape[1], 1), taps.reshape(1, *_outer(taps))
        both = torch.where((rows < 0) | (columns < 0), -1, rows * length + columns)
        windows = both.reshape(-1, windows.shape[1] * step.window[axis])
    some = windows.amax(dim=1, keepdim=True)
    return torch.where(windows < 0, some, windows)


def _outer(taps: Tensor) -> tuple[int, int, int]:
    return taps.shape[0], 1, taps.shape[1]
