"""Functions and methods that are understood inside a forward pass."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from lipbench.layers.activations import ABSOLUTE, Curve
from lipbench.networks import combination, comparisons, constant_operands, copies, steps
from lipbench.networks.call import Argument, Call, CallRule, Constant, NoRule, refuse_values, source
from lipbench.networks.combination import Combination
from lipbench.networks.primitives import Reader, Site, curve_step, reader


def read_call(node: fx.Node, constants: Mapping[fx.Node, Constant]) -> Call:
    """Return a call as steps, by the rule of its function.

    Args:
        node: The call.
        constants: The nodes that hold tensors which do not depend on the input.

    Raises:
        NoRule: If the function has no rule, or none for these arguments.
    """
    known: Any = constants
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: known.get(value, value))
    try:
        return _read(node, tuple(args), dict(kwargs))
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise NoRule(error) from error


def _read(node: fx.Node, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> Call:
    whole: Any = node.args[0] if node.args else None
    is_item = node.target in (operator.getitem, getattr) and isinstance(whole, fx.Node)
    if is_item and "shape" not in whole.meta:  # one of several values
        return _item(whole, node.args[1])
    call = constant_operands.scaled(node.target, args, kwargs)
    if call is not None:
        return call
    rule = _RULES.get(node.target)
    if rule is None:
        raise NoRule
    return rule(*args, **kwargs)


def _item(whole: fx.Node, index: Argument) -> Call:
    if whole.target in copies.PARTITIONS:
        return copies.item(whole.target, whole.args, dict(whole.kwargs), index)
    return comparisons.item(whole, index)


def _like(layer: Callable[..., nn.Module]) -> CallRule:
    """Return the rule of a function that does the same as a layer with its other arguments."""

    def rule(input: Argument, *args: Argument, **kwargs: Argument) -> Call:
        refuse_values(args, kwargs)
        made = layer(*args, **kwargs)
        return Call((source(input),), lambda site: reader(made, site))

    return rule


def _curved(curve: Curve) -> CallRule:
    """Return the rule of an elementwise function that is no layer."""

    def rule(input: Argument) -> Call:
        def readers_at(site: Site) -> Reader:
            step = curve_step(curve, site)
            return lambda tensors: step

        return Call((source(input),), readers_at)

    return rule


def _max_pool(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    # The function and the layer take their last two arguments in different orders.
    def layer(
        kernel_size: Argument,
        stride: Argument = None,
        padding: Argument = 0,
        dilation: Argument = 1,
        ceil_mode: Argument = False,
        return_indices: Argument = False,
    ) -> nn.Module:
        return kind(kernel_size, stride or None, padding, dilation, return_indices, ceil_mode)

    return layer


def _clamp(input: Argument, min: Argument = None, max: Argument = None) -> Call:
    refuse_values(min, max)
    if max is None and min == 0:
        return _like(nn.ReLU)(input)
    if min is None or max is None or not min < max:
        raise NoRule("only between two numbers, or from 0 on, it has one")
    return _like(nn.Hardtanh)(input, min, max)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p).train(training)


def _combined(combine: Callable[..., Combination]) -> CallRule:
    def rule(*args: Argument, **kwargs: Argument) -> Call:
        total = combine(*args, **kwargs)

        def readers_at(site: Site) -> Reader:
            if any(shape != site.output_shape for shape in site.input_shapes):
                raise NoRule("the values differ in shape")
            coefficients = tuple(coefficient for coefficient, _ in total.terms)
            step = steps.Sum(**site.fields, coefficients=coefficients, offset=total.offset)
            return lambda tensors: step

        return Call(tuple(node for _, node in total.terms), readers_at)

    return rule


def _concatenate(tensors: Argument, dim: Argument = 0) -> Call:
    refuse_values(dim)
    if isinstance(tensors, fx.Node):
        return copies.together(tensors, lambda parts: torch.cat(parts, dim))
    compared = comparisons.sorted_pair(tensors, dim)
    if compared is not None:
        return compared

    def readers_at(site: Site) -> Reader:
        axis = dim % (len(site.output_shape) + 1)
        step = steps.Concatenation(**site.fields, axis=axis)
        return lambda tensors: step

    return Call(tuple(map(source, tensors)), readers_at)


def _stack(tensors: Argument, dim: Argument = 0) -> Call:
    refuse_values(dim)
    if isinstance(tensors, fx.Node):
        return copies.together(tensors, lambda parts: torch.stack(parts, dim))
    sources = tuple(map(source, tensors))

    def readers_at(site: Site) -> list[Reader]:
        first, *rest = site.input_shapes[0]
        axis = dim % (len(site.output_shape) + 1)
        joined = (first * len(sources), *rest)
        beside = steps.Concatenation(**{**site.fields, "output_shape": joined}, axis=1)
        behind = Site(name=site.name, input_shapes=(joined,), output_shape=site.output_shape)
        apart = copies.step(
            lambda values: values.unflatten(1, (len(sources), first)).movedim(1, axis), behind
        )
        return [lambda tensors: beside, apart]

    return Call(sources, readers_at)


def _hstack(tensors: Argument) -> Call:
    return _concatenate(tensors, 1)


def _reshape(input: Argument, *args: Argument, **kwargs: Argument) -> Call:
    def readers_at(site: Site) -> Reader:
        if math.prod(site.input_shapes[0]) != math.prod(site.output_shape):
            raise NoRule("it reads the numbers as another type")
        step = steps.Rearrange(**site.fields)
        return lambda tensors: step

    return Call((source(input),), readers_at)


def _soft(layer: Callable[..., nn.Module]) -> CallRule:
    """Return the rule of a softmax; its functions and methods differ in the place of `dtype`."""

    def rule(input: Argument, dim: Argument = None, *extra: Argument, **named: Argument) -> Call:
        refuse_values(dim)
        named.pop("_stacklevel", None)
        if any(value is not None for value in (*extra, *named.values())):
            raise NoRule("it has one with a dim, and nothing else")
        if dim is None:
            raise NoRule("torch guesses its axis, give it as dim")

        def readers_at(site: Site) -> Reader:
            if dim % (len(site.output_shape) + 1) == 0:
                raise NoRule("only along an axis of one sample it has one")
            return reader(layer(dim), site)

        return Call((source(input),), readers_at)

    return rule


def _mean(
    input: Argument, dim: Argument = None, keepdim: Argument = False, *, dtype: Argument = None
) -> Call:
    refuse_values(dim, keepdim)
    axes = (dim,) if isinstance(dim, int) else tuple(dim or ())

    def readers_at(site: Site) -> Reader:
        number = len(site.input_shapes[0]) + 1
        if dtype is not None or not axes or 0 in [axis % number for axis in axes]:
            raise NoRule("only a mean over axes of one sample has one")
        step = steps.AveragePool(**site.fields, pool=lambda values: values.mean(axes, keepdim))
        return lambda tensors: step

    return Call((source(input),), readers_at)


def _forms(rules: Mapping[str, CallRule]) -> dict[Any, CallRule]:
    """Return rules by function of torch and method of a tensor, also those that work in place."""
    forms: dict[Any, CallRule] = {}
    for name, rule in rules.items():
        for form in (name, f"{name}_"):
            homes = [home for home in (torch, F) if hasattr(home, form)]
            forms |= {getattr(home, form): rule for home in homes}
            if hasattr(torch.Tensor, form):
                forms[form] = rule
    return forms


_OPERATORS: dict[Any, CallRule] = {
    operator.add: _combined(combination.add),
    operator.iadd: _combined(combination.add),
    operator.sub: _combined(combination.subtract),
    operator.isub: _combined(combination.subtract),
    operator.mul: _combined(combination.multiply),
    operator.imul: _combined(combination.multiply),
    operator.truediv: _combined(combination.divide),
    operator.itruediv: _combined(combination.divide),
    operator.neg: _combined(combination.negate),
    operator.pos: _combined(combination.keep),
    operator.abs: _curved(ABSOLUTE),
    abs: _curved(ABSOLUTE),
}
_NAMED: dict[str, CallRule] = {
    "add": _combined(combination.add),
    "sub": _combined(combination.subtract),
    "mul": _combined(combination.multiply),
    "div": _combined(combination.divide),
    "neg": _combined(combination.negate),
    "cat": _concatenate,
    "concat": _concatenate,
    "concatenate": _concatenate,
    "hstack": _hstack,
    "stack": _stack,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "contiguous": _reshape,
    "clone": _reshape,
    "mean": _mean,
    "softmax": _soft(nn.Softmax),
    "log_softmax": _soft(nn.LogSoftmax),
    "max_pool1d": _like(_max_pool(nn.MaxPool1d)),
    "max_pool2d": _like(_max_pool(nn.MaxPool2d)),
    "avg_pool1d": _like(nn.AvgPool1d),
    "avg_pool2d": _like(nn.AvgPool2d),
    "adaptive_avg_pool1d": _like(nn.AdaptiveAvgPool1d),
    "adaptive_avg_pool2d": _like(nn.AdaptiveAvgPool2d),
    "dropout": _like(_dropout),
    "clamp": _clamp,
    "clip": _clamp,
    "abs": _curved(ABSOLUTE),
    "relu": _like(nn.ReLU),
    "relu6": _like(nn.ReLU6),
    "leaky_relu": _like(nn.LeakyReLU),
    "elu": _like(nn.ELU),
    "selu": _like(nn.SELU),
    "celu": _like(nn.CELU),
    "gelu": _like(nn.GELU),
    "silu": _like(nn.SiLU),
    "mish": _like(nn.Mish),
    "sigmoid": _like(nn.Sigmoid),
    "logsigmoid": _like(nn.LogSigmoid),
    "hardsigmoid": _like(nn.Hardsigmoid),
    "tanh": _like(nn.Tanh),
    "hardtanh": _like(nn.Hardtanh),
    "tanhshrink": _like(nn.Tanhshrink),
    "softplus": _like(nn.Softplus),
    "softsign": _like(nn.Softsign),
    "hardswish": _like(nn.Hardswish),
}
_RULES = copies.RULES | comparisons.RULES | constant_operands.RULES | _OPERATORS | _forms(_NAMED)
