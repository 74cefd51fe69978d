"""Calls that combine a value with constants: tensors that do not depend on the input."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lipbench.networks import steps
from lipbench.networks.call import Argument, Call, CallRule, Constant, NoRule, refuse_values, source
from lipbench.networks.primitives import Reader, Site
from lipbench.networks.steps import Shape, Tensors

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")


def scaled(target: Any, arguments: tuple[Argument, ...], settings: dict[str, Any]) -> Call | None:
    """Return the affine map of arithmetic with one constant, or None if a call is something else.

    Raises:
        NoRule: If it does something else with a constant.
    """
    targets = [*_ADDITIONS, *_SUBTRACTIONS, *_PRODUCTS, *_QUOTIENTS]
    constants = [argument for argument in arguments if isinstance(argument, Constant)]
    if target not in targets or not constants:
        return None
    if len(arguments) != 2 or len(constants) != 1 or settings:
        raise NoRule("only one value and one tensor have one")
    (constant,) = constants
    if target in _QUOTIENTS and arguments[0] is constant:
        raise NoRule("a quotient by a value has no constant on all of space")
    value, comes_first = source(arguments[arguments[0] is constant]), arguments[0] is constant

    def readers_at(site: Site) -> Reader:
        shape = _sample_shape(constant, site)

        def read(tensors: Tensors) -> steps.Step:
            tensor = tensors[constant.name].reshape(shape)
            tensor = tensor if tensor.is_floating_point() else tensor.double()
            factor, offset = _line(target, tensor, comes_first)
            is_weight = target in _PRODUCTS and constant.is_parameter
            is_quotient = target in _QUOTIENTS
            return steps.Scale(
                **site.fields,
                factor=factor,
                offset=offset,
                weight_name=constant.name if is_weight else None,
                normalisation=steps.Normalisation(spread=tensor) if is_quotient else None,
            )

        return read

    return Call((value,), readers_at)


def _line(target: Any, constant: Tensor, comes_first: bool) -> tuple[Tensor, Tensor]:
    """Return factor and offset of x ↦ factor·x + offset."""
    ones, zeros = torch.ones_like(constant), torch.zeros_like(constant)
    if target in _ADDITIONS:
        return ones, constant
    if target in _SUBTRACTIONS:
        return (-ones, constant) if comes_first else (ones, -constant)
    if target in _PRODUCTS:
        return constant, zeros
    return 1 / constant, zeros


def _sample_shape(constant: Constant, site: Site) -> Shape:
    """Return the shape of a constant as it meets one sample.

    Raises:
        NoRule: If it is larger.
    """
    (value,) = site.input_shapes
    shape = constant.shape
    if len(shape) == len(value) + 1 and shape[0] == 1:
        shape = shape[1:]
    fits = len(shape) <= len(value) and all(
        size in (1, length) for size, length in zip(shape[::-1], value[::-1], strict=False)
    )
    if not fits or site.output_shape != value:
        raise NoRule(f"the tensor {constant.name!r} has another shape than one sample")
    return shape


def _linear(input: Argument, weight: Argument, bias: Argument = None) -> Call:
    return _dense(input, weight, bias, lambda matrix: matrix)


def _matmul(input: Argument, other: Argument) -> Call:
    return _dense(input, other, None, lambda matrix: matrix.T)


def _dense(
    input: Argument, weight: Argument, bias: Argument, turned: Callable[[Tensor], Tensor]
) -> Call:
    matrix, offset = _tensor(weight), None if bias is None else _tensor(bias)

    def readers_at(site: Site) -> Reader:
        if len(site.input_shapes[0]) != 1 or len(matrix.shape) != 2:
            raise NoRule("only vectors have one")
        return lambda tensors: steps.Dense(
            **site.fields,
            weight=turned(tensors[matrix.name]),
            bias=None if offset is None else tensors[offset.name],
            weight_name=matrix.name,
            bias_name=None if offset is None else offset.name,
        )

    return Call((source(input),), readers_at)


def _convolution(axes: int) -> CallRule:
    def rule(
        input: Argument,
        weight: Argument,
        bias: Argument = None,
        stride: Argument = 1,
        padding: Argument = 0,
        dilation: Argument = 1,
        groups: Argument = 1,
    ) -> Call:
        kernel, offset = _tensor(weight), None if bias is None else _tensor(bias)
        refuse_values(stride, padding, dilation, groups)
        apart = _each(dilation, axes)

        def readers_at(site: Site) -> Reader:
            if len(site.input_shapes[0]) != axes + 1:
                raise NoRule("only samples with channels have one")
            return lambda tensors: steps.Convolution(
                **site.fields,
                weight=tensors[kernel.name],
                bias=None if offset is None else tensors[offset.name],
                weight_name=kernel.name,
                bias_name=None if offset is None else offset.name,
                stride=_each(stride, axes),
                padding=_padding(padding, kernel.shape[2:], apart),
                padding_mode="zeros",
                dilation=apart,
                groups=groups,
            )

        return Call((source(input),), readers_at)

    return rule


def _padding(padding: Argument, kernel: Shape, dilation: Shape) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    widths = _each(0 if padding == "valid" else padding, len(kernel))
    return tuple((width, width) for width in widths)


def _each(setting: int | tuple[int, ...], axes: int) -> Shape:
    settings = (setting,) if isinstance(setting, int) else tuple(setting)
    return settings * axes if len(settings) == 1 else settings


def _tensor(value: Argument) -> Constant:
    if not isinstance(value, Constant):
        raise NoRule("its weights depend on the input")
    if not math.prod(value.shape):
        raise NoRule("its weights are empty")
    return value


RULES: dict[Any, CallRule] = {
    F.linear: _linear,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    "matmul": _matmul,
    "mm": _matmul,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
}
