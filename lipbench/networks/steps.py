"""The primitive steps that a network is made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lipbench.layers.elementwise import Derivative, Elementwise, Formula, Sides
from lipbench.layers.sorting import sort_groups
from lipbench.refused import Refused

Shape = tuple[int, ...]
Pair = tuple[int, int]
Tensors = Mapping[str, Tensor]
"""A network's parameters and buffers by name."""

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(ABC):
    """One step of a network: a function of earlier values.

    Steps are pure tensor code, so they work on parameters stacked by `torch.func.vmap`. All
    inputs and outputs have the sample axis first; shapes are those of one sample.
    """

    name: str
    """Path of the module that the step comes from."""
    inputs: tuple[int, ...] = (0,)
    """Which values the step reads: 0 is the network's input, i + 1 the result of step i."""
    input_shapes: tuple[Shape, ...]
    output_shape: Shape

    @property
    def input_shape(self) -> Shape:
        """Return the shape of the first, and mostly only, input."""
        return self.input_shapes[0]

    @abstractmethod
    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the result of the step."""


def refuse_kind(step: Step, lack: str, module: str) -> NoReturn:
    """Refuse a step of a kind that has no rule where one is needed.

    Args:
        step: The step.
        lack: What it has not or is not, as the rest of a sentence.
        module: The module in which the rule would stand.

    Raises:
        Refused: Always.
    """
    kind = type(step).__name__
    raise Refused(f"step {step.name!r} ({kind}) {lack}: {module} has no rule for this kind.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Step):
    """A step x ↦ Wx + b with a weight of its own."""

    weight: Float[Tensor, "out *rest"]
    """The weight in effect, after any parametrisation."""
    bias: Float[Tensor, " out"] | None
    weight_name: str
    """Name of the weight among the network's parameters."""
    bias_name: str | None

    @abstractmethod
    def apply(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return Wx, without the bias."""

    @abstractmethod
    def adjoint(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, "batch *shape"]:
        """Return Wᵀy."""

    @property
    @abstractmethod
    def fan_in(self) -> int:
        """Return the number of products summed in one output."""

    @property
    @abstractmethod
    def _bias_axes(self) -> int: ...

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return Wx + b."""
        outputs = self.apply(inputs)
        return outputs if self.bias is None else outputs + self.broadcast(self.bias)

    def broadcast(self, bias: Float[Tensor, " out"]) -> Float[Tensor, "..."]:
        """Return one value per output channel, shaped so that it adds to an output."""
        return bias.reshape(-1, *[1] * self._bias_axes)

    def detach(self) -> "Linear":
        """Return the same step, through which no gradient reaches the parameters."""
        return replace(
            self,
            weight=self.weight.detach(),
            bias=None if self.bias is None else self.bias.detach(),
        )

    def absolute(self) -> "Linear":
        """Return the step x ↦ |W|x + |b|."""
        return replace(
            self, weight=self.weight.abs(), bias=None if self.bias is None else self.bias.abs()
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Linear):
    """A matrix, applied along the last axis."""

    weight: Float[Tensor, "out in"]

    def apply(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return Wx."""
        return F.linear(inputs, self.weight)

    def adjoint(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, "batch *shape"]:
        """Return Wᵀy."""
        return F.linear(outputs, self.weight.T)

    @property
    def fan_in(self) -> int:
        """Return the number of columns."""
        return self.weight.shape[1]

    @property
    def _bias_axes(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Linear):
    """A cross-correlation in one, two or three dimensions."""

    weight: Float[Tensor, "out in *kernel"]
    stride: Shape
    padding: tuple[Pair, ...]
    """Entries added before and after each spatial axis; a negative number of them is cut off."""
    padding_mode: str
    """What these entries are: "zeros", "circular", "reflect" or "replicate"."""
    dilation: Shape
    groups: int

    def apply(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return Wx."""
        return _CONVOLVE[self._axes](
            self.pad(inputs),
            self.weight,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )

    def adjoint(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, "batch *shape"]:
        """Return Wᵀy."""
        full = _TRANSPOSE[self._axes](
            outputs, self.weight, stride=self.stride, dilation=self.dilation, groups=self.groups
        )
        # A stride that does not divide the input leaves its last entries unread.
        wanted = [n + sum(pad) for n, pad in zip(self.input_shape[1:], self.padding, strict=True)]
        unread = [(0, n - m) for n, m in zip(wanted, full.shape[2:], strict=True)]
        full = F.pad(full, _flat(unread))
        like = full.new_zeros(full.shape[0], *self.input_shape)
        return torch.func.vjp(self.pad, like)[1](full)[0]

    def pad(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *padded"]:
        """Return the inputs with the entries that are added around them."""
        if not any(map(any, self.padding)):
            return inputs
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(inputs, _flat(self.padding), mode=mode)

    @property
    def fan_in(self) -> int:
        """Return the number of taps that one output sees."""
        return self.weight[0].numel()

    @property
    def _axes(self) -> int:
        return self.weight.ndim - 2

    @property
    def _bias_axes(self) -> int:
        return self._axes


@dataclass(frozen=True, kw_only=True, eq=False)
class TransposedConvolution(Linear):
    """The adjoint of a zero-padded convolution."""

    weight: Float[Tensor, "in group_out *kernel"]
    stride: Shape
    padding: tuple[Pair, ...]
    """Entries cut off before and after each spatial axis; a negative number of them is added."""
    dilation: Shape
    groups: int

    @property
    def mirror(self) -> Convolution:
        """Return the convolution, from outputs to inputs, whose adjoint this is, biases apart."""
        return Convolution(
            name=self.name,
            input_shapes=(self.output_shape,),
            output_shape=self.input_shape,
            weight=self.weight,
            bias=None,
            weight_name=self.weight_name,
            bias_name=None,
            stride=self.stride,
            padding=self.padding,
            padding_mode="zeros",
            dilation=self.dilation,
            groups=self.groups,
        )

    def apply(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return Wx."""
        return self.mirror.adjoint(inputs)

    def adjoint(self, outputs: Float[Tensor, "batch *out"]) -> Float[Tensor, "batch *shape"]:
        """Return Wᵀy."""
        return self.mirror.apply(outputs)

    @property
    def fan_in(self) -> int:
        """Return how many products one output sums at most: those of stride 1."""
        return self.weight[:, 0].numel() // self.groups

    @property
    def _bias_axes(self) -> int:
        return self.weight.ndim - 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Slope(Step):
    """An elementwise function whose difference quotients all lie in [lo, hi]."""

    function: Elementwise
    lo: float | Tensor
    """Lower end, rounded down; a tensor that broadcasts with one sample where it varies."""
    hi: float | Tensor
    sides: Sides = None
    derivative: Derivative | None = None
    """What the slopes on an interval are, of functions that `sides` does not describe."""
    claimed: bool = False
    """Whether the slopes are only the word of the layer's author."""
    formula: Formula | None = None
    """The function of one number, in any precision; None if there is none."""

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the function of every entry."""
        return self.function(inputs)

    @property
    def constant(self) -> float | Tensor:
        """Return max(|lo|, |hi|): the Lipschitz constant in every norm."""
        if isinstance(self.lo, Tensor) or isinstance(self.hi, Tensor):
            # In float64, to which a number that is not a tensor would otherwise be rounded down.
            ends = (torch.as_tensor(e, dtype=torch.float64).abs() for e in (self.lo, self.hi))
            return torch.maximum(*ends).max()
        return max(abs(self.lo), abs(self.hi))


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalisation:
    """What factor and offset of a normalisation are rounded from: w·(x - m)/s + b, by channel."""

    spread: Float[Tensor, "..."]
    """s, or its square less ε."""
    mean: Float[Tensor, "..."] | None = None
    """m; None is 0."""
    eps: float | None = None
    """ε, if the spread is a variance."""
    weight: Float[Tensor, "..."] | None = None
    """w; None is 1."""
    bias: Float[Tensor, "..."] | None = None
    """b; None is 0."""

    def rows(self) -> Iterator[tuple[float, ...]]:
        """Return spread, mean, weight and bias of each channel."""
        count = self.spread.numel()
        parts = (self.spread, self.mean, self.weight, self.bias)
        columns = (
            [default] * count if part is None else part.detach().flatten().tolist()
            for part, default in zip(parts, (1.0, 0.0, 1.0, 0.0), strict=True)
        )
        return zip(*columns, strict=True)

    def line(
        self, arithmetic: Any, spread: float, mean: float, weight: float, bias: float
    ) -> tuple[Any, Any, Any]:
        """Return factor and offset of a channel, and the sum of sizes whose difference it is.

        Args:
            arithmetic: A context of mpmath, whose precision counts.
            spread: s, or its square less ε.
            mean: m.
            weight: w.
            bias: b.
        """
        divisor = arithmetic.mpf(spread)
        if self.eps is not None:
            divisor = arithmetic.sqrt(divisor + self.eps)
        factor = weight / divisor
        moved = mean * factor
        return factor, bias - moved, abs(bias) + abs(moved)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Step):
    """A diagonal map x ↦ factor·x + offset: normalisation with fixed statistics."""

    factor: Float[Tensor, "..."]
    offset: Float[Tensor, "..."]
    weight_name: str | None = None
    """Name of the trainable part of `factor` among the parameters, if there is one."""
    normalisation: Normalisation | None = None
    """What both are rounded from; None if they are exact."""

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the scaled input."""
        return self.factor * inputs + self.offset


@dataclass(frozen=True, kw_only=True, eq=False)
class Rearrange(Step):
    """The identity on numbers: only the shape may change."""

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the input in the output's shape."""
        return inputs.reshape(inputs.shape[0], *self.output_shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Step):
    """The maximum over windows."""

    pool: Elementwise
    window: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the maximum of each window."""
        return self.pool(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Step):
    """The mean over windows: a linear map with fixed, non-negative weights."""

    pool: Elementwise

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the mean of each window."""
        return self.pool(inputs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy(Step):
    """Entries that are zeros or copies of entries: paddings, permutations, parts."""

    copy: Elementwise

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return the copies."""
        return self.copy(inputs).reshape(len(inputs), *self.output_shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum(Step):
    """A sum x, y, … ↦ a·x + b·y + … + offset of values of one shape."""

    coefficients: tuple[float, ...]
    """A number for each input; where the code divides, its rounded inverse."""
    offset: float = 0.0

    def __call__(self, *inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the sum."""
        total = self.coefficients[0] * inputs[0]
        for coefficient, value in zip(self.coefficients[1:], inputs[1:], strict=True):
            total = total + coefficient * value
        return total + self.offset


@dataclass(frozen=True, kw_only=True, eq=False)
class Concatenation(Step):
    """Values side by side along an axis."""

    axis: int
    """The axis, where 0 is that of the samples."""

    def __call__(self, *inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch *out"]:
        """Return all inputs as one value."""
        return torch.cat(inputs, dim=self.axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupSort(Step):
    """Groups of consecutive channels, each sorted from the largest to the smallest."""

    group: int

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return the input with sorted groups."""
        return sort_groups(inputs, self.group)


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Step):
    """The softmax p along one axis, or its logarithm."""

    axis: int
    """The axis, where 0 is that of the samples."""
    is_log: bool = False

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return p or log p."""
        return inputs.log_softmax(self.axis) if self.is_log else inputs.softmax(self.axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contraction(Step):
    """The residual step x - 2 W T⁻¹ s(Wᵀx + b), with s elementwise of slopes in [0, 1].

    It does not expand l2 distances where T - WᵀW is positive semidefinite.
    """

    weight: Float[Tensor, "in hidden"]
    diagonal: Float[Tensor, " hidden"]
    """The diagonal of T, positive."""
    bias: Float[Tensor, " hidden"]
    function: Elementwise

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return x - 2 W T⁻¹ s(Wᵀx + b)."""
        hidden = self.function(inputs @ self.weight + self.bias)
        return inputs - 2 * (hidden / self.diagonal) @ self.weight.T


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvContraction(Step):
    """The residual step x - 2 Vᵀ s(Vx + b), V a convolution and s as in `Contraction`.

    It does not expand l2 distances where the norm of V is at most 1.
    """

    operator: Convolution
    """V and b."""
    function: Elementwise

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Return x - 2 Vᵀ s(Vx + b)."""
        return inputs - 2 * self.operator.adjoint(self.function(self.operator(inputs)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sandwich(Step):
    """The step √2·AᵀΨ s(√2·Ψ⁻¹Bx + b), with s elementwise of slopes in [0, 1].

    It expands l2 distances at most λ times, λ the largest eigenvalue of AAᵀ + BBᵀ.
    """

    outer: Linear
    """A, from results to what s acts on, without a bias."""
    inner: Linear
    """B, from inputs to what s acts on, without a bias."""
    scale: Float[Tensor, "hidden ..."]
    """The diagonal of Ψ, positive, one for each channel."""
    bias: Float[Tensor, "hidden ..."]
    function: Elementwise

    @property
    def both(self) -> Linear:
        """Return [A B]."""
        first, *rest = self.inner.input_shape
        shape = (first + self.outer.input_shape[0], *rest)
        weight = torch.cat([self.outer.weight, self.inner.weight], dim=1)
        return replace(self.inner, weight=weight, input_shapes=(shape,))

    @property
    def pull(self) -> Linear:
        """Return √2·Ψ⁻¹B."""
        factor = math.sqrt(2) / self._channels(self.inner)
        return replace(self.inner, weight=factor * self.inner.weight)

    @property
    def push(self) -> Linear:
        """Return √2·ΨA."""
        factor = math.sqrt(2) * self._channels(self.outer)
        return replace(self.outer, weight=factor * self.outer.weight)

    def __call__(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out"]:
        """Return √2·AᵀΨ s(√2·Ψ⁻¹Bx + b)."""
        return self.push.adjoint(self.function(self.pull.apply(inputs) + self.bias))

    def _channels(self, linear: Linear) -> Float[Tensor, "hidden ..."]:
        return self.scale.reshape(-1, *[1] * (linear.weight.ndim - 1))


AFFINE = (Linear, AveragePool, Scale, Rearrange, Copy, Sum, Concatenation)
"""The kinds of steps whose results are affine in what they read."""


def _flat(padding: "tuple[Pair, ...] | list[Pair]") -> list[int]:
    # torch pads from the last axis to the first.
    return [width for pair in reversed(padding) for width in pair]
